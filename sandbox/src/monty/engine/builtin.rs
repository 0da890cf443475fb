//! Python's functions that Monty leaves to its host: `input`, `exit`, and a `print` that can write to stderr.

use std::io;

use monty_types::{ExcType, ExtFunctionResult, MontyException, MontyObject};

use super::host::{END_OF_INPUT, Host, Stream, exception};

/// A function of Python's that this module implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Builtin {
    Input,
    Exit,
    /// `print`, for code that may write to stderr; the interpreter's own `print` can't.
    Print,
}

impl Builtin {
    pub(super) fn named(name: &str) -> Option<Builtin> {
        match name {
            "input" => Some(Builtin::Input),
            "exit" | "quit" => Some(Builtin::Exit),
            "print" => Some(Builtin::Print),
            _ => None,
        }
    }
}

/// `input(prompt)`: a line without its end.
pub(super) fn input(args: &[MontyObject], host: &mut dyn Host) -> io::Result<ExtFunctionResult> {
    if let Some(prompt) = args.first() {
        host.write(Stream::Stdout, &prompt.to_string())?;
    }
    let line = match host.read_line() {
        Ok(line) => line,
        // The error is in the task's input, not in the host.
        Err(error) => return Ok(exception(ExcType::OSError, error.to_string()).into()),
    };
    Ok(match line.strip_suffix('\n') {
        Some(line) => MontyObject::String(line.to_owned()).into(),
        None if line.is_empty() => exception(ExcType::OSError, END_OF_INPUT).into(),
        None => MontyObject::String(line).into(),
    })
}

/// `print(..., file=sys.stderr)`, and `print` to stdout.
pub(super) fn print(
    args: &[MontyObject],
    kwargs: &[(MontyObject, MontyObject)],
    host: &mut dyn Host,
) -> io::Result<ExtFunctionResult> {
    let (mut to, mut between, mut end) = (Stream::Stdout, " ".to_owned(), "\n".to_owned());
    for (name, value) in kwargs {
        match (name.to_string().as_str(), value) {
            ("sep" | "end" | "file", MontyObject::None) | ("flush", _) => {}
            ("sep", MontyObject::String(text)) => between.clone_from(text),
            ("end", MontyObject::String(text)) => end.clone_from(text),
            ("file", MontyObject::Repr(text)) if text == "<stdout>" => to = Stream::Stdout,
            ("file", MontyObject::Repr(text)) if text == "<stderr>" => to = Stream::Stderr,
            (name, _) => {
                let why = format!("print() cannot use this value of its argument '{name}'");
                return Ok(exception(ExcType::TypeError, why).into());
            }
        }
    }
    let texts: Vec<String> = args.iter().map(shown).collect();
    host.write(to, &(texts.join(&between) + &end))?;
    Ok(MontyObject::None.into())
}

/// Formats an object as `str` does.
fn shown(object: &MontyObject) -> String {
    match object {
        MontyObject::Repr(text) | MontyObject::Path(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `exit(code)`: returns the exit code, if it is a number, and the exception to raise.
pub(super) fn exit(args: &[MontyObject]) -> (Option<u8>, MontyException) {
    let code = match args.first() {
        None | Some(MontyObject::None) => Some(0),
        Some(MontyObject::Bool(code)) => Some(u8::from(*code)),
        Some(MontyObject::Int(code)) => Some(code.to_le_bytes()[0]),
        Some(_) => None,
    };
    let message = args.first().filter(|arg| **arg != MontyObject::None);
    let message = message.map(ToString::to_string);
    (code, MontyException::new(ExcType::SystemExit, message))
}

/// Returns the text to write where `SystemExit` ends the code: its message, unless that is the exit code. `None` for any other
/// exception.
pub(super) fn exit_text(exception: &MontyException, code: Option<u8>) -> Option<Option<String>> {
    let exits = exception.exc_type() == ExcType::SystemExit;
    let message = exception.message().filter(|_| code.is_none());
    exits.then(|| message.map(str::to_owned))
}

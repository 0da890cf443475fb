//! Running other programs. All of them get an empty stdin; what they print is either captured, and shown when they fail, or
//! passed through.

use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// Runs a program and returns its stdout. If it fails, what it said goes to stderr, above the one line of the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        eprint!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        bail!("{} failed ({})", shown(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed bytes that are not UTF-8", shown(command)))
}

/// Runs a program and returns all it said, whether it succeeded or not.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| cannot_start(command, &error))
}

/// Runs a program whose output the user sees as it comes.
pub(crate) fn pass_through(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| cannot_start(command, &error))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// The error for a program that did not start, naming it.
pub(crate) fn cannot_start(command: &Command, error: &std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("{program} is not installed; `cargo xtask setup` installs what is missing")
        }
        _ => anyhow!("cannot start {program}: {error}"),
    }
}

/// The command as a user can paste it into a shell.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| quoted(&short(&word.to_string_lossy())))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A path as it is typed in the workspace's folder: relative to it, or to the home folder.
pub(crate) fn short(path: &str) -> String {
    let below = |folder: &str, prefix: &str| {
        let rest = path.strip_prefix(folder)?.strip_prefix('/')?;
        Some(format!("{prefix}{rest}"))
    };
    let home = std::env::var("HOME").unwrap_or_default();
    below(&crate::cargo::root().to_string_lossy(), "")
        .or_else(|| below(&home, "~/").filter(|_| home.len() > 1))
        .unwrap_or_else(|| path.to_owned())
}

/// A word as it is typed into a shell.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted() {
        let mut command = Command::new("minivm");
        command.args(["--memory", "256M", "--cmdline", "a b", "", "it's"]);
        assert_eq!(
            shown(&command),
            r"minivm --memory 256M --cmdline 'a b' '' 'it'\''s'"
        );
    }

    #[test]
    fn a_missing_program_is_named_with_its_remedy() {
        let error = capture(&mut Command::new("no-such-program"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "no-such-program is not installed; `cargo xtask setup` installs what is missing"
        );
    }
}

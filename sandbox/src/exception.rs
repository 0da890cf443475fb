//! Exceptions, read from the traceback that Python writes to stderr.
//!
//! The Pythons of all five sandboxes write tracebacks of CPython's form, so one reader serves them all. The code can write anything
//! to stderr, and so forge an exception: it is no more trustworthy than the code's output.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::End;

/// The number of stderr's last bytes that are kept.
const TAIL_MAX: usize = 64 << 10;
/// The first line of a traceback.
const HEADER: &str = "Traceback (most recent call last):";

/// An exception that ended a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// The type without its module, such as `ValueError`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The message; may be empty.
    pub message: String,
    /// The line of the code in which it was raised, from 1.
    pub line: Option<u32>,
    /// The whole traceback.
    pub traceback: String,
}

impl Exception {
    /// Reads the last exception in a program's stderr.
    pub(super) fn read(stderr: &str) -> Option<Exception> {
        let lines: Vec<&str> = stderr.lines().collect();
        let start = lines.iter().rposition(|line| *line == HEADER);
        // A syntax error has frames and no header.
        let start = start.or_else(|| lines.iter().position(|line| frame_line(line).is_some()))?;
        let traceback = &lines[start..];
        let frames = usize::from(traceback[0] == HEADER);
        let summary = traceback[frames..]
            .iter()
            .position(|line| !line.is_empty() && !line.starts_with(' '))?
            + frames;
        let (kind, first) = match traceback[summary].split_once(": ") {
            Some((kind, message)) => (kind, message),
            None => (traceback[summary].trim_end_matches(':'), ""),
        };
        if !is_type(kind) {
            return None;
        }
        let mut message = vec![first];
        message.extend(&traceback[summary + 1..]);
        let line = traceback[..summary].iter().rev();
        Some(Exception {
            kind: kind.rsplit('.').next().unwrap_or(kind).to_owned(),
            message: message.join("\n").trim_end().to_owned(),
            line: line.filter_map(|line| frame_line(line)).next(),
            traceback: traceback.join("\n"),
        })
    }
}

/// Returns the line number in a traceback's line, if that is a frame of the code itself and not of a module's file.
fn frame_line(line: &str) -> Option<u32> {
    let (file, rest) = line.strip_prefix("  File \"")?.split_once("\", line ")?;
    let own = file.starts_with('<') && !file.starts_with("<frozen ") || file == "main.py";
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    own.then(|| digits.parse().ok()).flatten()
}

/// Returns whether a text is a valid name of a type, with or without its module.
fn is_type(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    text.split('.').all(|name| part(name) || name == "<locals>")
}

/// The last bytes of an output, kept by the writer that [`Tail::of`] returns. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    pub(super) fn remember(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&bytes[bytes.len().saturating_sub(TAIL_MAX)..]);
        let over = tail.len().saturating_sub(TAIL_MAX);
        tail.drain(..over);
    }

    /// Returns the bytes as text.
    pub(super) fn text(&self) -> String {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(tail.make_contiguous()).into_owned()
    }

    /// Reads the exception at the output's end, if the program exited with another code than 0.
    pub(super) fn exception_at(&self, end: &End) -> Option<Exception> {
        let failed = matches!(end, End::Exited(code) if *code != 0);
        failed.then(|| Exception::read(&self.text())).flatten()
    }

    /// Returns a writer that writes to `out` and keeps the last bytes here.
    pub(super) fn of(&self, out: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        Box::new(Watched {
            out,
            tail: self.clone(),
        })
    }
}

struct Watched {
    out: Box<dyn Write + Send>,
    tail: Tail,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        self.tail.remember(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stderr: &str) -> (String, String, Option<u32>) {
        let read = Exception::read(stderr).unwrap_or_else(|| panic!("nothing in {stderr:?}"));
        (read.kind, read.message, read.line)
    }

    fn expected(kind: &str, message: &str, line: u32) -> (String, String, Option<u32>) {
        (kind.into(), message.into(), Some(line))
    }

    #[test]
    fn type_message_and_line_are_read_from_a_traceback() {
        let text = "Traceback (most recent call last):\n  File \"<string>\", line 3, in <module>\n  \
                    File \"<string>\", line 2, in f\nValueError: no: not this\n";
        assert_eq!(read(text), expected("ValueError", "no: not this", 2));
    }

    #[test]
    fn the_line_is_one_of_the_code_and_not_of_a_module() {
        let text = "noise\nTraceback (most recent call last):\n  File \"<string>\", line 7, in <module>\n  \
                    File \"/usr/lib/python3.11/json/decoder.py\", line 355, in raw_decode\n    raise X\n\
                    json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)\n";
        let message = "Expecting value: line 1 column 1 (char 0)";
        assert_eq!(read(text), expected("JSONDecodeError", message, 7));
    }

    #[test]
    fn a_syntax_error_has_no_header_and_the_last_of_a_chain_counts() {
        let text = "  File \"<string>\", line 1\n    a b\n    ^^^\nSyntaxError: invalid syntax\n";
        assert_eq!(read(text), expected("SyntaxError", "invalid syntax", 1));
        let text = "Traceback (most recent call last):\n  File \"<string>\", line 2, in <module>\nKeyError: 'a'\n\n\
                    During handling of the above exception, another exception occurred:\n\n\
                    Traceback (most recent call last):\n  File \"<string>\", line 4, in <module>\nZeroDivisionError\n";
        assert_eq!(read(text), expected("ZeroDivisionError", "", 4));
    }

    #[test]
    fn a_message_may_have_many_lines() {
        let text = "Traceback (most recent call last):\n  File \"<exec>\", line 1, in <module>\nE: one\n  two\n\nthree\n";
        assert_eq!(read(text), expected("E", "one\n  two\n\nthree", 1));
    }

    #[test]
    fn other_text_has_no_exception() {
        for text in [
            "",
            "error: x",
            HEADER,
            "Traceback (most recent call last):\n  File \"<string>\", line 1\n!!: x",
            "  File \"<string>\", line 1",
        ] {
            assert_eq!(Exception::read(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_the_last_bytes_are_kept() {
        let tail = Tail::default();
        let mut out = tail.of(Box::new(io::sink()));
        out.write_all(&vec![b'x'; 3 * TAIL_MAX]).unwrap();
        out.write_all(b"\nTraceback (most recent call last):\n  File \"<string>\", line 9, in <module>\nOSError: x\n")
            .unwrap();
        let exception = tail.exception_at(&End::Exited(1)).unwrap();
        assert_eq!(exception.line, Some(9));
        assert_eq!(tail.exception_at(&End::Exited(0)), None);
        assert_eq!(tail.0.lock().unwrap().len(), TAIL_MAX);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(Traceback \\(most recent call last\\):\n|  File \"<s>\", line [0-9]{0,12}\n|[ -~]{0,9}\n|E: x)*") {
            let _ = Exception::read(&text);
        }
    }
}

//! The last message of a machine in the lab: why it ended, which `minivm` there writes to its stderr.
//!
//! That message becomes a part of this process's own error. So the writer here holds every message back until something else follows
//! it, and passes all else on as it comes.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::printable::printable;
use crate::streams;

/// The beginning of each of `minivm`'s messages.
const PREFIX: &[u8] = b"minivm: ";
/// The most bytes of a message that are held back.
const MESSAGE_MAX: usize = 16 << 10;
/// The most characters of a message's line that are shown.
const LINE_MAX: usize = 500;

/// A writer that holds back what may be the last message.
pub(crate) struct LastWords {
    out: Box<dyn Write + Send>,
    kept: Kept,
    /// Whether a message may have several lines: then all lines up to the next message belong to it.
    long: bool,
    /// The beginning of a line, as long as it may be that of a message.
    begun: Vec<u8>,
    /// Where the rest of the current line goes; `None` where that isn't known yet.
    rest: Option<Rest>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    Kept,
    PassedOn,
}

/// The message that is held back. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

impl LastWords {
    /// Makes a writer that passes on to `out`, and what it holds back. `long` says whether messages may have several lines.
    pub(crate) fn to(out: impl Write + Send + 'static, long: bool) -> (LastWords, Kept) {
        let kept = Kept::default();
        let words = LastWords {
            out: Box::new(out),
            kept: kept.clone(),
            long,
            begun: Vec::new(),
            rest: None,
        };
        (words, kept)
    }

    /// Takes a line, or a piece of one.
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        let mut kept = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.begun.extend_from_slice(piece);
        let ends = piece.ends_with(b"\n");
        let rest = match self.rest {
            Some(rest) => rest,
            None => {
                let len = self.begun.len().min(PREFIX.len());
                let begins = self.begun[..len] == PREFIX[..len];
                if begins && len < PREFIX.len() {
                    return Ok(());
                }
                let follows = self.long && !begins && !kept.is_empty();
                if !follows {
                    self.out.write_all(&kept)?;
                    kept.clear();
                }
                match begins || follows {
                    true => Rest::Kept,
                    false => Rest::PassedOn,
                }
            }
        };
        let full = kept.len() + self.begun.len() > MESSAGE_MAX;
        if rest == Rest::Kept && !full {
            kept.append(&mut self.begun);
        } else {
            self.out.write_all(&kept)?;
            kept.clear();
            self.out.write_all(&self.begun)?;
            self.begun.clear();
        }
        self.rest = match ends {
            true => None,
            false if full => Some(Rest::PassedOn),
            false => Some(rest),
        };
        Ok(())
    }
}

impl Kept {
    /// Returns why the machine ended: the last message, or else its exit code.
    pub(crate) fn why(&self, code: i32) -> String {
        let kept = self.take();
        let text = String::from_utf8_lossy(kept.strip_prefix(PREFIX).unwrap_or_default());
        let lines: Vec<String> = text.lines().map(|line| printable(line, LINE_MAX)).collect();
        match lines.join("\n") {
            text if text.trim().is_empty() => format!("exit code {code} in the lab"),
            text => text,
        }
    }

    /// Writes the message to stderr after all, where it is not the reason of an end.
    pub(crate) fn pass_on(&self) {
        // A line that stderr doesn't take is lost: there is no other place for it.
        let _ = streams::write_all(&mut io::stderr(), &self.take());
    }

    fn take(&self) -> Vec<u8> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *kept)
    }
}

impl Write for LastWords {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.take(piece)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        // It was not a message.
        let _ = self.out.write_all(&self.begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_tests::output::Shared;

    /// Returns what is passed on of these pieces, and the reason that remains.
    fn passed_and_why(pieces: &[&str], long: bool) -> (String, String) {
        let out = Shared::default();
        let (mut words, kept) = LastWords::to(out.clone(), long);
        for piece in pieces {
            words.write_all(piece.as_bytes()).unwrap();
        }
        drop(words);
        let passed = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        (passed, kept.why(7))
    }

    #[test]
    fn the_last_message_is_kept_back_and_all_else_passed_on() {
        for (all, long, passed, why) in [
            (
                "a\nminivm: one\nminivm: it died\n",
                false,
                "a\nminivm: one\n",
                "it died",
            ),
            (
                "a\nminivm: one\nminivm: it died\n",
                true,
                "a\nminivm: one\n",
                "it died",
            ),
            (
                "minivm: one\nb\nminivm: it:\n[ 1.0] x\n",
                true,
                "minivm: one\nb\n",
                "it:\n[ 1.0] x",
            ),
            (
                "minivm: one\nb\nminivm: two",
                false,
                "minivm: one\nb\n",
                "two",
            ),
        ] {
            let expected = (passed.to_owned(), why.to_owned());
            assert_eq!(passed_and_why(&[all], long), expected);
            let letters: Vec<String> = all.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(passed_and_why(&letters, long), expected);
        }
    }

    #[test]
    fn all_that_is_not_a_message_is_passed_on() {
        let code = "exit code 7 in the lab".to_owned();
        for text in [
            "",
            "x",
            "mini",
            "mini\n",
            "minimal: x",
            "x minivm: y\n",
            "minivm: a\nb",
        ] {
            assert_eq!(
                passed_and_why(&[text], false),
                (text.to_owned(), code.clone()),
                "{text}"
            );
        }
        let long = format!("minivm: {}\nx", "x".repeat(MESSAGE_MAX));
        assert_eq!(passed_and_why(&[&long], true), (long.clone(), code));
    }
}

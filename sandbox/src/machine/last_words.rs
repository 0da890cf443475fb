//! What a machine in the lab says last: why it ended, which `minivm` there writes to stderr as a line of its own.
//!
//! The line becomes a part of our own error, and so it is kept back here until something comes after it. All else is passed on
//! as it comes.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::printable::printable;
use crate::streams;

/// How a line of `minivm`'s begins.
const PREFIX: &[u8] = b"minivm: ";
/// The most bytes of a line that are kept back.
const LINE_MAX: usize = 4096;
/// The most characters of it that are shown.
const TEXT_MAX: usize = 500;

/// A writer that keeps the last line back where that is `minivm`'s.
pub(crate) struct LastWords {
    out: Box<dyn Write + Send>,
    kept: Kept,
    /// Whether what is passed on ended within a line.
    within: bool,
}

/// What is kept back.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

impl LastWords {
    /// One that passes on to `out`.
    pub(crate) fn to(out: impl Write + Send + 'static) -> (LastWords, Kept) {
        let kept = Kept::default();
        let words = LastWords {
            out: Box::new(out),
            kept: kept.clone(),
            within: false,
        };
        (words, kept)
    }
}

impl Kept {
    /// Why the machine ended, which had this exit code.
    pub(crate) fn why(&self, code: i32) -> String {
        let kept = self.take();
        let text = String::from_utf8_lossy(kept.strip_prefix(PREFIX).unwrap_or_default());
        match printable(text.trim(), TEXT_MAX) {
            text if text.is_empty() => format!("exit code {code} in the lab"),
            text => text,
        }
    }

    /// Passes on what is kept back after all: it was not why.
    pub(crate) fn pass_on(&self) {
        // As for every line of ours: there is no other place for it.
        let _ = streams::write_all(&mut io::stderr(), &self.take());
    }

    fn take(&self) -> Vec<u8> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *kept)
    }
}

impl Write for LastWords {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if kept.ends_with(b"\n") {
                self.out.write_all(&kept)?;
                kept.clear();
            }
            if !self.within {
                kept.extend_from_slice(line);
                let len = kept.len().min(PREFIX.len());
                if kept[..len] == PREFIX[..len] && kept.len() <= LINE_MAX {
                    continue;
                }
            }
            let all = if self.within { line } else { &kept };
            self.out.write_all(all)?;
            self.within = !all.ends_with(b"\n");
            kept.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_tests::output::Shared;

    /// What is passed on, and what is said to be why.
    fn told(pieces: &[&str]) -> (String, String) {
        let out = Shared::default();
        let (mut words, kept) = LastWords::to(out.clone());
        for piece in pieces {
            words.write_all(piece.as_bytes()).unwrap();
        }
        let passed = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        (passed, kept.why(7))
    }

    #[test]
    fn the_last_line_is_kept_back_and_all_else_passed_on() {
        let all = "a\nminivm: one\nminivm: the guest crashed\n";
        let expected = (
            "a\nminivm: one\n".to_owned(),
            "the guest crashed".to_owned(),
        );
        assert_eq!(told(&[all]), expected);
        let letters: Vec<String> = all.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(told(&letters), expected);
    }

    #[test]
    fn what_is_not_minivms_last_line_is_passed_on_whole() {
        let code = "exit code 7 in the lab".to_owned();
        for text in [
            "",
            "x",
            "mini\n",
            "minimal: x",
            "x minivm: y\n",
            "minivm: a\nb",
        ] {
            assert_eq!(told(&[text]), (text.to_owned(), code.clone()), "{text}");
        }
        let long = format!("minivm: {}", "x".repeat(5000));
        assert_eq!(told(&[&long]), (long.clone(), code));
    }
}

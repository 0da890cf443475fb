//! Input by lines and output by blocks, as both kinds of hosts have them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The most bytes of a line of input.
const LINE_MAX: u64 = 16 << 20;
/// Output that is kept back for more to come.
const BLOCK: usize = 16 << 10;
/// How long. A limit may end the code at any time, and what was printed before then is to be seen.
const HELD: Duration = Duration::from_millis(2);

/// An input that is read by lines.
pub(super) struct Lines(BufReader<File>);

impl Lines {
    pub(super) fn new(input: OwnedFd) -> Self {
        Lines(BufReader::new(input.into()))
    }

    /// A line with its end; nothing at the input's end. What is no UTF-8 is replaced, since the interpreter has no other text.
    pub(super) fn next(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut limited = (&mut self.0).take(LINE_MAX);
        limited.read_until(b'\n', &mut line)?;
        if limited.limit() == 0 && line.last() != Some(&b'\n') {
            let why = format!("a line of the input is longer than {LINE_MAX} bytes");
            return Err(io::Error::other(why));
        }
        Ok(String::from_utf8(line)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }
}

/// Output that is collected, and passed on before it grows old.
pub(super) struct Block {
    text: Vec<u8>,
    since: Instant,
}

impl Block {
    pub(super) fn new() -> Self {
        Block {
            text: Vec::new(),
            since: Instant::now(),
        }
    }

    pub(super) fn push(&mut self, text: &str) {
        if self.text.is_empty() {
            self.since = Instant::now();
        }
        self.text.extend_from_slice(text.as_bytes());
    }

    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= BLOCK
    }

    pub(super) fn is_old(&self) -> bool {
        !self.text.is_empty() && self.since.elapsed() >= HELD
    }

    /// Passes all of it on.
    pub(super) fn flush(&mut self, write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        let written = write(&self.text);
        self.text.clear();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::task::in_memory;

    #[test]
    fn lines_come_with_their_ends_and_an_end_is_empty() {
        let mut lines = Lines::new(in_memory(b"a\n\xff\n\nlast").unwrap());
        let read: Vec<String> = (0..5).map(|_| lines.next().unwrap()).collect();
        assert_eq!(read, ["a\n", "\u{fffd}\n", "\n", "last", ""]);
    }

    #[test]
    fn a_line_without_an_end_is_not_read_for_ever() {
        let zeros = File::open("/dev/zero").unwrap();
        let error = Lines::new(zeros.into()).next().unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}

//! Text from a guest or an image, made fit for a terminal: without what a terminal takes for a command.

use std::io::{self, Write};

/// Returns the text without control characters, in one line of at most `max` characters.
pub fn printable(text: &str, max: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(max)
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// A writer that passes text on as it comes, without control characters other than line ends and tabs.
///
/// A write that fails has taken the bytes, and left some of the text: the next one, which has the same bytes, goes on with that. So an
/// interruption is the caller's to see, whose machine may have to end.
pub(crate) struct Filter<W> {
    out: W,
    /// Text that is still to be passed on.
    kept: Vec<u8>,
    /// The beginning of a character whose end is still to come.
    begun: Vec<u8>,
    /// Whether a carriage return has come, which stays only before a line's end.
    returned: bool,
}

impl<W: Write> Filter<W> {
    pub(crate) fn new(out: W) -> Self {
        Filter {
            out,
            kept: Vec::new(),
            begun: Vec::new(),
            returned: false,
        }
    }

    /// Keeps what is to be passed on of these bytes.
    fn take(&mut self, bytes: &[u8]) {
        let all = [std::mem::take(&mut self.begun), bytes.to_vec()].concat();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let chunk = rest.utf8_chunks().next().expect("it is not empty");
            self.keep(chunk.valid());
            let (valid, invalid) = (chunk.valid().len(), chunk.invalid());
            rest = &rest[valid + invalid.len()..];
            // What could still become a character at the very end is no error yet.
            let begun =
                std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if rest.is_empty() && begun {
                self.begun = invalid.to_vec();
            }
        }
    }

    fn keep(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '\n' if self.returned => self.kept.extend(b"\r\n"),
                '\n' | '\t' => self.push(c),
                c if !c.is_control() => self.push(c),
                _ => {}
            }
            self.returned = c == '\r';
        }
    }

    fn push(&mut self, c: char) {
        self.kept.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

impl<W: Write> Write for Filter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.kept.is_empty() {
            self.take(bytes);
        }
        while !self.kept.is_empty() {
            match self.out.write(&self.kept)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                len => drop(self.kept.drain(..len)),
            }
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

    #[test]
    fn a_text_has_no_control_characters_and_an_end() {
        assert_eq!(printable("a\x1b]0;b\u{9b}c\r\n\td ", 100), "a]0;bcd");
        assert_eq!(printable("äöü", 2), "äö");
    }

    #[test]
    fn lines_and_tabs_pass_and_commands_do_not_however_the_bytes_are_cut() {
        let said = "one\ttwo\r\nthree\rfour\n\x1b[2Jä\u{9b}31m€\x07".as_bytes();
        let said = [said, b"\xff\x9bend\xe2\x82\n"].concat();
        for size in 1..said.len() {
            let mut filter = Filter::new(Vec::new());
            for piece in said.chunks(size) {
                filter.write_all(piece).unwrap();
            }
            let shown = String::from_utf8(filter.out).unwrap();
            assert_eq!(shown, "one\ttwo\r\nthreefour\n[2Jä31m€end\n", "{size}");
        }
    }

    /// Takes a byte now and then, and is interrupted otherwise.
    #[derive(Default)]
    struct Interrupted(Vec<u8>, usize);

    impl Write for Interrupted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if !self.1.is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.0.push(bytes[0]);
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_interruption_is_the_callers_and_nothing_is_lost_or_doubled() {
        let mut filter = Filter::new(Interrupted::default());
        let mut interruptions = 0;
        for piece in [&b"on\x1b[2Je\r\n"[..], b"\xe2\x82", b"\xac two"] {
            while let Err(error) = filter.write(piece) {
                assert_eq!(error.kind(), io::ErrorKind::Interrupted);
                interruptions += 1;
            }
        }
        assert!(interruptions > 10, "{interruptions}");
        let shown = String::from_utf8(filter.out.0).unwrap();
        assert_eq!(shown, "on[2Je\r\n\u{20ac} two");
    }
}

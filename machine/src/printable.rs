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
pub(crate) struct Filter<W> {
    out: W,
    /// The beginning of a character whose end is still to come.
    begun: Vec<u8>,
    /// Whether a carriage return has come, which stays only before a line's end.
    returned: bool,
}

impl<W: Write> Filter<W> {
    pub(crate) fn new(out: W) -> Self {
        Filter {
            out,
            begun: Vec::new(),
            returned: false,
        }
    }

    fn keep(&mut self, text: &str, kept: &mut String) {
        for c in text.chars() {
            match c {
                '\n' if self.returned => kept.push_str("\r\n"),
                '\n' | '\t' => kept.push(c),
                c if !c.is_control() => kept.push(c),
                _ => {}
            }
            self.returned = c == '\r';
        }
    }
}

impl<W: Write> Write for Filter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let all = [std::mem::take(&mut self.begun), bytes.to_vec()].concat();
        let mut kept = String::new();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let chunk = rest.utf8_chunks().next().expect("it is not empty");
            self.keep(chunk.valid(), &mut kept);
            let (valid, invalid) = (chunk.valid().len(), chunk.invalid());
            rest = &rest[valid + invalid.len()..];
            // What could still become a character at the very end is no error yet.
            let begun =
                std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if rest.is_empty() && begun {
                self.begun = invalid.to_vec();
            }
        }
        self.out.write_all(kept.as_bytes())?;
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
}

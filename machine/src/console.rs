//! The last lines of a kernel's console, kept for the error of a machine that dies.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::printable::printable;

/// The most lines that are kept.
const LINES: usize = 12;
/// The most bytes of a line.
const LINE_MAX: usize = 400;

/// A writer that keeps a console's last lines. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<Vec<u8>>>>);

impl Tail {
    /// Returns the lines as text without control characters, which a guest may write but a terminal must not get; `None` where there are
    /// none.
    pub(super) fn text(&self) -> Option<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown: Vec<_> = lines
            .iter()
            .map(|line| printable(&String::from_utf8_lossy(line), LINE_MAX))
            .filter(|line| !line.is_empty())
            .collect();
        (!shown.is_empty()).then(|| shown.join("\n"))
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            if byte == b'\n' || lines.is_empty() {
                lines.push_back(Vec::new());
                if lines.len() > LINES {
                    lines.pop_front();
                }
            }
            if let Some(line) = lines
                .back_mut()
                .filter(|line| line.len() < LINE_MAX && byte != b'\n')
            {
                line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_without_control_characters() {
        let mut tail = Tail::default();
        assert_eq!(tail.text(), None);
        for number in 0..100 {
            write!(tail, "line {number}\x1b[2J\r\n").unwrap();
        }
        let text = tail.text().unwrap();
        assert!(text.ends_with("line 99[2J"), "{text:?}");
        assert_eq!(text.lines().count(), LINES - 1);
        tail.write_all(&vec![b'x'; 1 << 20]).unwrap();
        assert!(tail.text().unwrap().len() < LINES * (LINE_MAX + 1));
    }
}

//! The forms in which a trace is written: text, JSON lines, and the trace files of Chrome and Perfetto.

mod chrome;
mod lines;
mod text;

use std::io::{self, Write};
use std::path::Path;

use crate::event::{Event, Exit};
use crate::meaning::Meaning;

pub use chrome::Chrome;
pub use lines::{Forward, Lines, read};
pub use text::{Style, Text};

/// A form of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Lines for people.
    Text,
    /// A JSON object a line, an event each.
    Lines,
    /// Chrome's trace format, a JSON array, which Perfetto reads as well.
    Chrome,
}

impl Form {
    /// Returns the form that a file's name asks for: `.jsonl` or `.ndjson` for JSON lines, `.json` for Chrome's, else text.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl" | "ndjson") => Form::Lines,
            Some("json") => Form::Chrome,
            _ => Form::Text,
        }
    }

    /// Makes the writer of this form; `style` is for text.
    pub fn writer(self, out: Box<dyn Write + Send>, style: Style) -> Box<dyn Format> {
        match self {
            Form::Text => Box::new(Text::new(out, style)),
            Form::Lines => Box::new(Lines::new(out)),
            Form::Chrome => Box::new(Chrome::new(out)),
        }
    }
}

/// An exit with all that is known about it.
pub struct Explained<'a> {
    /// The exit.
    pub exit: &'a Exit,
    /// Its meaning.
    pub meaning: &'a Meaning,
    /// The function that the guest was in, and the offset in it.
    pub symbol: Option<(&'a str, u64)>,
}

impl Explained<'_> {
    /// Returns the symbol as `function+0x10`.
    fn place(&self) -> Option<String> {
        self.symbol
            .map(|(name, offset)| format!("{name}+{offset:#x}"))
    }
}

/// Writes a trace in one of its forms.
pub trait Format: Send {
    /// Writes an exit.
    ///
    /// # Errors
    ///
    /// The output's.
    fn exit(&mut self, seen: &Explained<'_>) -> io::Result<()>;

    /// Writes an event that is no exit.
    ///
    /// # Errors
    ///
    /// The output's.
    fn other(&mut self, event: &Event) -> io::Result<()>;

    /// Writes what was held back, as far as it is complete.
    ///
    /// # Errors
    ///
    /// The output's.
    fn idle(&mut self) -> io::Result<()>;

    /// Writes what was held back, and the end.
    ///
    /// # Errors
    ///
    /// The output's.
    fn end(&mut self) -> io::Result<()>;
}

//! A trace as JSON lines, an event each: with the meanings for programs, or bare, to be explained elsewhere.

use std::io::{self, BufRead, BufWriter, Write};

use serde::Serialize;

use super::{Explained, Format};
use crate::event::{Event, Exit};
use crate::tracer::Sink;

/// Writes each event with its meaning.
pub struct Lines {
    out: BufWriter<Box<dyn Write + Send>>,
}

/// An exit with its meaning; without it, it can be read as an [`Event`].
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    #[serde(flatten)]
    exit: &'a Exit,
    device: &'static str,
    meaning: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<String>,
}

impl Lines {
    /// Makes a writer of JSON lines to `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Lines {
            out: BufWriter::new(out),
        }
    }

    fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }
}

impl Format for Lines {
    fn exit(&mut self, seen: &Explained<'_>) -> io::Result<()> {
        self.write(&Line {
            event: "exit",
            exit: seen.exit,
            device: seen.meaning.device.id(),
            meaning: seen.meaning.to_string(),
            symbol: seen.place(),
        })
    }

    fn other(&mut self, event: &Event) -> io::Result<()> {
        self.write(event)
    }

    fn idle(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Sends bare events on as JSON lines, for [`read`] at the other end. Where the other end is gone, they are dropped.
pub struct Forward<W: Write> {
    out: BufWriter<W>,
    failed: bool,
}

impl<W: Write> Forward<W> {
    /// Makes a sink that sends to `out`.
    pub fn new(out: W) -> Self {
        Forward {
            out: BufWriter::with_capacity(32 << 10, out),
            failed: false,
        }
    }

    fn send(&mut self, event: &Event) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, event)?;
        self.out.write_all(b"\n")
    }
}

impl<W: Write + Send + 'static> Sink for Forward<W> {
    fn event(&mut self, event: Event) {
        self.failed = self.failed || self.send(&event).is_err();
    }

    fn idle(&mut self) {
        self.failed = self.failed || self.out.flush().is_err();
    }

    fn end(&mut self) {
        self.idle();
    }
}

/// The longest line that is read, in bytes: more than any event has, the counts of all vCPUs included.
const LINE_MAX: u64 = 4 << 20;

/// Reads events from JSON lines, and gives them to `sink`, until the end of the lines.
///
/// # Errors
///
/// Where the lines can't be read, or one is not an event.
pub fn read(lines: impl io::Read, sink: &mut impl Sink) -> io::Result<()> {
    let mut lines = io::BufReader::with_capacity(64 << 10, lines);
    let mut line = Vec::new();
    let ended = loop {
        line.clear();
        // What is cut here is not an event, which ends the reading.
        match io::Read::take(&mut lines, LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        match serde_json::from_slice(&line) {
            Ok(event) => sink.event(event),
            Err(error) => break Err(error.into()),
        }
        if lines.buffer().is_empty() {
            sink.idle();
        }
    };
    sink.end();
    ended
}

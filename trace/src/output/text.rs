//! A trace as text: a line an exit, or a line for several that say the same.

use std::io::{self, BufWriter, Write};

use anstyle::{AnsiColor, Style as Colour};

use super::{Explained, Format};
use crate::event::{Event, Kind};
use crate::fold::{Folder, Line};

/// How a text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether it has colours.
    pub colours: bool,
    /// Whether it goes to a terminal, whose raw mode needs carriage returns.
    pub terminal: bool,
}

/// Writes text.
pub struct Text {
    out: BufWriter<Box<dyn Write + Send>>,
    style: Style,
    folder: Folder,
}

impl Text {
    /// Makes a writer of text to `out`.
    pub fn new(out: Box<dyn Write + Send>, style: Style) -> Self {
        Text {
            out: BufWriter::new(out),
            style,
            folder: Folder::default(),
        }
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        let exit = &line.exit;
        let access = access(line);
        let words = self.coloured(colour(exit.kind), &line.words());
        let place = line.symbol.clone().unwrap_or(format!("{:#x}", exit.rip));
        let place = self.coloured(Colour::new().dimmed(), &place);
        let (time, vcpu) = (time(exit.at), exit.vcpu);
        self.write(&format!(
            "{time}  vcpu{vcpu}  {access:<34}  {words}  {place}"
        ))
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let end = if self.style.terminal { "\r\n" } else { "\n" };
        write!(self.out, "{line}{end}")
    }

    fn coloured(&self, colour: Colour, text: &str) -> String {
        match self.style.colours {
            true => format!("{colour}{text}{colour:#}"),
            false => text.into(),
        }
    }
}

/// Returns the access of a line: kind, port or address, and value.
fn access(line: &Line) -> String {
    let exit = &line.exit;
    if line.is_text() {
        let (kind, address) = line.transmission();
        return format!("{} {address:#x}", kind.name());
    }
    if !line.is_one_access() {
        return exit.kind.name().into();
    }
    let arrow = if exit.kind.is_read() { '→' } else { '←' };
    let digits = exit.data.bytes().iter().rev();
    let value: String = digits.map(|byte| format!("{byte:02x}")).collect();
    let more = match exit.data.size() as usize - exit.data.bytes().len() {
        0 => String::new(),
        more => format!(" and {more} bytes"),
    };
    format!(
        "{} {:#x} {arrow} 0x{value}{more}",
        exit.kind.name(),
        exit.address
    )
}

fn colour(kind: Kind) -> Colour {
    let colour = match kind {
        Kind::Out | Kind::MmioWrite | Kind::PmemWrite => AnsiColor::Green,
        Kind::In | Kind::MmioRead => AnsiColor::Cyan,
        Kind::Interrupted | Kind::NotRunnable => return Colour::new().dimmed(),
        _ => AnsiColor::Yellow,
    };
    Colour::new().fg_color(Some(colour.into()))
}

/// Returns a time in seconds, to the microsecond.
fn time(nanoseconds: u64) -> String {
    let micros = nanoseconds / 1000;
    format!("{:>5}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

impl Format for Text {
    fn exit(&mut self, seen: &Explained<'_>) -> io::Result<()> {
        let lines = self.folder.exit(seen.exit, seen.meaning, seen.place());
        lines.iter().flatten().try_for_each(|line| self.line(line))
    }

    fn other(&mut self, event: &Event) -> io::Result<()> {
        let words = match event {
            Event::Step { at, step } => {
                format!("{}  machine {}", time(*at), step_name(*step))
            }
            Event::Lost { count } => {
                format!("             {count} events lost: they came faster than they were written")
            }
            // The table has them.
            _ => return Ok(()),
        };
        if let Some(line) = self.folder.close() {
            self.line(&line)?;
        }
        let words = self.coloured(Colour::new().bold(), &words);
        self.write(&words)
    }

    fn idle(&mut self) -> io::Result<()> {
        if let Some(line) = self.folder.idle() {
            self.line(&line)?;
        }
        self.out.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        if let Some(line) = self.folder.close() {
            self.line(&line)?;
        }
        self.out.flush()
    }
}

/// Returns a step's name, as in JSON.
pub(super) fn step_name(step: minivm_vmm::Step) -> String {
    let name = serde_json::to_value(step).unwrap_or_default();
    name.as_str().unwrap_or_default().replace('-', " ")
}

//! The recorder: an observer that keeps a machine's steps and exits, and a reader of a console that keeps its lines.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use minivm_guest::channel::MARK;
use minivm_vmm::{Exit, ExitKind, Observer, Step};

use super::kernel;
use super::model::{Exits, Line, Nanos};
use crate::arch::{self, Device};

/// The most exits that are kept, of all kinds together. A boot has about a thousand, and one whose console is not quiet ten times as many.
const EXITS_MAX: usize = 1 << 17;
/// The most bytes of a console that are kept.
const CONSOLE_MAX: usize = 256 << 10;
/// The doorbells by which init marks its clock: one at the beginning, one at the end.
const MARKS: usize = 2;

/// What an exit is about, in timelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Access(Device),
    Signal,
    Other,
}

impl Kind {
    const ALL: [(Kind, &'static str); 8] = [
        (Kind::Access(Device::Console), "console (COM1)"),
        (Kind::Access(Device::Channel), "channel (COM2)"),
        (Kind::Access(Device::Bell), "bell (COM3)"),
        (
            Kind::Access(Device::InterruptController),
            "interrupt controller (IOAPIC)",
        ),
        (Kind::Access(Device::Power), "power and reset"),
        (Kind::Access(Device::Nothing), "no device"),
        (Kind::Signal, "a signal for the vCPU"),
        (Kind::Other, "other"),
    ];

    fn of(exit: ExitKind) -> Kind {
        match (arch::device(exit), exit) {
            (Some(device), _) => Kind::Access(device),
            (None, ExitKind::Interrupted | ExitKind::NotRunnable) => Kind::Signal,
            (None, _) => Kind::Other,
        }
    }
}

/// An observer whose times count from an origin.
pub(super) struct Recorder {
    origin: Instant,
    recorded: Mutex<Recorded>,
}

/// All that was recorded; times are nanoseconds since the origin.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    steps: Vec<(Step, u64)>,
    exits: Vec<(u64, Kind)>,
    pub(super) lost: u64,
    pub(super) marks: Vec<u64>,
}

impl Recorder {
    pub(super) fn new(origin: Instant) -> Self {
        Recorder {
            origin,
            recorded: Mutex::default(),
        }
    }

    pub(super) fn take(&self) -> Recorded {
        std::mem::take(&mut self.recorded())
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the nanoseconds from an origin to a time.
pub(super) fn since(origin: Instant, time: Instant) -> u64 {
    Nanos::of(time.saturating_duration_since(origin)).0
}

impl Observer for Recorder {
    fn on_exit(&self, exit: &Exit<'_>) {
        let came = since(self.origin, exit.came);
        let mut recorded = self.recorded();
        if arch::channel_byte(exit.kind, exit.data) == Some(MARK) {
            // The last ones: a kernel that looks for a UART may write any byte before.
            if recorded.marks.len() == MARKS {
                recorded.marks.remove(0);
            }
            recorded.marks.push(came);
        }
        match recorded.exits.len() < EXITS_MAX {
            true => recorded.exits.push((came, Kind::of(exit.kind))),
            false => recorded.lost += 1,
        }
    }

    fn on_step(&self, step: Step) {
        let now = since(self.origin, Instant::now());
        self.recorded().steps.push((step, now));
    }
}

impl Recorded {
    #[cfg(test)]
    pub(super) fn made_up(steps: Vec<(Step, u64)>, marks: Vec<u64>) -> Self {
        Recorded {
            steps,
            marks,
            ..Recorded::default()
        }
    }

    /// Returns when the machine came to a step, if it did.
    pub(super) fn at(&self, step: Step) -> Option<u64> {
        let mut steps = self.steps.iter();
        steps.find(|(made, _)| *made == step).map(|(_, time)| *time)
    }

    /// Returns the exits by kind; kinds without one are left out.
    pub(super) fn exits(&self) -> Vec<Exits> {
        let of_kind = |(kind, name): (Kind, &str)| {
            let of = self.exits.iter().filter(|(_, other)| *other == kind);
            let times: Vec<_> = of.map(|(time, _)| Nanos(*time)).collect();
            Exits {
                kind: name.to_owned(),
                count: times.len(),
                times,
            }
        };
        let all = Kind::ALL.into_iter().map(of_kind);
        all.filter(|exits| exits.count > 0).collect()
    }
}

/// A console whose lines are kept, with the times when their first bytes came. Clones share it.
#[derive(Clone)]
pub(super) struct Console {
    origin: Instant,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    lines: Vec<(u64, Vec<u8>)>,
    within_line: bool,
}

impl Console {
    pub(super) fn new(origin: Instant) -> Self {
        Console {
            origin,
            kept: Arc::default(),
        }
    }

    /// Returns the lines, without stamps.
    pub(super) fn lines(&self) -> Vec<Line> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |bytes: &[u8]| kernel::unstamped(&String::from_utf8_lossy(bytes));
        let lines = kept.lines.iter().map(|(time, bytes)| Line {
            time: Nanos(*time),
            text: text(bytes),
        });
        lines.filter(|line| !line.text.is_empty()).collect()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = since(self.origin, Instant::now());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            if kept.bytes == CONSOLE_MAX {
                break;
            }
            kept.bytes += 1;
            match byte {
                b'\n' => kept.within_line = false,
                _ if !kept.within_line => {
                    kept.within_line = true;
                    kept.lines.push((now, vec![byte]));
                }
                _ => kept
                    .lines
                    .last_mut()
                    .into_iter()
                    .for_each(|(_, line)| line.push(byte)),
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
    fn an_exit_that_is_no_access_is_a_signal_or_another() {
        for (exit, kind) in [
            (ExitKind::Interrupted, Kind::Signal),
            (ExitKind::NotRunnable, Kind::Signal),
            (ExitKind::Shutdown, Kind::Other),
        ] {
            assert_eq!(Kind::of(exit), kind, "{exit:?}");
        }
    }

    #[test]
    fn a_console_keeps_its_lines_and_no_more_than_it_may() {
        let mut console = Console::new(Instant::now());
        for piece in ["[    0.0", "00000] Linux", " version 6\r\n\n", "$ \x1b[2J"] {
            console.write_all(piece.as_bytes()).unwrap();
        }
        let texts = |console: &Console| {
            let lines = console.lines().into_iter();
            lines.map(|line| line.text).collect::<Vec<_>>()
        };
        assert_eq!(texts(&console), ["Linux version 6", "$ [2J"]);
        console.write_all(&vec![b'x'; 2 * CONSOLE_MAX]).unwrap();
        console.write_all(b"\nlast\n").unwrap();
        assert_eq!(texts(&console).len(), 2);
    }
}

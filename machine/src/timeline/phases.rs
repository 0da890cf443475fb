//! From what was recorded to phases: which event begins which, on whose clock.
//!
//! Phases follow each other, so the end of one is the start of the next, and they add up to the whole. A time that the guest gave is
//! moved into the span in which the monitor knows that it must lie.

use std::time::Instant;

use minivm_guest::channel::{KernelLog, Times};
use minivm_vmm::Step;

use super::align::Offset;
use super::kernel;
use super::model::{Clock, Line, Nanos, Phase};
use super::record::{Recorded, since};
use crate::Report;

/// The steps of making a machine: each with its name, and the steps of which the last one begins it. A boot's kernel is loaded while
/// another thread makes the machine in KVM.
const MAKING: [(Step, &str, &[Step]); 11] = {
    use Step::{
        Begun, BootDataWritten, Built, InitramfsLoaded, IrqchipSplit, KernelLoaded, MemoryLent,
        MemoryReserved, Opened, Prefaulted, StateSet, VcpusCreated, VmCreated,
    };
    [
        (MemoryReserved, "memory reserved", &[Begun, Opened]),
        (Opened, "/dev/kvm opened", &[Begun, MemoryReserved]),
        (VmCreated, "KVM_CREATE_VM", &[MemoryReserved, Opened]),
        (MemoryLent, "memory lent to KVM", &[VmCreated]),
        (IrqchipSplit, "interrupt controllers", &[MemoryLent]),
        (VcpusCreated, "vCPUs", &[IrqchipSplit]),
        (KernelLoaded, "kernel loaded", &[MemoryReserved]),
        (InitramfsLoaded, "initramfs loaded", &[KernelLoaded]),
        (BootDataWritten, "boot data", &[InitramfsLoaded]),
        (StateSet, "registers", &[VcpusCreated, BootDataWritten]),
        (Built, "devices", &[StateSet, Prefaulted]),
    ]
};
/// The step of a restore that has no place among those of a boot.
const PREFAULTED: (Step, &str, &[Step]) =
    (Step::Prefaulted, "working set present", &[Step::StateSet]);

/// The times of the measured process, beside those that were recorded; nanoseconds since its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// The origin of all times: just before the process was started.
    pub(super) origin: Instant,
    /// The first moment in its own code.
    pub(super) main: u64,
    /// The end of the measurement.
    pub(super) over: u64,
}

/// Phases, and how far they can be relied on.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) phases: Vec<Phase>,
    pub(super) guest: Option<Offset>,
    pub(super) log: Option<Offset>,
    pub(super) lines: Vec<Line>,
}

/// Phases that follow each other.
struct Row {
    phases: Vec<Phase>,
    /// The times between which the next phase may end.
    between: (u64, u64),
}

impl Row {
    /// Begins with the phases that every machine has, up to its first instruction.
    fn begin(process: Process, recorded: &Recorded) -> Row {
        let mut row = Row {
            phases: Vec::new(),
            between: (0, process.over),
        };
        row.until("process start", process.main, Clock::Monitor);
        let built = recorded.at(Step::Built).unwrap_or(process.main);
        let machine = row.until("machine", built, Clock::Monitor);
        machine.parts = making(process.main, recorded);
        let entered = recorded.at(Step::Entered).unwrap_or(built);
        row.until("first entry", entered, Clock::Monitor);
        row
    }

    /// Adds a phase that ends at this time, or at the nearest possible one.
    fn until(&mut self, name: &str, end: u64, clock: Clock) -> &mut Phase {
        let (start, last) = self.between;
        let end = end.clamp(start, last);
        self.between.0 = end;
        self.phases.push(Phase::new(name, start, end, clock));
        self.phases.last_mut().expect("it was just added")
    }

    /// Ends with the machine's end.
    fn end(mut self, process: Process, recorded: &Recorded) -> Vec<Phase> {
        self.between.1 = process.over;
        let end = self.until("end", process.over, Clock::Monitor);
        let ended = recorded.at(Step::Ended).filter(|at| *at > end.start.0);
        let parts = [
            ("power-off", ended),
            ("KVM and memory released", recorded.at(Step::Closed)),
        ];
        split(end, parts);
        self.phases
    }
}

/// Gives a phase parts that follow each other and end at these times, where those are known, or at the nearest possible ones.
fn split<const N: usize>(phase: &mut Phase, ends: [(&str, Option<u64>); N]) {
    let mut from = phase.start.0;
    for (name, end) in ends {
        if let Some(end) = end.map(|end| end.clamp(from, phase.end().0)) {
            phase.parts.push(Phase::new(name, from, end, phase.clock));
            from = end;
        }
    }
}

/// Returns the parts of making a machine.
fn making(main: u64, recorded: &Recorded) -> Vec<Phase> {
    let mut parts = Vec::new();
    if let Some(begun) = recorded.at(Step::Begun) {
        parts.push(Phase::new("preparation", main, begun, Clock::Monitor));
    }
    let (last, others) = MAKING.split_last().expect("it has entries");
    for (step, name, after) in others.iter().chain([&PREFAULTED, last]) {
        let Some(end) = recorded.at(*step) else {
            continue;
        };
        let before = after.iter().filter_map(|step| recorded.at(*step));
        let start = before.filter(|time| *time <= end).max().unwrap_or(end);
        parts.push(Phase::new(name, start, end, Clock::Monitor));
    }
    parts
}

/// The phases of a machine without minivm's init. Its console's lines mark the kernel's, if it prints them.
pub(super) fn of_raw(process: Process, recorded: &Recorded, lines: Vec<Line>) -> Assembled {
    let mut row = Row::begin(process, recorded);
    row.between.1 = recorded.at(Step::Ended).unwrap_or(process.over);
    let start = row.between.0;
    if let Some(first) = kernel::first_process(&lines) {
        let kernel = row.until("kernel", first, Clock::Console);
        let live = kernel::live(&lines);
        kernel.parts = kernel::parts(live, start, kernel.end().0, Clock::Console);
        row.until("programs", process.over, Clock::Monitor);
    } else {
        row.until("kernel and programs", process.over, Clock::Monitor);
    }
    Assembled {
        phases: row.end(process, recorded),
        guest: None,
        log: None,
        lines,
    }
}

/// The phases of a command in a machine with minivm's init. `warm` says whether it comes from a template.
pub(super) fn of_session(
    process: Process,
    recorded: &Recorded,
    report: &Report,
    warm: bool,
) -> Assembled {
    let mut row = Row::begin(process, recorded);
    let hello = since(process.origin, report.begun + report.boot);
    let started = hello.saturating_add(Nanos::of(report.setup).0);
    let over = started.saturating_add(Nanos::of(report.run).0);
    // By then the guest had sent all of its times.
    row.between.1 = over.clamp(row.between.0, process.over);
    let mut assembled = Assembled {
        phases: Vec::new(),
        guest: report
            .log
            .as_ref()
            .and_then(|log| guest_offset(log, recorded)),
        log: None,
        lines: Vec::new(),
    };
    match (&report.exit, &report.log, assembled.guest) {
        (Some(exit), Some(log), Some(guest)) => {
            if let Some((micros, moment)) = log.line {
                assembled.log = Offset::of_log(micros, moment).map(|log| log.and(guest));
            }
            if let Some(offset) = assembled.log {
                let init = guest.apply(exit.times.init);
                let boot = (row.between.0, init.saturating_add(guest.error()));
                assembled.lines = lines(log, offset, boot);
            }
            of_guest(&mut row, exit.times, log, guest, warm, &assembled.lines);
        }
        // What the monitor's side alone knows: when the guest's messages came.
        _ => {
            let booting = if warm { "init" } else { "kernel and init" };
            row.until(booting, hello, Clock::Monitor);
            row.until("preparation", started, Clock::Monitor);
            row.until("command", over, Clock::Monitor);
        }
    }
    assembled.phases = row.end(process, recorded);
    assembled
}

/// Adds the phases whose times the guest has sent.
fn of_guest(
    row: &mut Row,
    times: Times,
    log: &KernelLog,
    guest: Offset,
    warm: bool,
    lines: &[Line],
) {
    let start = row.between.0;
    let at = |time| Some(guest.apply(time));
    let end = |time| guest.apply(time);
    if !warm {
        let kernel = row.until("kernel", end(times.init), Clock::Guest);
        kernel.parts = kernel::parts(lines, start, kernel.end().0, Clock::Log);
    }
    let init = row.until("init", end(times.exec), Clock::Guest);
    split(
        init,
        [
            ("mounts and hello", at(times.hello).filter(|_| !warm)),
            ("wait for the request", at(times.request)),
            ("preparation", at(times.exec)),
        ],
    );
    row.until("command", end(times.exit), Clock::Guest);
    row.until("log for this timeline", end(log.gathered), Clock::Guest);
}

/// Returns the difference between the monitor's clock and the guest's, from the marks that both know.
fn guest_offset(log: &KernelLog, recorded: &Recorded) -> Option<Offset> {
    let marks = log.marks?;
    let seen: Vec<_> = recorded.marks.iter().copied().zip(marks).collect();
    (recorded.marks.len() == marks.len()).then(|| Offset::of(&seen))?
}

/// Returns the kernel's lines on the timeline, those within its boot.
fn lines(log: &KernelLog, offset: Offset, (start, end): (u64, u64)) -> Vec<Line> {
    let records = kernel::records(&log.records).into_iter();
    let lines = records.map(|(time, text)| Line {
        time: Nanos(offset.apply(time).max(start)),
        text,
    });
    lines.filter(|line| line.time.0 <= end).collect()
}

#[cfg(test)]
mod tests;

//! What an observer sees of guests of a few bytes: every exit with its data, every step, and KVM's counts.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::sync::{Arc, Mutex};

use minivm_tests::code::{RESET, map, show};
use minivm_tests::snapshot::save_in;
use minivm_vmm::{
    Builder, Config, Exit, Kernel, Observer, Outcome, Reset, Result, SaveFiles, Snapshot,
    Statistics, Step, layout,
};

/// Keeps all that it sees.
#[derive(Default)]
struct Log {
    exits: Mutex<Vec<(String, u64)>>,
    steps: Mutex<Vec<Step>>,
    statistics: Mutex<Vec<Option<u8>>>,
}

impl Observer for Log {
    fn on_exit(&self, exit: &Exit<'_>) {
        let kind = format!("{} {:x?} {:x?}", exit.vcpu, exit.kind, exit.data);
        let seen = (kind, exit.rip);
        self.exits.lock().unwrap().push(seen);
    }

    fn on_step(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }

    fn on_statistics(&self, files: &Result<Vec<Statistics>>) {
        for file in files.iter().flatten() {
            file.read_exact_at(&mut [0; 24], 0).unwrap();
            self.statistics.lock().unwrap().push(file.vcpu());
        }
    }
}

impl Log {
    /// The exits of the guest's, without the returns of `KVM_RUN` that a signal makes, which depend on the host.
    fn exits(&self) -> Vec<String> {
        let exits = self.exits.lock().unwrap();
        let kinds = exits.iter().map(|(kind, _)| kind.clone());
        kinds
            .filter(|kind| !kind.contains("Interrupted") && !kind.contains("NotRunnable"))
            .collect()
    }
}

fn builder(code: &[&[u8]]) -> Builder {
    Builder::new(Config::new(Kernel::Code(code.concat())))
}

/// Runs `builder`'s machine to its end; returns what was seen and the outcome.
fn run(builder: Builder) -> (Arc<Log>, Result<Outcome>) {
    let log = Arc::new(Log::default());
    let ended = builder.observer(log.clone()).build().unwrap().run();
    (log, ended)
}

#[test]
fn every_exit_is_seen_in_its_order_with_its_data() {
    let code: &[&[u8]] = &[
        &show(b'!'),
        &[0x66, 0xba, 0x34, 0x12, 0xec], //       mov dx, 0x1234; in al, dx: nothing is there
        &[0x66, 0xed],                   //       in ax, dx
        &map(layout::IOAPIC.0),
        &[0xbe, 0x00, 0x00, 0xc0, 0xfe], //       mov esi, IOAPIC
        &[0xc7, 0x06, 0x01, 0x00, 0x00, 0x00], // mov dword [rsi], 1: select the version register
        &[0x8b, 0x46, 0x10],             //       mov eax, [rsi + 0x10]
        &RESET,
    ];
    let (log, ended) = run(builder(code));
    assert_eq!(ended.unwrap(), Outcome::Reboot(Reset::Line));
    assert_eq!(
        log.exits(),
        [
            "0 IoOut(3f8) [21]",
            "0 IoIn(1234) [ff]",
            "0 IoIn(1234) [ff, ff]",
            "0 MmioWrite(fec00000) [1, 0, 0, 0]",
            "0 MmioRead(fec00010) [11, 0, 7, 0]",
            "0 IoOut(64) [fe]",
        ]
    );
}

#[test]
fn an_exit_has_the_instruction_pointer_of_its_instruction_or_of_the_next() {
    let code = [show(b'a'), show(b'b')].concat();
    let (log, _) = run(builder(&[&code, &RESET]));
    let exits = log.exits.lock().unwrap();
    let rips = exits.iter().filter(|(kind, _)| kind.contains("IoOut"));
    let start = layout::HIGH_RAM.0;
    // The first `out` is the last of seven bytes, the second one of fourteen, and the one of the reset the last two of eighteen.
    let places = [
        start + 6..=start + 7,
        start + 13..=start + 14,
        start + 16..=start + 18,
    ];
    for ((kind, rip), place) in rips.zip(places) {
        assert!(
            place.contains(rip),
            "{kind} at {rip:#x}, not in {place:#x?}"
        );
    }
}

#[test]
fn an_exit_that_ends_the_machine_is_seen_too() {
    let ends: [(&[u8], &str); 2] = [
        (&[0x0f, 0x0b], "0 Shutdown"), // ud2, and no handler
        // jmp to where no RAM is, mapped: mov eax, 0xd0000000; jmp rax
        (&[0xb8, 0x00, 0x00, 0x00, 0xd0, 0xff, 0xe0], "0 Other"),
    ];
    for (code, last) in ends {
        let (log, _) = run(builder(&[&map(0xd000_0000), code, &RESET]));
        let exits = log.exits();
        assert!(exits.last().unwrap().starts_with(last), "{exits:?}");
    }
}

#[test]
fn a_boots_steps_are_seen_each_once() {
    let (log, _) = run(builder(&[&RESET]));
    let mut steps = log.steps.lock().unwrap().clone();
    // Two threads make a boot: what each has done is in its order.
    let order = |step: Step| steps.iter().position(|&seen| seen == step).unwrap();
    assert!(order(Step::KernelLoaded) < order(Step::BootDataWritten));
    assert!(order(Step::BootDataWritten) < order(Step::StateSet));
    steps.sort_unstable();
    assert_eq!(
        *steps,
        [
            Step::Begun,
            Step::MemoryReserved,
            Step::Opened,
            Step::VmCreated,
            Step::MemoryLent,
            Step::IrqchipSplit,
            Step::VcpusCreated,
            Step::KernelLoaded,
            Step::InitramfsLoaded,
            Step::BootDataWritten,
            Step::StateSet,
            Step::Built,
            Step::Entered,
            Step::Ended,
            Step::Closed,
        ]
    );
}

#[test]
fn a_restored_machines_steps_and_exits_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let saved = builder(&[&show(b'r'), &RESET]).build().unwrap();
    let files = save_in(folder.path(), |state, memory, name| {
        saved.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    });
    files.unwrap();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let made_now = [
        Step::Begun,
        Step::Opened,
        Step::MemoryReserved,
        Step::VmCreated,
        Step::MemoryLent,
        Step::IrqchipSplit,
        Step::VcpusCreated,
        Step::StateSet,
        Step::Built,
        Step::Entered,
        Step::Ended,
        Step::Closed,
    ];
    let made_before = [&made_now[..1], &made_now[7..]].concat();
    let prepared = snapshot.prepare().unwrap();
    for (builder, steps) in [
        (Builder::restore(&snapshot), &made_now[..]),
        (Builder::restore_prepared(prepared), &made_before),
    ] {
        let (log, ended) = run(builder);
        assert_eq!(ended.unwrap(), Outcome::Reboot(Reset::Line));
        assert_eq!(*log.steps.lock().unwrap(), steps);
        let exits = log.exits();
        assert_eq!(exits[0], "0 IoOut(3f8) [72]", "{exits:?}");
    }
}

#[test]
fn the_machine_and_each_vcpu_have_a_file_of_counts() {
    let (log, _) = run(builder(&[&show(b'1'), &RESET]));
    let statistics = log.statistics.lock().unwrap();
    if statistics.is_empty() {
        // Linux before 5.14 counts for its debug file system alone.
        eprintln!("skipped: this KVM gives no counts");
        return;
    }
    assert_eq!(*statistics, [None, Some(0)]);
}

//! Machines that are saved and continue elsewhere.

use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};

use minivm_tests::output::tap;
use minivm_tests::patience::wait_until;
use minivm_tests::snapshot::save_in;
use minivm_vmm::{Builder, Config, Control, Memory, Outcome, Result, SaveFiles, Snapshot, layout};
use tempfile::TempDir;

use crate::asm::{
    CPU_OFF, CPU_ON, LOOP, SYSTEM_OFF, System, WFI, add, b, cbz, eor, ldr, ldrb, mov, mrs, msr,
    psci, say, show, store, str, strb,
};
use crate::{DEADLINE, Running, config};

/// A word in memory that the host sets when the guest is to go on, and one that the guest counts in.
const FLAG: u64 = layout::KERNEL.0 + 0x1_0000;
const COUNT: u64 = layout::KERNEL.0 + 0x2_0000;

/// A machine that was made of a snapshot.
struct Clone {
    control: Control,
    memory: Memory,
    output: Receiver<u8>,
    thread: JoinHandle<Result<Outcome>>,
}

impl Clone {
    fn of(folder: &TempDir) -> Self {
        let (tap, output) = tap();
        let snapshot = Snapshot::open(folder.path()).unwrap();
        let builder = Builder::restore(&snapshot).console_output(tap);
        let machine = builder.build().unwrap();
        Clone {
            control: machine.control(),
            memory: machine.memory(),
            output,
            thread: thread::spawn(move || machine.run()),
        }
    }

    /// Lets the guest end; returns the outcome and the last byte that it has said.
    fn end(self) -> (Outcome, Option<u8>) {
        self.memory.store(FLAG, 1).unwrap();
        let mut last = None;
        while let Ok(byte) = self.output.recv_timeout(DEADLINE) {
            last = Some(byte);
        }
        (self.thread.join().unwrap().unwrap(), last)
    }
}

/// Runs a machine until it has said something, and saves it; returns the snapshot and all that it has said.
fn saved(config: Config) -> (TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(config);
    let mut said = vec![running.next()];
    said.push(running.next());
    running.control.pause();
    let control = &running.control;
    let saved = save_in(folder.path(), |state, memory, name| {
        control.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    });
    saved.unwrap();
    said.extend(running.output.try_iter());
    running.control.stop();
    running.thread.join().unwrap().unwrap();
    (folder, said)
}

/// Says `n` and switches the power off unless a register is zero.
fn must_be_zero(register: u32) -> Vec<u32> {
    let fail = [say(b'n'), psci(SYSTEM_OFF)].concat();
    let skip = i32::try_from(fail.len()).unwrap() + 1;
    [&[cbz(register, skip)], &fail[..]].concat()
}

/// Says `.` until the flag is set.
fn until_flag() -> Vec<u32> {
    let body = [say(b'.'), mov(7, FLAG), vec![ldr(8, 7)]].concat();
    let back = -i32::try_from(body.len()).unwrap();
    [&body[..], &[cbz(8, back)]].concat()
}

#[test]
fn clones_count_on_from_where_the_machine_was_saved() {
    // The number goes through a device's register, where a snapshot may come between an access and its completion.
    let code = [
        mov(1, layout::COM1.0 + 7),
        mov(2, 0),
        mov(9, layout::COM1.0),
        vec![strb(2, 1), ldrb(3, 1), strb(3, 9), add(2, 1), b(-4)],
    ];
    let (folder, said) = saved(config(&code.concat()));
    for clone in [Clone::of(&folder), Clone::of(&folder)] {
        for number in said.len()..said.len() + 100 {
            let byte = clone.output.recv_timeout(DEADLINE).unwrap();
            assert_eq!(usize::from(byte), number % 256);
        }
        clone.control.stop();
        assert_eq!(clone.thread.join().unwrap().unwrap(), Outcome::Stopped);
    }
}

/// System registers of a processor's interface to the GIC.
const SRE: System = (0, 12, 12, 5);
const PRIORITY_MASK: System = (0, 4, 6, 0);
const GROUP_ENABLE: System = (0, 12, 12, 7);
const ACKNOWLEDGE: System = (0, 12, 12, 0);
const ISB: u32 = 0xd503_3fdf;

/// Takes an interrupt, and says `n` and switches the power off unless it is the expected one.
fn must_get(interrupt: u64) -> Vec<u32> {
    [
        mov(4, 0xff),
        vec![msr(PRIORITY_MASK, 4), ISB, WFI, mrs(5, ACKNOWLEDGE)],
        mov(4, interrupt),
        vec![eor(5, 4)],
        must_be_zero(5),
    ]
    .concat()
}

#[test]
fn registers_the_counter_and_a_pending_timer_go_on() {
    const CPACR: System = (0, 1, 0, 2);
    const TPIDR: System = (0, 13, 0, 4);
    const COUNTER: System = (3, 14, 0, 2);
    const TIMER_CONTROL: System = (3, 14, 3, 1);
    const TIMER_VALUE: System = (3, 14, 3, 2);
    const TIMER: u32 = 27;
    const PATTERN: u64 = 0x1122_3344_5566_7788;
    let redistributor = layout::GIC_REDISTRIBUTORS.0;
    let prepare = [
        mov(19, PATTERN),
        mov(4, 3 << 20),
        vec![msr(CPACR, 4), ISB, 0x9e67_0268, msr(TPIDR, 19)], // fmov d8, x19
        // The GIC delivers nothing yet: the priority mask is zero.
        store(layout::GIC_DISTRIBUTOR.0, 0x12),
        store(redistributor + 0x14, 0),
        store(redistributor + 0x1_0080, u32::MAX),
        store(redistributor + 0x1_0100, 1 << TIMER),
        mov(4, 7),
        vec![msr(SRE, 4), ISB, msr(GROUP_ENABLE, 4)],
        // The timer fires at once, and its interrupt pends.
        mov(4, 1),
        vec![
            mrs(6, COUNTER),
            msr(TIMER_VALUE, 6),
            msr(TIMER_CONTROL, 4),
            ISB,
        ],
    ]
    .concat();
    let check = [
        mov(5, PATTERN),
        vec![eor(5, 19)],
        must_be_zero(5),
        vec![0x9e66_0105, eor(5, 19)], // fmov x5, d8
        must_be_zero(5),
        vec![mrs(5, TPIDR), eor(5, 19)],
        must_be_zero(5),
        // The counter isn't below what it was.
        vec![mrs(5, COUNTER), 0xcb06_00a5, 0xd37f_fca5], // sub x5, x5, x6; lsr x5, x5, #63
        must_be_zero(5),
        must_get(TIMER.into()),
    ]
    .concat();
    let code = [prepare, until_flag(), check, say(b'y'), psci(SYSTEM_OFF)].concat();
    let (folder, _) = saved(config(&code));
    for clone in [Clone::of(&folder), Clone::of(&folder)] {
        assert_eq!(clone.end(), (Outcome::PowerOff, Some(b'y')));
    }
}

#[test]
fn a_pending_interrupt_goes_to_the_processor_that_it_was_for() {
    // vCPU 0, to which an interrupt goes that has no route, is off.
    const COM1_INTERRUPT: u64 = 32 + layout::UARTS[0].1 as u64;
    let distributor = layout::GIC_DISTRIBUTOR.0;
    let first = |entry: u64| [mov(1, 1), mov(2, entry), psci(CPU_ON), psci(CPU_OFF)].concat();
    let second = [
        store(distributor, 0x12),
        store(distributor + 0x6000 + 8 * COM1_INTERRUPT, 1),
        // In group 1, an edge, enabled, pending; the priority mask keeps it from being delivered yet.
        store(distributor + 0x84, 1),
        store(distributor + 0xc08, 2),
        store(distributor + 0x104, 1),
        store(distributor + 0x204, 1),
        mov(4, 7),
        vec![msr(SRE, 4), ISB, msr(GROUP_ENABLE, 4)],
        until_flag(),
        must_get(COM1_INTERRUPT),
        say(b'y'),
        psci(SYSTEM_OFF),
    ];
    let at = |words: usize| layout::KERNEL.0 + 4 * words as u64;
    let length = first(at(1)).len();
    let (folder, _) = saved(Config {
        cpus: 2,
        ..config(&[first(at(length)), second.concat()].concat())
    });
    assert_eq!(Clone::of(&folder).end(), (Outcome::PowerOff, Some(b'y')));
}

#[test]
fn each_processor_goes_on_or_stays_off() {
    // vCPU 1 counts in memory; vCPU 2 is off until the flag is set, and then ends the machine.
    let on = |cpu: u64, entry: u64| [mov(1, cpu), mov(2, entry), psci(CPU_ON)].concat();
    let first =
        |counts: u64, ends: u64| [on(1, counts), until_flag(), on(2, ends), vec![LOOP]].concat();
    let counts = [mov(1, COUNT), vec![ldr(2, 1), add(2, 1), str(2, 1), b(-3)]].concat();
    let ends = [mov(3, b'z'.into()), show(3), psci(SYSTEM_OFF)].concat();
    let at = |words: usize| layout::KERNEL.0 + 4 * words as u64;
    let length = first(at(1), at(1)).len();
    let code = [
        first(at(length), at(length + counts.len())),
        counts.clone(),
        ends,
    ];
    let (folder, _) = saved(Config {
        cpus: 3,
        ..config(&code.concat())
    });
    let clone = Clone::of(&folder);
    let start = clone.memory.load(COUNT).unwrap();
    wait_until("vCPU 1 counts on", || {
        clone.memory.load(COUNT).unwrap() != start
    });
    assert_eq!(clone.end(), (Outcome::PowerOff, Some(b'z')));
}

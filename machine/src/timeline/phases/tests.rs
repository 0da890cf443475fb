use std::time::Duration;

use minivm_guest::channel::{Exit, Moment, Status};
use proptest::prelude::*;

use super::*;
use crate::End;

/// A boot as it goes: KVM's side and the loading side by side.
const STEPS: [(Step, u64); 14] = [
    (Step::Begun, 110),
    (Step::MemoryReserved, 120),
    (Step::Opened, 130),
    (Step::KernelLoaded, 135),
    (Step::VmCreated, 140),
    (Step::MemoryLent, 150),
    (Step::InitramfsLoaded, 155),
    (Step::IrqchipSplit, 160),
    (Step::BootDataWritten, 165),
    (Step::VcpusCreated, 170),
    (Step::StateSet, 180),
    (Step::Built, 190),
    (Step::Entered, 200),
    (Step::Ended, 1900),
];

fn process() -> Process {
    Process {
        origin: Instant::now(),
        main: 100,
        over: 2000,
    }
}

/// Times of a guest whose clock is 300 behind the monitor's.
fn times() -> Times {
    Times {
        init: 400,
        hello: 500,
        request: 600,
        exec: 700,
        exit: 1200,
    }
}

fn report(process: Process, times: Times, log: Option<KernelLog>) -> Report {
    let nanos = Duration::from_nanos;
    Report {
        end: End::Exited(0),
        exit: Some(Exit {
            status: Status::Code(0),
            out_of_memory: false,
            user_time: 0,
            system_time: 0,
            peak_memory: 0,
            times,
        }),
        truncated: false,
        warnings: Vec::new(),
        copy_failed: false,
        log,
        walls: None,
        host_memory: None,
        begun: process.origin + nanos(195),
        boot: nanos(655),
        setup: nanos(200),
        run: nanos(700),
    }
}

fn log() -> KernelLog {
    let moment = |time: u64| Moment {
        before: time - 5,
        after: time + 5,
    };
    KernelLog {
        marks: Some([moment(610), moment(1210)]),
        line: None,
        records: Vec::new(),
        gathered: 1300,
    }
}

fn recorded() -> Recorded {
    Recorded::made_up(STEPS.to_vec(), vec![910, 1510])
}

fn shown(phases: &[Phase]) -> Vec<(&str, u64, u64)> {
    let show = |phase: &Phase| (phase.start.0, phase.end().0);
    let all = phases.iter();
    all.map(|phase| (&*phase.name, show(phase).0, show(phase).1))
        .collect()
}

/// Checks that phases follow each other from the beginning to the end, and that parts lie within theirs.
fn check(phases: &[Phase], over: u64) {
    let mut at = 0;
    for phase in phases {
        assert_eq!(phase.start.0, at, "{phases:#?}");
        at = phase.end().0;
        for part in &phase.parts {
            let within = phase.start <= part.start && part.end() <= phase.end();
            assert!(within || phase.name == "machine", "{phase:#?}");
        }
    }
    assert_eq!(at, over, "{phases:#?}");
    let sum: u64 = phases.iter().map(|phase| phase.duration.0).sum();
    assert_eq!(sum, over);
}

#[test]
fn a_cold_run_has_all_phases_in_order() {
    let process = process();
    let assembled = of_session(
        process,
        &recorded(),
        &report(process, times(), Some(log())),
        false,
    );
    check(&assembled.phases, 2000);
    assert_eq!(
        shown(&assembled.phases),
        [
            ("process start", 0, 100),
            ("machine", 100, 190),
            ("first entry", 190, 200),
            ("kernel", 200, 700),
            ("init", 700, 1000),
            ("command", 1000, 1500),
            ("log for this timeline", 1500, 1600),
            ("end", 1600, 2000),
        ]
    );
    assert_eq!(
        shown(&assembled.phases[1].parts),
        [
            ("preparation", 100, 110),
            ("memory reserved", 110, 120),
            ("/dev/kvm opened", 120, 130),
            ("KVM_CREATE_VM", 130, 140),
            ("memory lent to KVM", 140, 150),
            ("interrupt controllers", 150, 160),
            ("vCPUs", 160, 170),
            ("kernel loaded", 120, 135),
            ("initramfs loaded", 135, 155),
            ("boot data", 155, 165),
            ("registers", 170, 180),
            ("devices", 180, 190),
        ]
    );
    assert_eq!(
        shown(&assembled.phases[4].parts),
        [
            ("mounts and hello", 700, 800),
            ("wait for the request", 800, 900),
            ("preparation", 900, 1000),
        ]
    );
    assert_eq!(
        shown(&assembled.phases[7].parts),
        [("power-off", 1600, 1900)]
    );
    assert_eq!(assembled.guest.map(Offset::error), Some(5));
}

#[test]
fn the_kernels_log_gives_the_kernel_its_parts() {
    let process = process();
    let mut times = times();
    // In microseconds, as the log has them: the guest is up for 400 µs when init starts.
    for time in [
        &mut times.init,
        &mut times.hello,
        &mut times.request,
        &mut times.exec,
        &mut times.exit,
    ] {
        *time *= 1000;
    }
    let moment = |time: u64| Moment {
        before: time,
        after: time,
    };
    let log = KernelLog {
        marks: Some([moment(610_000), moment(1_210_000)]),
        // The log's clock is 100 µs behind init's.
        line: Some((1_100, moment(1_200_999))),
        records: b"6,1,0,-;Linux version 6.1\n6,2,50,-;Kernel command line: x\n\
            6,3,100,-;Unpacking initramfs...\n6,4,200,-;Freeing initrd memory: 1K\n\
            12,4,210,-;devtmpfs: initialized\n6,5,900,-;devtmpfs: initialized\n"
            .to_vec(),
        gathered: 1_300_000,
    };
    let steps = STEPS.map(|(step, time)| (step, time * 1000)).to_vec();
    let recorded = Recorded::made_up(steps, vec![910_000, 1_510_000]);
    let process = Process {
        main: 100_000,
        over: 2_000_000,
        ..process
    };
    let mut report = report(process, times, Some(log));
    for time in [&mut report.boot, &mut report.setup, &mut report.run] {
        *time *= 1000;
    }
    let assembled = of_session(process, &recorded, &report, false);
    check(&assembled.phases, 2_000_000);
    let error = assembled.log.unwrap().error();
    assert_eq!(error, 500, "half of the log's microsecond");
    let near = |(name, from, to): (&'static str, u64, u64)| (name, from / 1000, to / 1000);
    let kernel: Vec<_> = shown(&assembled.phases[3].parts);
    let kernel: Vec<_> = kernel
        .into_iter()
        .map(|(name, from, to)| (name.to_owned(), from / 1000, to / 1000))
        .collect();
    let expected = [
        ("before its first message", 200_000, 400_499),
        ("architecture", 400_499, 450_499),
        ("memory, scheduler, interrupts", 450_499, 700_000),
        ("unpacking", 500_499, 600_499),
    ];
    let expected: Vec<_> = expected
        .map(near)
        .map(|(name, from, to)| (name.to_owned(), from, to))
        .to_vec();
    assert_eq!(kernel, expected);
    assert_eq!(assembled.lines.len(), 4, "{:?}", assembled.lines);
}

#[test]
fn a_guest_without_marks_has_the_phases_that_the_monitor_sees() {
    let process = process();
    let seen = |log, recorded: &Recorded| {
        let report = report(process, times(), log);
        let assembled = of_session(process, recorded, &report, false);
        check(&assembled.phases, 2000);
        assert!(assembled.guest.is_none() && assembled.log.is_none());
        let shown: Vec<_> = shown(&assembled.phases)[3..].to_vec();
        assert_eq!(
            shown,
            [
                ("kernel and init", 200, 850),
                ("preparation", 850, 1050),
                ("command", 1050, 1750),
                ("end", 1750, 2000),
            ]
        );
    };
    seen(None, &recorded());
    let unmarked = KernelLog {
        marks: None,
        ..log()
    };
    seen(Some(unmarked), &recorded());
    // One mark only came.
    seen(Some(log()), &Recorded::made_up(STEPS.to_vec(), vec![910]));
}

#[test]
fn a_resumed_machine_has_no_kernel_phase() {
    let process = process();
    let times = Times {
        init: 600,
        hello: 600,
        ..times()
    };
    let report = report(process, times, Some(log()));
    let assembled = of_session(process, &recorded(), &report, true);
    check(&assembled.phases, 2000);
    assert_eq!(
        shown(&assembled.phases)[3..5],
        [("init", 200, 1000), ("command", 1000, 1500)]
    );
    assert_eq!(
        shown(&assembled.phases[3].parts),
        [
            ("wait for the request", 200, 900),
            ("preparation", 900, 1000)
        ]
    );
}

#[test]
fn a_raw_machines_console_ends_its_kernel() {
    let line = |time, text: &str| Line {
        time: Nanos(time),
        text: text.to_owned(),
    };
    let lines = vec![
        line(300, "printk: console [ttyS0] enabled"),
        line(400, "devtmpfs: initialized"),
        line(600, "Run /init as init process"),
    ];
    let assembled = of_raw(process(), &recorded(), lines);
    check(&assembled.phases, 2000);
    assert_eq!(
        shown(&assembled.phases)[3..],
        [
            ("kernel", 200, 600),
            ("programs", 600, 1900),
            ("end", 1900, 2000)
        ]
    );
    assert_eq!(
        shown(&assembled.phases[3].parts),
        [("before its console", 200, 400), ("drivers", 400, 600)]
    );
    let assembled = of_raw(process(), &recorded(), Vec::new());
    check(&assembled.phases, 2000);
    assert_eq!(
        shown(&assembled.phases)[3..],
        [("kernel and programs", 200, 1900), ("end", 1900, 2000)]
    );
}

prop_compose! {
    /// A time that may be like those of this test's machine, or anything.
    fn time()(near in 0u64..3000, any: u64, which: bool) -> u64 {
        if which { near } else { any }
    }
}

prop_compose! {
    fn moments()(a in time(), b in time(), c in time(), d in time()) -> [Moment; 2] {
        [Moment { before: a, after: b }, Moment { before: c, after: d }]
    }
}

proptest! {
    #[test]
    fn whatever_a_guest_sends_the_phases_add_up(
        (init, hello, request, exec, exit) in (time(), time(), time(), time(), time()),
        marks in prop::option::of(moments()),
        line in prop::option::of((time(), moments())),
        records in prop::collection::vec((time(), "(Linux version |Freeing unused kernel|Unpacking initramfs|Freeing initrd memory|x)"), 0..8),
        gathered in time(),
        seen in prop::collection::vec(0u64..3000, 0..3),
        warm: bool,
    ) {
        let process = process();
        let records: Vec<_> = records.into_iter().map(|(time, text)| format!("6,1,{time},-;{text}\n")).collect();
        let log = KernelLog {
            marks,
            line: line.map(|(time, [moment, _])| (time, moment)),
            records: records.concat().into_bytes(),
            gathered,
        };
        let times = Times { init, hello, request, exec, exit };
        let recorded = Recorded::made_up(STEPS.to_vec(), seen);
        let assembled = of_session(process, &recorded, &report(process, times, Some(log)), warm);
        check(&assembled.phases, process.over);
    }
}

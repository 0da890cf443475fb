//! The time that a kill takes: from a signal to minivm to the end of its processes, and from `Control::stop` to the machine's end.
//!
//! ```console
//! $ cargo bench -p minivm --bench kill -- 100
//! ```
//!
//! Its guests do what keeps a machine from ending: they spin and halt with interrupts off, on one vCPU and on eight, and flood a console
//! whose reader takes nothing. `cargo xtask bench kill` runs this too.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't continue fails")]

use std::fs;
use std::io::{self, PipeReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivm_machine::jail::CpuGroup;
use minivm_tests::code::{LOOP, map, place, show};
use minivm_tests::kernel_file::Elf;
use minivm_tests::processes;
use minivm_vmm::{Builder, Config, Kernel, layout};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Kills of each kind, unless the command line says otherwise.
const RUNS: usize = 100;
/// The time that 99 of 100 kills are to take at most, on an idle host.
const GOAL: Duration = Duration::from_millis(50);
/// How long a guest runs on after its first byte: less than a machine of halted vCPUs takes to end by itself.
const RUN: Duration = Duration::from_millis(20);
const MEMORY: u64 = 64 << 20;

struct Guest {
    name: &'static str,
    code: Vec<u8>,
    cpus: u8,
    /// A bound on its processor time.
    quota: Option<&'static str>,
}

fn guests() -> Vec<Guest> {
    let guest = |name, code: &[&[u8]]| Guest {
        name,
        code: code.concat(),
        cpus: 1,
        quota: None,
    };
    let cli = [0xfa];
    let again = [0xee, 0xeb, 0xfd]; // out dx, al; jmp
    // The local APIC's command register, to all other processors: INIT, and the start at 0x30000.
    let wake = [
        0xbe, 0x00, 0x00, 0xe0, 0xfe, // mov esi, the local APIC
        0xc7, 0x86, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x0c,
        0x00, // mov dword [rsi + 0x300], …
        0xc7, 0x86, 0x00, 0x03, 0x00, 0x00, 0x30, 0x46, 0x0c, 0x00,
    ];
    let spin = [0xfa, 0xeb, 0xfe, 0x90]; // cli; jmp $
    let apic = map(layout::LOCAL_APIC.0);
    let spins = [&cli[..], &show(b'.'), &LOOP];
    let mut guests = vec![
        guest("spins, interrupts off", &spins),
        guest(
            "halts, interrupts off",
            &[&cli, &show(b'.'), &[0xf4], &LOOP],
        ),
        guest("floods a blocked console", &[&show(b'.'), &again]),
        Guest {
            cpus: 8,
            ..guest(
                "spins on 8 vCPUs",
                &[
                    &apic,
                    &place(0x3_0000, &spin),
                    &wake,
                    &show(b'.'),
                    &cli,
                    &LOOP,
                ],
            )
        },
    ];
    match CpuGroup::create("0.1".parse().unwrap()) {
        Ok(_) => guests.push(Guest {
            quota: Some("0.1"),
            ..guest("spins, --cpu-quota 0.1", &spins)
        }),
        Err(error) => println!("left out, a bounded guest: {error}"),
    }
    guests
}

/// Waits for the guest's first byte, and a moment longer.
fn until_it_runs(output: &mut PipeReader) {
    output.read_exact(&mut [0]).unwrap();
    thread::sleep(RUN);
}

/// Kills minivm by a signal; returns the time until it and its monitor have ended.
fn signalled(guest: &Guest, kernel: &Path, signal: Signal) -> Duration {
    let (mut output, stdout) = io::pipe().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
    command.args(["--accel", "kvm", "--memory", "64M", "--cpus"]);
    command.arg(guest.cpus.to_string());
    if let Some(quota) = guest.quota {
        command.args(["--cpu-quota", quota]);
    }
    command.arg("--kernel").arg(kernel);
    command.stdin(Stdio::null()).stdout(stdout);
    let mut minivm = command.spawn().unwrap();
    drop(command);
    until_it_runs(&mut output);
    let below = processes::below(minivm.id());
    let all = below.iter().map(|one| one.id).chain([minivm.id()]);
    let all = all.map(|id| Pid::from_raw(i32::try_from(id).unwrap()).unwrap());
    let ends: Vec<_> = all
        .map(|id| pidfd_open(id, PidfdFlags::empty()).unwrap())
        .collect();
    assert_eq!(ends.len(), 2, "minivm and its monitor: {below:?}");
    let start = Instant::now();
    kill_process(Pid::from_child(&minivm), signal).unwrap();
    for end in &ends {
        poll(&mut [PollFd::new(end, PollFlags::IN)], None).unwrap();
    }
    let took = start.elapsed();
    minivm.wait().unwrap();
    took
}

/// Stops a machine of this process's; returns the time until it has ended.
fn stopped(guest: &Guest) -> Duration {
    let (mut output, console) = io::pipe().unwrap();
    let config = Config {
        memory: MEMORY,
        cpus: guest.cpus,
        ..Config::new(Kernel::Code(guest.code.clone()))
    };
    let machine = Builder::new(config)
        .console_output(console)
        .build()
        .unwrap();
    let control = machine.control();
    let running = thread::spawn(move || machine.run().unwrap());
    until_it_runs(&mut output);
    let start = Instant::now();
    control.stop();
    running.join().unwrap();
    start.elapsed()
}

type Kill<'a> = (&'static str, Box<dyn Fn() -> Duration + 'a>);

/// The value that so many hundredths of all are within.
fn percentile(sorted: &[Duration], hundredths: usize) -> Duration {
    sorted[(sorted.len() * hundredths).div_ceil(100) - 1]
}

fn main() {
    let runs = std::env::args().find_map(|argument| argument.parse().ok());
    let runs: usize = runs.unwrap_or(RUNS);
    let folder = tempfile::tempdir().unwrap();
    println!(
        "{:<26} {:<14} {:>8} {:>8} {:>8}",
        format!("ms, {runs} kills each"),
        "by",
        "p50",
        "p99",
        "max"
    );
    let mut slow = false;
    for guest in guests() {
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, Elf::of_code(&[&guest.code]).bytes()).unwrap();
        let mut kills: Vec<Kill> = vec![
            (
                "SIGTERM",
                Box::new(|| signalled(&guest, &kernel, Signal::TERM)),
            ),
            (
                "SIGKILL",
                Box::new(|| signalled(&guest, &kernel, Signal::KILL)),
            ),
        ];
        // A machine of this process's can't be bounded.
        if guest.quota.is_none() {
            kills.push(("Control::stop", Box::new(|| stopped(&guest))));
        }
        for (by, kill) in kills {
            let mut times: Vec<_> = (0..runs).map(|_| kill()).collect();
            times.sort_unstable();
            let [p50, p99, max] = [50, 99, 100].map(|part| percentile(&times, part));
            let millis = |time: Duration| format!("{:8.2}", time.as_secs_f64() * 1e3);
            let is_slow = p99 > GOAL;
            println!(
                "{:<26} {by:<14} {} {} {}{}",
                guest.name,
                millis(p50),
                millis(p99),
                millis(max),
                if is_slow { "   over the goal" } else { "" }
            );
            slow |= is_slow;
        }
    }
    let verdict = if slow { "NOT REACHED" } else { "reached" };
    println!("\ngoal: 99 % within {GOAL:?}, on a host that has to be idle: {verdict}");
}

//! The cost of a fork of a snapshot: the time from the call to the guest's first byte, and the memory that it takes.
//!
//! ```console
//! $ cargo bench -p minivm-machine --bench fork
//! ```
//!
//! The guest is a few bytes of machine code, so that nearly all of it is this program's and KVM's time. `cargo xtask bench warm`
//! runs this too, beside whole processes.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't continue fails")]

use std::fs;
use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use minivm_machine::{Pool, SnapshotFolder};
use minivm_vmm::{Builder, Config, Kernel, Snapshot};

/// The number of forks that are timed, and of those that are alive at once.
const TIMED: usize = 300;
const HELD: usize = 1000;
/// The number of machines that a pool keeps ready.
const READY: usize = 4;
/// The time that half of the forks are to be within, with the machine created in the call, and ahead.
const GOAL: Duration = Duration::from_millis(2);
const GOAL_AHEAD: Duration = Duration::from_micros(500);
/// KiB of this process's own that a fork is to stay below.
const GOAL_HELD: u64 = 300;
/// The bytes of guest memory that hold something.
const FILLED: u64 = 48 << 20;

/// Writes a byte to COM1, one to a page of its own, and waits for an interrupt.
#[rustfmt::skip]
const GUEST: [u8; 19] = [
    0x66, 0xba, 0xf8, 0x03, 0xee,                   // mov dx, 0x3f8; out dx, al
    0xc6, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x01, // mov byte [0x200000], 1
    0xfb, 0xf4, 0xeb, 0xfc,                         // sti; again: hlt; jmp again
    0xf4, 0xf4,
];

/// A writer that sends the time of each byte to a channel.
struct Stopwatch(Sender<Instant>);

impl Write for Stopwatch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(Instant::now());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    println!(
        "{:<42} {:>7} {:>7} {:>7}",
        format!("fork → first byte, in µs, {TIMED} each"),
        "50 %",
        "90 %",
        "99 %"
    );
    for (name, memory) in [("64 MiB", 64 << 20), ("4 GiB", 4 << 30)] {
        let saving = save(folder.path(), memory);
        let snapshot = Snapshot::open(folder.path()).unwrap();
        snapshot.check_host().unwrap();
        print(name, "snapshot opened in the call", None, || {
            let start = Instant::now();
            let snapshot = Snapshot::open(folder.path()).unwrap();
            first_byte(start, || Builder::restore(&snapshot))
        });
        print(name, "machine created in the call", Some(GOAL), || {
            first_byte(Instant::now(), || Builder::restore(&snapshot))
        });
        print(name, "machine created ahead", Some(GOAL_AHEAD), || {
            let prepared = snapshot.prepare().unwrap();
            first_byte(Instant::now(), || Builder::restore_prepared(prepared))
        });
        let pool = Pool::new(&snapshot, READY).unwrap();
        print(name, "machine from a pool", Some(GOAL_AHEAD), || {
            // Another is made in its place meanwhile.
            while pool.ready() < READY {
                thread::sleep(Duration::from_millis(1));
            }
            first_byte(Instant::now(), || {
                Builder::restore_prepared(pool.take().unwrap())
            })
        });
        println!(
            "{name:>7}, saving it, with {} MiB in use: {} ms",
            FILLED >> 20,
            saving.as_millis()
        );
    }
    // Of 64 MiB only: a KVM that shadows page tables has 10 MiB of its own for 4 GiB, which times a thousand is a lot.
    save(folder.path(), 64 << 20);
    hold("64 MiB", &Snapshot::open(folder.path()).unwrap());
}

/// Saves a machine; returns the time for it, most of which passes until the snapshot has reached the disk.
fn save(folder: &std::path::Path, memory: u64) -> Duration {
    let config = Config {
        memory,
        ..Config::new(Kernel::Code(GUEST.to_vec()))
    };
    let machine = Builder::new(config).build().unwrap();
    let filling = [0x5a; 1 << 20];
    for at in (8 << 20..8 << 20 | FILLED).step_by(1 << 20) {
        machine.memory().write(at, &filling).unwrap();
    }
    let start = Instant::now();
    SnapshotFolder::save(folder, |files| machine.snapshot_into(files)).unwrap();
    start.elapsed()
}

fn print(name: &str, what: &str, goal: Option<Duration>, mut fork: impl FnMut() -> Duration) {
    let mut times: Vec<_> = (0..TIMED).map(|_| fork()).collect();
    times.sort_unstable();
    let at = |hundredth: usize| times[TIMED * hundredth / 100];
    let row = format!("{name:>7}, {what}");
    print!("{row:<42}");
    for hundredth in [50, 90, 99] {
        print!(" {:>7}", at(hundredth).as_micros());
    }
    match goal {
        Some(goal) => println!(
            "   goal: half within {}: {}",
            goal.as_micros(),
            reached(at(50) <= goal)
        ),
        None => println!(),
    }
}

fn reached(is_so: bool) -> &'static str {
    if is_so { "reached" } else { "NOT REACHED" }
}

/// Runs a fork until its first byte comes; returns the time for it.
fn first_byte(start: Instant, fork: impl FnOnce() -> Builder) -> Duration {
    let (sender, first) = channel();
    let machine = fork().console_output(Stopwatch(sender)).build().unwrap();
    let control = machine.control();
    let runner = thread::spawn(move || machine.run());
    let time = first.recv().unwrap() - start;
    control.stop();
    runner.join().unwrap().unwrap();
    time
}

/// Keeps many forks running at once.
fn hold(name: &str, snapshot: &Snapshot) {
    raise_descriptor_limit();
    let before = (private(), kernel());
    let start = Instant::now();
    let forks: Vec<_> = (0..HELD)
        .map(|_| {
            let (sender, first) = channel();
            let machine = Builder::restore(snapshot)
                .console_output(Stopwatch(sender))
                .build()
                .unwrap();
            let control = machine.control();
            let runner = thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || machine.run())
                .unwrap();
            (control, runner, first)
        })
        .collect();
    for (_, _, first) in &forks {
        first.recv().unwrap();
    }
    let time = start.elapsed();
    thread::sleep(Duration::from_millis(200));
    let per_fork = |now: u64, before: u64| now.saturating_sub(before) / HELD as u64;
    let own = per_fork(private(), before.0);
    println!(
        "{name:>7}, {HELD} forks held at once, started in {} ms, each:",
        time.as_millis()
    );
    println!(
        "{own:>7} KiB of this process's own   goal: below {GOAL_HELD}: {}",
        reached(own < GOAL_HELD)
    );
    println!(
        "{:>7} KiB of the host's kernel",
        per_fork(kernel(), before.1)
    );
    forks.iter().for_each(|(control, _, _)| control.stop());
    for (_, runner, _) in forks {
        runner.join().unwrap().unwrap();
    }
}

/// Returns the KiB of memory that only this process has.
fn private() -> u64 {
    let fields = ["Private_Clean:", "Private_Dirty:"];
    fields
        .iter()
        .map(|field| number("/proc/self/smaps_rollup", field))
        .sum()
}

/// Returns the KiB of memory that the host's kernel has for itself. Other processes change it, too: it counts on a quiet host.
fn kernel() -> u64 {
    let fields = ["Slab:", "KernelStack:", "PageTables:", "VmallocUsed:"];
    fields
        .iter()
        .map(|field| number("/proc/meminfo", field))
        .sum()
}

fn number(file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Each fork has some ten descriptors.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    #[allow(unsafe_code, reason = "there is no safe interface to it in std")]
    // SAFETY: the pointer is to a structure that is there and may be written to.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    limit.rlim_cur = limit.rlim_max;
    #[allow(unsafe_code, reason = "there is no safe interface to it in std")]
    // SAFETY: the pointer is to a structure that is there.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

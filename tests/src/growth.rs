//! What something leaves in the process that does it, again and again: descriptors, threads, children, mounts, memory.
//!
//! A process counts what it has, so a test that asks runs in a process of its own ([`alone`]): its program, started with the one test's
//! name.

use std::collections::BTreeMap;
use std::fs;
use std::mem;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::patience::wait_until;
use crate::processes;

/// Set in the process that counts.
const ALONE: &str = "MINIVM_TEST_ALONE";

/// The most that a process's own memory may grow, in KiB: an allocator keeps what threads have given back, each in its own place.
const MEMORY_MAX: u64 = 8 << 10;

/// The list of a process's mappings, and by how many it may grow: those of the allocator are split as they are used, and stacks of
/// threads that have ended stay for the next ones.
const MAPPINGS: &str = "/proc/self/maps";
const MAPPINGS_MAX: usize = 100;

/// Runs the body of the test with this path in a process of its own.
///
/// # Panics
///
/// Where it fails there, with its output.
pub fn alone(name: &str, body: fn()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program)
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("this program can be started");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What a process has, but memory.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    /// Descriptors by what they lead to, without numbers.
    descriptors: BTreeMap<String, usize>,
    threads: usize,
    children: usize,
    mounts: usize,
}

impl Held {
    fn now() -> Self {
        let mut descriptors = BTreeMap::new();
        for entry in entries("/proc/self/fd") {
            // The descriptor by which they are listed is gone by now.
            if let Ok(target) = fs::read_link(entry.path()) {
                let target = target
                    .to_string_lossy()
                    .replace(|c: char| c.is_ascii_digit(), "");
                *descriptors.entry(target).or_default() += 1;
            }
        }
        Held {
            descriptors,
            threads: entries("/proc/self/task").count(),
            children: processes::below(std::process::id()).len(),
            mounts: lines("/proc/self/mountinfo"),
        }
    }

    /// What it has once that stays the same for a while.
    fn at_rest() -> Self {
        let mut held = Held::now();
        wait_until("this process never rests", || {
            thread::sleep(Duration::from_millis(100));
            let before = mem::replace(&mut held, Held::now());
            held == before
        });
        held
    }

    /// Waits until the process has what it had before: threads that have ended are listed for a moment longer.
    fn assert_comes_back(&self) {
        wait_until(
            &format!("it had {self:?}, and has {:?}", Held::now()),
            || Held::now() == *self,
        );
    }
}

fn lines(path: &str) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

fn entries(folder: &str) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

/// Returns the process's own memory in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.expect("the kernel counts it")
}

/// Does something once, so that what stays for good is there, and then several times more, after which nothing more may be there.
///
/// # Panics
///
/// Where something is.
pub fn check(rounds: usize, round: impl Fn()) {
    round();
    let (held, before, mapped) = (Held::at_rest(), memory(), lines(MAPPINGS));
    (0..rounds).for_each(|_| round());
    held.assert_comes_back();
    let (grown, mapped) = (
        memory().saturating_sub(before),
        lines(MAPPINGS).saturating_sub(mapped),
    );
    let told = format!("{grown} KiB and {mapped} mappings more after {rounds} rounds");
    println!("{told}");
    assert!(grown < MEMORY_MAX && mapped < MAPPINGS_MAX, "{told}");
}

//! The one limit of the tests' waits, and the report of a wait that reaches it.
//!
//! A test waits for an event. How long that takes says something of the machine alone, so the limit is there for hangs and
//! for nothing else: no test asserts a duration.

use std::fmt::Write;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long any wait of a test's takes before it counts as a hang.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until something is so, and asks again and again.
///
/// # Panics
///
/// With `hang`, if it takes longer than [`PATIENCE`].
pub fn wait_until(hang: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{hang}\n{}", processes());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Tries something with a time limit, with twice that, and so on, until it has had time enough to tell: what a program does
/// within its limit is seen only where the machine lets it start within the limit.
///
/// # Panics
///
/// If no limit up to [`PATIENCE`] is enough.
pub fn with_limits_from<T>(first: Duration, attempt: impl Fn(Duration) -> Option<T>) -> T {
    let mut limit = first;
    while limit <= PATIENCE {
        if let Some(told) = attempt(limit) {
            return told;
        }
        limit *= 2;
    }
    panic!("no limit up to {PATIENCE:?} is enough\n{}", processes());
}

/// The most characters of a command line in a report.
const WORDS_MAX: usize = 160;

/// A table of all processes on this machine that have a command line: each thread's state, the function of the kernel that
/// it waits in, and the machine's load. For the message of a test that has waited in vain.
pub fn processes() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut table = format!("load {}\n", load.trim_end());
    let mut ids: Vec<u32> = numbers("/proc").collect();
    ids.sort_unstable();
    for id in ids {
        let Ok(words) = fs::read(format!("/proc/{id}/cmdline")) else {
            continue;
        };
        if words.is_empty() {
            continue;
        }
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let words: String = words.chars().take(WORDS_MAX).collect();
        let parent = field(&format!("/proc/{id}/status"), "PPid:");
        let _ = writeln!(table, "{id} of {parent}: {words}");
        for thread in numbers(&format!("/proc/{id}/task")) {
            let of = |name: &str| format!("/proc/{id}/task/{thread}/{name}");
            let name = fs::read_to_string(of("comm")).unwrap_or_default();
            let place = fs::read_to_string(of("wchan")).unwrap_or_default();
            let state = field(&of("status"), "State:");
            let _ = writeln!(
                table,
                "    {thread} {}: {state}, in {place}",
                name.trim_end()
            );
        }
    }
    table
}

/// Returns the processor time that a process, its children and theirs have taken, those that have ended and were waited for among them.
pub(crate) fn processor_time(process: u32) -> Duration {
    let ticks: u64 = family(process).into_iter().map(ticks).sum();
    Duration::from_millis(ticks.saturating_mul(1000 / TICKS))
}

/// Returns a process, its children and theirs.
fn family(process: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = numbers("/proc")
        .filter_map(|id| {
            Some((
                id,
                field(&format!("/proc/{id}/status"), "PPid:").parse().ok()?,
            ))
        })
        .collect();
    let mut family = vec![process];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(id, _)| id),
        );
        next += 1;
    }
    family
}

/// The ticks of processor time in a second, as `/proc` counts them on all of Linux's architectures (`USER_HZ`).
const TICKS: u64 = 100;

/// The ticks that a process has taken, and its children that it has waited for (proc_pid_stat(5), fields 14 to 17).
fn ticks(process: u32) -> u64 {
    let line = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before them may hold anything.
    let fields = line.rsplit_once(')').map_or("", |(_, fields)| fields);
    let times = fields.split_whitespace().skip(11).take(4);
    times.filter_map(|time| time.parse::<u64>().ok()).sum()
}

/// The entries of a folder that are numbers.
fn numbers(folder: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The value of a line of a file in `/proc`.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or("?").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_double_until_one_is_enough() {
        let second = Duration::from_secs(1);
        let enough = |limit| (limit >= 3 * second).then_some(limit);
        assert_eq!(with_limits_from(second, enough), 4 * second);
    }

    #[test]
    fn a_childs_processor_time_counts_and_a_sleepers_does_not() {
        let shell = |script: &str| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", script]).spawn().expect("there is sh")
        };
        let mut busy = shell("sh -c 'while :; do :; done'; true");
        let mut idle = shell("sleep 1000; true");
        let computes = || processor_time(busy.id()) >= Duration::from_millis(300);
        while !computes() {
            std::thread::yield_now();
        }
        assert!(processor_time(idle.id()) < Duration::from_millis(300));
        for child in [&mut busy, &mut idle] {
            for process in family(child.id()) {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(process.cast_signed()).expect("not 0"),
                    rustix::process::Signal::KILL,
                );
            }
            child.wait().expect("it is our child");
        }
    }

    #[test]
    fn the_table_has_this_process_with_its_threads() {
        let table = processes();
        let id = std::process::id();
        assert!(table.starts_with("load "), "{table}");
        assert!(table.contains(&format!("\n{id} of ")), "{table}");
        assert!(table.contains(&format!("    {id} ")), "{table}");
    }
}

//! The system calls of a run, as strace shows them, and those of them that can be made to fail.

use std::collections::{BTreeMap, BTreeSet};

/// Calls that aren't made to fail: those that don't return, and those that the kernel never lets fail where they are used as they are here.
/// The libraries end the process then, and rightly.
const NEVER: [&str; 20] = [
    "brk", // the kernel returns the old end, and no error
    "clock_nanosleep",
    "close",
    "execve",
    "exit",
    "exit_group",
    // strace counts by thread, so it also fails in the monitor, behind whose filter a call that strace has taken out ends the process; and
    // in minivm it is what stderr is looked at with, to which that end is reported.
    "fcntl",
    "futex",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getrandom", // std seeds its hash maps
    "getppid",
    "gettid",
    "getuid",
    "prlimit64",
    // By it a process ends itself as a signal would have ended it; where it fails, signal-hook aborts.
    "tgkill",
    "rt_sigreturn",
    "umask",
];

/// Calls that the C library and std make before `main`, which end the process where they fail.
const BEFORE_MAIN: [&str; 7] = [
    "arch_prctl",
    "mmap",
    "mprotect",
    "poll",
    "rt_sigaction",
    "set_robust_list",
    "sigaltstack",
];

/// A call: the so-manyeth with its name in its thread. strace counts so, and lets it fail in each thread that makes so many.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) number: usize,
}

/// A call with the first line of the trace that shows it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) call: Call,
    pub(crate) line: String,
}

impl Seen {
    /// What the first one of several is looked for by: the request of an `ioctl`, and of others the name.
    pub(crate) fn kind(&self) -> &str {
        let request = self
            .line
            .split(", ")
            .nth(1)
            .filter(|_| self.call.name == "ioctl");
        request.unwrap_or(&self.call.name)
    }
}

/// The calls in a trace, in the order in which they were begun, but for those that aren't made to fail.
pub(crate) fn of_trace(trace: &str) -> Vec<Seen> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut before_main: BTreeMap<&str, usize> = BTreeMap::new();
    // Processes that have called execve, and aren't in `main` yet.
    let mut starting = BTreeSet::new();
    let mut known = BTreeSet::new();
    let mut all = Vec::new();
    for line in trace.lines() {
        let Some((process, name, arguments)) = call(line) else {
            continue;
        };
        let number = counts.entry((process, name)).or_default();
        *number += 1;
        if name == "execve" {
            starting.insert(process);
        }
        if starting.contains(process) {
            let most = before_main.entry(name).or_default();
            *most = (*most).max(*number);
            // The last thing that std does is to give the main thread a stack for its signals.
            if name == "sigaltstack" && arguments.starts_with('{') {
                starting.remove(process);
            }
        }
        let call = Call {
            name: name.to_owned(),
            number: *number,
        };
        if known.insert(call.clone()) {
            let line = line.to_owned();
            all.push(Seen { call, line });
        }
    }
    all.retain(|Seen { call, .. }| {
        let name = call.name.as_str();
        let is_early = before_main
            .get(name)
            .is_some_and(|most| call.number <= *most);
        !(NEVER.contains(&name) || is_early && BEFORE_MAIN.contains(&name))
    });
    all
}

/// The process, the name and the arguments of the call that a line begins with.
fn call(line: &str) -> Option<(&str, &str, &str)> {
    let (process, call) = line.split_once(' ')?;
    let (name, arguments) = call.trim_start().split_once('(')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(is_name)).then_some((process, name, arguments))
}

#[test]
fn calls_are_counted_by_thread() {
    let trace = "\
        7 execve(\"minivm\", …) = 0\n\
        7 mmap(NULL, 4096) = 0x7f\n\
        7 openat(AT_FDCWD, \"/proc/self/maps\") = 3\n\
        7 sigaltstack(NULL, {ss_sp=NULL}) = 0\n\
        7 sigaltstack({ss_sp=0x7f}, NULL) = 0\n\
        7 umask(0777) = 022\n\
        7 mmap(NULL, 8192) = 0x7f\n\
        7 ioctl(5, KVM_CREATE_VM, 0 <unfinished ...>\n\
        17  mmap(NULL, 12288) = 0x7f\n\
        7 <... ioctl resumed>) = 6\n\
        17  ioctl(8, KVM_RUN <unfinished ...>\n\
        17  --- SIGRT_2 {si_signo=SIGRT_2} ---\n\
        7 ioctl(6, KVM_SET_TSS_ADDR, 0xfffbd000) = 0\n\
        7 +++ exited with 0 +++\n";
    let calls = of_trace(trace);
    let seen = |seen: &Seen| {
        (
            seen.call.name.clone(),
            seen.call.number,
            seen.kind().to_owned(),
        )
    };
    let expected = [
        ("openat", 1, "openat"),
        ("mmap", 2, "mmap"),
        ("ioctl", 1, "KVM_CREATE_VM"),
        ("ioctl", 2, "KVM_SET_TSS_ADDR"),
    ];
    let expected = expected.map(|(name, number, kind)| (name.into(), number, kind.into()));
    assert_eq!(calls.iter().map(seen).collect::<Vec<_>>(), expected);
}

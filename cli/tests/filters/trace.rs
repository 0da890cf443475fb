//! The calls of monitors, and of other processes behind walls, in a trace of strace's, once they are behind their filters.

use std::collections::{BTreeMap, BTreeSet};

/// A kind of a monitor's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum By {
    /// One that runs a vCPU, behind its narrower filter.
    Vcpu,
    /// Another one.
    Other,
}

/// A call that was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) by: By,
    pub(crate) name: String,
    /// The names and numbers in its arguments.
    pub(crate) words: BTreeSet<String>,
}

/// One thread's calls in their order: what strace has written of each.
type Threads<'a> = BTreeMap<&'a str, Vec<Call<'a>>>;

#[derive(Debug)]
struct Call<'a> {
    name: &'a str,
    /// All that follows the name. Of a call that was interrupted by others', the two parts are two calls.
    rest: &'a str,
}

/// The calls of the monitors.
pub(crate) fn of_monitors(trace: &str) -> BTreeSet<Seen> {
    of_role(trace, "monitor")
}

/// The calls of the processes that were started with this command.
pub(crate) fn of_role(trace: &str, command: &str) -> BTreeSet<Seen> {
    let mut threads = Threads::new();
    for line in trace.lines() {
        let (thread, line) = line.split_once(' ').unwrap();
        threads.entry(thread).or_default().extend(call(line));
    }
    let mut seen = BTreeSet::new();
    for (thread, calls) in &threads {
        if let Some(from) = calls.iter().position(|call| is_start(call, command)) {
            let filter = calls[from..].iter().position(is_filter_of_all);
            let confined = filter.expect("it puts walls around itself");
            follow(&threads, thread, from + confined + 1, &mut seen);
        }
    }
    seen
}

/// Adds the calls of a thread, from one on, and those of the threads that it starts.
fn follow(threads: &Threads<'_>, thread: &str, from: usize, seen: &mut BTreeSet<Seen>) {
    let mut by = By::Other;
    for call in threads.get(thread).into_iter().flatten().skip(from) {
        seen.insert(Seen {
            by,
            name: call.name.to_owned(),
            words: words(call.rest),
        });
        match call.name {
            "seccomp" => by = By::Vcpu,
            "clone" => {
                if let Some(child) = child(call.rest) {
                    follow(threads, child, 0, seen);
                }
            }
            _ => {}
        }
    }
}

fn is_start(call: &Call<'_>, command: &str) -> bool {
    let arguments = format!("[\"minivm\", \"{command}\"]");
    call.name == "execve" && call.rest.contains(&arguments)
}

fn is_filter_of_all(call: &Call<'_>) -> bool {
    call.name == "seccomp" && call.rest.contains("SECCOMP_FILTER_FLAG_TSYNC")
}

/// A line's call, or the second part of one.
fn call(line: &str) -> Option<Call<'_>> {
    let line = line.trim_start();
    if let Some(resumed) = line.strip_prefix("<... ") {
        let (name, rest) = resumed.split_once(" resumed>")?;
        return Some(Call { name, rest });
    }
    let (name, rest) = line.split_once('(')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(is_name)).then_some(Call { name, rest })
}

/// The thread that a `clone` has made, as strace itself sees it.
fn child(rest: &str) -> Option<&str> {
    let (_, result) = rest.rsplit_once(") = ").or(rest.rsplit_once(" = "))?;
    match result.split_once(" /* ") {
        Some((_, own)) => own.split(' ').next(),
        None => result.split(' ').next(),
    }
    .filter(|id| id.parse::<u32>().is_ok())
}

fn words(rest: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = rest.split(|c| !is_part(c));
    words
        .filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()) || word.starts_with("0x"))
        // Addresses.
        .filter(|word| word.len() < 5 || !word.starts_with("0x"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn threads_are_followed_from_their_filters_on() {
    let trace = "\
        7 execve(\"minivm\", [\"minivm\", \"run\"], …) = 0\n\
        7 openat(AT_FDCWD, \"file\") = 3\n\
        8 execve(\"/proc/self/exe\", [\"minivm\", \"monitor\"], …) = 0\n\
        8 openat(AT_FDCWD, \"/dev/kvm\") = 3\n\
        8 seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, {len=200, filter=0x7ffd}) = 0\n\
        8 clone(child_stack=0x7f000, flags=CLONE_VM <unfinished ...>\n\
        19 rseq(0x7fe000, 32, 0, 0x53053053) = 0\n\
        8 <... clone resumed>, parent_tid=[2]) = 2 /* 19 in strace's PID NS */\n\
        19 seccomp(SECCOMP_SET_MODE_FILTER, 0, {len=20, filter=0x7ffd}) = 0\n\
        19 ioctl(8, KVM_RUN <unfinished ...>\n\
        19 --- SIGRT_2 {si_signo=SIGRT_2} ---\n\
        8 exit_group(0) = ?\n\
        8 +++ exited with 0 +++\n";
    let shown: Vec<_> = of_monitors(trace)
        .into_iter()
        .map(|seen| {
            let words: Vec<_> = seen.words.into_iter().collect();
            (seen.by, seen.name, words.join(" "))
        })
        .collect();
    let expected = [
        (By::Vcpu, "ioctl", "KVM_RUN"),
        (By::Other, "clone", "CLONE_VM"),
        (By::Other, "clone", "NS PID"),
        (By::Other, "exit_group", ""),
        (By::Other, "rseq", ""),
        (By::Other, "seccomp", "SECCOMP_SET_MODE_FILTER"),
    ]
    .map(|(by, name, words)| (by, name.to_owned(), words.to_owned()));
    assert_eq!(shown, expected);
}

//! The processes of this machine, as `/proc` lists them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A process, as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub id: u32,
    /// The number of its parent.
    pub parent: u32,
    /// When it started, in ticks since the boot. With the number it names the process: numbers are used again.
    pub start: u64,
    /// Whether it has not ended yet. One that has is listed until its parent waits for it.
    pub is_alive: bool,
}

impl Process {
    /// Reads the process with this number. `None` if there is none.
    pub fn read(id: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(Process {
            id,
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
            is_alive: !matches!(*fields.first()?, "Z" | "X"),
        })
    }

    /// Whether it is still alive.
    pub fn still_runs(&self) -> bool {
        Process::read(self.id).is_some_and(|now| now.start == self.start && now.is_alive)
    }
}

/// The command line of this process, also before its `main`: not each C library has the arguments by then.
///
/// # Panics
///
/// Where `/proc` isn't mounted.
pub fn command_line() -> Vec<OsString> {
    let line = fs::read("/proc/self/cmdline").expect("/proc is mounted");
    let words = line.split_inclusive(|byte| *byte == 0);
    let words = words.map(|word| OsString::from_vec(word[..word.len() - 1].to_vec()));
    words.collect()
}

/// The children of a process, with theirs.
pub fn below(process: u32) -> Vec<Process> {
    let all: Vec<Process> = numbers().filter_map(Process::read).collect();
    let mut found = Vec::new();
    let mut parents = vec![process];
    while let Some(parent) = parents.pop() {
        for child in all.iter().filter(|child| child.parent == parent) {
            found.push(*child);
            parents.push(child.id);
        }
    }
    found
}

/// A thread of a process, by its name, as `/proc` describes it: its state (proc(5), "stat"), and the number of the system call that it is in,
/// if it is in one.
pub fn thread(process: u32, name: &str) -> Option<(char, Option<i64>)> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let named = |thread: &PathBuf| {
        let found = fs::read_to_string(thread.join("comm"));
        found.is_ok_and(|found| found.trim_end() == name)
    };
    let thread = threads.flatten().map(|entry| entry.path()).find(named)?;
    let stat = fs::read_to_string(thread.join("stat")).ok()?;
    let call = fs::read_to_string(thread.join("syscall")).ok()?;
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    let call = call.split(' ').next()?.trim_end().parse();
    Some((state, call.ok().filter(|call| *call >= 0)))
}

/// How many processes have this in their command lines, in which a NUL byte ends each argument.
pub fn with_argument(text: &str) -> usize {
    let lines = numbers().filter_map(|id| fs::read(format!("/proc/{id}/cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(text))
        .count()
}

fn numbers() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_is_below_its_parent_until_it_is_waited_for() {
        let this = std::process::id();
        let mut child = Command::new("sleep").arg("1234.5").spawn().expect("sleep");
        let id = child.id();
        let of_child = || below(this).into_iter().find(|one| one.id == id);
        let found = of_child().expect("it is there");
        assert!(found.parent == this && found.is_alive && found.still_runs());
        assert!(below(1).contains(&found), "it is below the first process");
        child.kill().expect("it is our child");
        crate::patience::wait_until("it doesn't end", || !found.still_runs());
        assert_eq!(of_child().map(|one| one.is_alive), Some(false));
        child.wait().expect("it is our child");
        assert!(below(this).iter().all(|one| one.id != id));
    }

    #[test]
    fn a_thread_that_waits_is_seen_in_its_call() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let waiting = std::thread::Builder::new().name("it waits".into());
        let waiting = waiting.spawn(move || std::io::Read::read(&mut reader, &mut [0]));
        let this = std::process::id();
        crate::patience::wait_until("it doesn't wait", || {
            thread(this, "it waits") == Some(('S', Some(libc::SYS_read)))
        });
        drop(writer);
        let waited = waiting.expect("a thread").join().expect("it ends");
        assert_eq!(waited.expect("the other end was closed"), 0);
        assert_eq!(thread(this, "no such thread"), None);
    }

    #[test]
    fn the_command_line_is_that_of_this_process() {
        assert!(command_line().into_iter().eq(std::env::args_os()));
    }

    #[test]
    fn processes_are_found_by_their_arguments() {
        let own = std::env::args().next().expect("its own name");
        assert!(with_argument(&own) >= 1);
        assert_eq!(with_argument("no\0such\0arguments"), 0);
    }
}

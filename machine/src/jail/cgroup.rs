//! Control groups: limits on the memory and the number of processes of a sandbox, and its memory use.
//!
//! Both versions are supported: one hierarchy for all controllers (version 2), or one for each (version 1). A group is made in
//! this process's own group or beside it, where this process may make one. Otherwise the caller runs without a group.

use std::fs::{self, File};
use std::io;
use std::path::Path;

mod folder;

pub(super) use folder::{Folder, own};

/// The largest number of processes and threads of a sandbox.
const PIDS_MAX: &str = "1024";

/// The control group of one sandbox. Dropping it removes the group, whose processes have to have ended by then.
pub struct Cgroup {
    /// The group in the hierarchy of memory, or in that of all controllers.
    memory: Folder,
    /// The group in version 1's hierarchy of processes, where there is one.
    pids: Option<Folder>,
    version: Version,
}

/// A version of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

impl Version {
    /// Returns the file to which the number of a process of one thread is written to move it into a group, 0 for the writer itself.
    ///
    /// In version 1 this is `tasks`, which moves a thread: for a process of one thread that has the same effect and takes 0.04 ms.
    /// `cgroup.procs` first waits until no process can start a thread meanwhile: 14 ms. Version 2 moves threads only within a
    /// threaded subtree.
    pub(super) fn entry(self) -> &'static str {
        match self {
            Version::One => "tasks",
            Version::Two => "cgroup.procs",
        }
    }
}

impl Cgroup {
    /// Makes a group with a limit on memory in bytes; `None` where this process may not make one.
    pub fn create(memory: Option<u64>) -> Option<Cgroup> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let group = Cgroup::in_version_2(&groups).or_else(|| Cgroup::in_version_1(&groups))?;
        let limited = match memory {
            Some(bytes) => group.limit(bytes),
            None => Ok(()),
        };
        limited.ok().map(|()| group)
    }

    fn in_version_2(groups: &str) -> Option<Cgroup> {
        let own = own(Path::new("/sys/fs/cgroup"), groups, "0:", "")?;
        let group = Cgroup {
            memory: Folder::make(&own, "memory.max")?,
            pids: None,
            version: Version::Two,
        };
        // A group without this controller counts no processes; its memory is limited nevertheless.
        let _ = fs::write(group.memory.path().join("pids.max"), PIDS_MAX);
        Some(group)
    }

    fn in_version_1(groups: &str) -> Option<Cgroup> {
        let of = |controller: &str, file| {
            let root = Path::new("/sys/fs/cgroup").join(controller);
            Folder::make(&own(&root, groups, "", controller)?, file)
        };
        let group = Cgroup {
            memory: of("memory", "memory.limit_in_bytes")?,
            pids: of("pids", "pids.max"),
            version: Version::One,
        };
        if let Some(pids) = &group.pids {
            let _ = fs::write(pids.path().join("pids.max"), PIDS_MAX);
        }
        Some(group)
    }

    fn limit(&self, bytes: u64) -> io::Result<()> {
        let bytes = bytes.to_string();
        let (limit, with_swap, swap) = match self.version {
            Version::One => (
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                &*bytes,
            ),
            Version::Two => ("memory.max", "memory.swap.max", "0"),
        };
        fs::write(self.memory.path().join(limit), &bytes)?;
        // The file is missing where the kernel counts no swap.
        let _ = fs::write(self.memory.path().join(with_swap), swap);
        Ok(())
    }

    /// Opens the files to which a process of one thread writes `0` to enter the group.
    ///
    /// # Errors
    ///
    /// The error of opening one of them.
    pub fn procs_files(&self) -> io::Result<Vec<File>> {
        let file = self.version.entry();
        let folders = [&self.memory].into_iter().chain(&self.pids);
        let open = |folder: &Folder| File::options().write(true).open(folder.path().join(file));
        folders.map(open).collect()
    }

    /// Returns whether the group limits the number of processes.
    fn bounds_processes(&self) -> bool {
        let pids = match self.version {
            Version::One => self.pids.as_ref(),
            Version::Two => Some(&self.memory),
        };
        let limit = pids.and_then(|pids| fs::read_to_string(pids.path().join("pids.max")).ok());
        limit.is_some_and(|limit| limit.trim() == PIDS_MAX)
    }

    /// Returns the bytes that the group's processes hold now: their own and shared memory, without cached files.
    pub fn memory(&self) -> Option<u64> {
        let fields: &[&str] = match self.version {
            Version::One => &["rss", "shmem"],
            Version::Two => &["anon", "shmem"],
        };
        let stat = fs::read_to_string(self.memory.path().join("memory.stat")).ok()?;
        Some(sum(&stat, fields))
    }

    /// Returns the peak memory of the group in bytes, including cached files. `None` in version 2 before Linux 5.19, which
    /// doesn't report it.
    pub fn peak(&self) -> Option<u64> {
        let file = match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        };
        let text = fs::read_to_string(self.memory.path().join(file)).ok()?;
        text.trim().parse().ok()
    }

    /// Returns whether the kernel's OOM killer ended a process of the group.
    pub fn out_of_memory(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let events = fs::read_to_string(self.memory.path().join(file)).unwrap_or_default();
        sum(&events, &["oom_kill"]) > 0
    }
}

/// Returns whether a group can be made here that limits memory and processes.
pub(super) fn can_be_made() -> bool {
    // The limit's value doesn't matter.
    Cgroup::create(Some(1 << 30)).is_some_and(|group| group.bounds_processes())
}

/// Sums some fields of a file whose lines are a name and a number.
fn sum(text: &str, fields: &[&str]) -> u64 {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs
        .filter(|(name, _)| fields.contains(name))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_summed_by_name() {
        assert_eq!(sum("anon 5\nanon_thp 7\nshmem 8\n", &["anon", "shmem"]), 13);
        assert_eq!(sum("", &["anon"]), 0);
    }
}

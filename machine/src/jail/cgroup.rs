//! Control groups: limits on the memory and the number of processes of a sandbox, and its memory use.
//!
//! Both versions are supported: one hierarchy for all controllers (version 2), or one for each (version 1). A group is made in
//! this process's own group or beside it, where this process may make one. Otherwise the caller runs without a group.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The prefix of the groups' folders. This process's ID follows, so that the group of a killed minivm can be recognized.
const PREFIX: &str = "minivm-";
/// How long a group may take to become empty after its processes have been killed.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest number of processes and threads of a sandbox.
const PIDS_MAX: &str = "1024";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The control group of one sandbox. Dropping it removes the group, whose processes have to have ended by then.
pub struct Cgroup {
    /// The group's folder for memory.
    memory: PathBuf,
    /// The group's folder for processes: `memory` in version 2, and `None` in version 1 where there is no such controller.
    pids: Option<PathBuf>,
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
        let memory = make(&own, "memory.max")?;
        let group = Cgroup {
            pids: Some(memory.clone()),
            memory,
            version: Version::Two,
        };
        // A group without this controller counts no processes; its memory is limited nevertheless.
        let _ = fs::write(group.memory.join("pids.max"), PIDS_MAX);
        Some(group)
    }

    fn in_version_1(groups: &str) -> Option<Cgroup> {
        let of = |controller: &str, file| {
            let root = Path::new("/sys/fs/cgroup").join(controller);
            make(&own(&root, groups, "", controller)?, file)
        };
        let mut group = Cgroup {
            memory: of("memory", "memory.limit_in_bytes")?,
            pids: None,
            version: Version::One,
        };
        group.pids = of("pids", "pids.max");
        if let Some(pids) = &group.pids {
            let _ = fs::write(pids.join("pids.max"), PIDS_MAX);
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
        fs::write(self.memory.join(limit), &bytes)?;
        // The file is missing where the kernel counts no swap.
        let _ = fs::write(self.memory.join(with_swap), swap);
        Ok(())
    }

    /// Opens the files to which a process of one thread writes `0` to enter the group.
    ///
    /// # Errors
    ///
    /// The error of opening one of them.
    pub fn procs_files(&self) -> io::Result<Vec<File>> {
        let file = self.version.entry();
        let mut folders = vec![&self.memory];
        folders.extend(self.pids.as_ref().filter(|pids| **pids != self.memory));
        let open = |folder: &PathBuf| File::options().write(true).open(folder.join(file));
        folders.into_iter().map(open).collect()
    }

    /// Returns whether the group limits the number of processes.
    fn bounds_processes(&self) -> bool {
        let limit = |pids: &PathBuf| fs::read_to_string(pids.join("pids.max"));
        let limit = self.pids.as_ref().and_then(|pids| limit(pids).ok());
        limit.is_some_and(|limit| limit.trim() == PIDS_MAX)
    }

    /// Returns the bytes that the group's processes hold now: their own and shared memory, without cached files.
    pub fn memory(&self) -> Option<u64> {
        let fields: &[&str] = match self.version {
            Version::One => &["rss", "shmem"],
            Version::Two => &["anon", "shmem"],
        };
        let stat = fs::read_to_string(self.memory.join("memory.stat")).ok()?;
        Some(sum(&stat, fields))
    }

    /// Returns the peak memory of the group in bytes, including cached files. `None` in version 2 before Linux 5.19, which
    /// doesn't report it.
    pub fn peak(&self) -> Option<u64> {
        let file = match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        };
        let text = fs::read_to_string(self.memory.join(file)).ok()?;
        text.trim().parse().ok()
    }

    /// Returns whether the kernel's OOM killer ended a process of the group.
    pub fn out_of_memory(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let events = fs::read_to_string(self.memory.join(file)).unwrap_or_default();
        sum(&events, &["oom_kill"]) > 0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let folders: Vec<&PathBuf> = self.pids.iter().chain([&self.memory]).collect();
        remove(&folders);
    }
}

/// Removes the folders of a group whose processes have been killed.
pub(super) fn remove(folders: &[&PathBuf]) {
    let began = Instant::now();
    for folder in folders {
        // A killed process stays in its group until the kernel has released it.
        while let Err(error) = fs::remove_dir(folder) {
            if error.kind() != io::ErrorKind::ResourceBusy || began.elapsed() > PATIENCE {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Returns whether a group can be made here that limits memory and processes.
pub(super) fn can_be_made() -> bool {
    // The limit's value doesn't matter.
    Cgroup::create(Some(1 << 30)).is_some_and(|group| group.bounds_processes())
}

/// Returns the folder of this process's own group in a hierarchy, from the lines of `/proc/self/cgroup`, each
/// `HIERARCHY:CONTROLLERS:PATH`.
pub(super) fn own(root: &Path, groups: &str, number: &str, controller: &str) -> Option<PathBuf> {
    let line = groups.lines().find_map(|line| {
        let (start, path) = line.split_at(line.match_indices(':').nth(1)?.0);
        let controllers = start.split_once(':')?.1;
        let same = controllers.split(',').any(|one| one == controller);
        (start.starts_with(number) && same).then(|| &path[1..])
    })?;
    Some(root.join(line.trim_start_matches('/')))
}

/// Makes a group in the folder or beside it; `None` where the new group has no such file that can be written.
pub(super) fn make(own: &Path, file: &str) -> Option<PathBuf> {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}{}-{count}", std::process::id());
    [Some(own), own.parent()]
        .into_iter()
        .flatten()
        .find_map(|parent| {
            remove_stale(parent);
            let folder = parent.join(&name);
            fs::create_dir(&folder).ok()?;
            let writable = File::options().write(true).open(folder.join(file));
            if writable.is_err() {
                let _ = fs::remove_dir(&folder);
                return None;
            }
            Some(folder)
        })
}

/// Removes the groups of minivm processes that were killed. Only an empty group can be removed.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let process = process.and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
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
    fn the_own_group_is_found_in_either_hierarchy() {
        let both = "9:name=systemd:/\n4:memory,other:/a/b\n0::/user.slice\n";
        let root = Path::new("/r");
        assert_eq!(own(root, both, "0:", ""), Some("/r/user.slice".into()));
        assert_eq!(own(root, both, "", "memory"), Some("/r/a/b".into()));
        assert_eq!(own(root, both, "", "pids"), None);
        assert_eq!(own(root, "nonsense\n", "", "pids"), None);
    }

    #[test]
    fn fields_are_summed_by_name() {
        assert_eq!(sum("anon 5\nanon_thp 7\nshmem 8\n", &["anon", "shmem"]), 13);
        assert_eq!(sum("", &["anon"]), 0);
    }
}

//! A control group's folder: made, and removed once no process uses it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// The prefix of the folders' names.
const PREFIX: &str = "minivm-";
/// How long a group may take to become empty after its processes have been killed.
const PATIENCE: Duration = Duration::from_secs(2);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A control group in one hierarchy. Dropping it removes the group, whose processes have to have ended by then.
#[derive(Debug)]
pub(in crate::jail) struct Folder {
    path: PathBuf,
    /// The open folder, locked. A group without a lock was left by a minivm that was killed. A process ID in the name could not tell
    /// that: it means another process in another PID namespace, and containers may share their control groups.
    _lock: File,
}

impl Folder {
    /// Makes a group in the folder `own` or beside it; `None` where the new group has no such file that can be written.
    pub(in crate::jail) fn make(own: &Path, file: &str) -> Option<Folder> {
        let parents = [Some(own), own.parent()];
        parents.into_iter().flatten().find_map(|parent| {
            remove_left(parent);
            let folder = Folder::make_in(parent).ok()?;
            let writable = File::options().write(true).open(folder.path.join(file));
            writable.is_ok().then_some(folder)
        })
    }

    fn make_in(parent: &Path) -> io::Result<Folder> {
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{PREFIX}{}-{count}", std::process::id()));
            match fs::create_dir(&path) {
                // By a process with the same ID in another PID namespace.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    if let Some(lock) = lock(&path)? {
                        return Ok(Folder { path, _lock: lock });
                    }
                }
            }
        }
    }

    pub(in crate::jail) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let began = Instant::now();
        // A killed process stays in its group until the kernel has released it.
        while let Err(error) = fs::remove_dir(&self.path) {
            if error.kind() != io::ErrorKind::ResourceBusy || began.elapsed() > PATIENCE {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Locks a new group; `None` if another process took it for one that was left, and has removed it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let folder = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // Waits while another process holds the lock to remove the group.
    flock(&folder, FlockOperation::LockExclusive)?;
    let opened = folder.metadata()?.ino();
    let is_there = fs::metadata(path).is_ok_and(|there| there.ino() == opened);
    Ok(is_there.then_some(folder))
}

/// Removes the groups of minivm processes that were killed. Only an empty group can be removed.
fn remove_left(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes())
        {
            continue;
        }
        let Ok(folder) = File::open(entry.path()) else {
            continue;
        };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Returns the folder of this process's own group in a hierarchy, from the lines of `/proc/self/cgroup`, each
/// `HIERARCHY:CONTROLLERS:PATH`.
pub(in crate::jail) fn own(
    root: &Path,
    groups: &str,
    number: &str,
    controller: &str,
) -> Option<PathBuf> {
    let line = groups.lines().find_map(|line| {
        let (start, path) = line.split_at(line.match_indices(':').nth(1)?.0);
        let controllers = start.split_once(':')?.1;
        let same = controllers.split(',').any(|one| one == controller);
        (start.starts_with(number) && same).then(|| &path[1..])
    })?;
    Some(root.join(line.trim_start_matches('/')))
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

    // Folders of a plain file system are made, locked and removed as those of control groups are.

    #[test]
    fn a_group_in_use_stays_whatever_process_looks_for_left_ones() {
        let parent = tempfile::tempdir().unwrap();
        let group = Folder::make_in(parent.path()).unwrap();
        // A process of another PID namespace finds no process of the name's ID. Its look is the same.
        let foreign = parent.path().join(format!("{PREFIX}{}-0", u32::MAX));
        fs::create_dir(&foreign).unwrap();
        let lock = lock(&foreign).unwrap().unwrap();
        remove_left(parent.path());
        assert!(group.path().is_dir() && foreign.is_dir());

        drop(lock);
        remove_left(parent.path());
        assert!(group.path().is_dir() && !foreign.exists());
        let path = group.path().to_owned();
        drop(group);
        assert!(!path.exists());
    }

    #[test]
    fn a_left_group_goes_even_if_a_process_has_its_number() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent
            .path()
            .join(format!("{PREFIX}{}-x", std::process::id()));
        let other = parent.path().join("other");
        fs::create_dir(&left).unwrap();
        fs::create_dir(&other).unwrap();
        remove_left(parent.path());
        assert!(!left.exists() && other.is_dir());
    }

    #[test]
    fn names_that_are_taken_are_passed_over() {
        let parent = tempfile::tempdir().unwrap();
        let next = COUNT.load(Ordering::Relaxed);
        for count in next..next + 200 {
            let name = format!("{PREFIX}{}-{count}", std::process::id());
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        assert!(Folder::make_in(parent.path()).unwrap().path().is_dir());
    }

    #[test]
    fn a_group_that_was_removed_before_its_lock_is_not_taken() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("minivm-1-0");
        assert!(lock(&path).unwrap().is_none());
    }
}

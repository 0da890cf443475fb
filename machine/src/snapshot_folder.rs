//! The writer of a snapshot's folder, which at each moment holds the old snapshot or the new one.
//!
//! ```text
//! state                     names its memory file, and so decides which snapshot is in the folder
//! memory-0123456789abcdef   never written to once a state file names it
//! ```
//!
//! 1. Memory files that the old state file doesn't name are deleted: those of savers that were killed.
//! 2. A new memory file is made, under a name of its own, and a new state file, as `state.new`.
//! 3. Both are written, and reach the disk.
//! 4. `state.new` is renamed to `state`: this is the moment.
//! 5. The old memory file is deleted.
//!
//! Step 3 needs no name, and the others neither the machine nor its memory. So a process that may open nothing can save its
//! machine into two files that another process has made ([`SaveFiles`]).
//!
//! The folder is opened once, and all steps work in the open folder. It has to belong to this process's user, and no other
//! user may write to it: with a snapshot's memory and devices, another user could change what its machines run.
//!
//! A saver that fails or is killed before step 4 leaves the old snapshot as it was, and after it the new one is complete. A
//! lock on the folder keeps a second saver out. Machines that were restored from the old snapshot keep its memory file, which
//! has no name any more.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use minivm_vmm::{Error, Result, SaveFiles, Snapshot, SnapshotError};
use rustix::process::geteuid;
use rustix::rand::{GetRandomFlags, getrandom};

/// The name of a new state file.
const STATE_NEW: &str = "state.new";
/// The message about a folder that was named by mistake.
const NOT_OURS: &str = "it has a file `state` that is not a snapshot's: name another folder";
/// The bits of a mode by which others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;

/// The folder of a snapshot that is being saved: locked, checked, with two new files in it. Until [`publish`](Self::publish) it
/// still has the old snapshot; dropped before, it loses the new files and keeps the old.
///
/// ```no_run
/// # use minivm_vmm::{Builder, Config, Kernel};
/// use minivm_machine::SnapshotFolder;
///
/// # let machine = Builder::new(Config::new(Kernel::File("vmlinux".into()))).build()?;
/// let folder = SnapshotFolder::prepare("warm".as_ref())?;
/// machine.snapshot_into(folder.files())?; // perhaps in another process
/// folder.publish()?;
///
/// SnapshotFolder::save("warm", |files| machine.snapshot_into(files))?; // the same in this process
/// # minivm_vmm::Result::Ok(())
/// ```
pub struct SnapshotFolder {
    /// As it was given, for messages.
    path: PathBuf,
    lock: Lock,
    files: SaveFiles,
    published: bool,
}

impl SnapshotFolder {
    /// Saves a snapshot in `folder`, in place of one that may be there. `write` writes the machine into the new files.
    ///
    /// # Errors
    ///
    /// Those of [`prepare`](Self::prepare), `write` and [`publish`](Self::publish); an older snapshot in the folder is still whole then.
    pub fn save(
        folder: impl AsRef<Path>,
        write: impl FnOnce(&SaveFiles) -> Result<()>,
    ) -> Result<()> {
        let folder = folder.as_ref();
        let new = SnapshotFolder::prepare(folder)?;
        write(new.files()).map_err(|error| of_folder(error, folder))?;
        new.publish()
    }

    /// Locks `folder`, which is created if it isn't there, deletes what savers that were killed have left in it, and makes the new
    /// files.
    ///
    /// # Errors
    ///
    /// [`Error::Save`] where another saver is at it, where the folder is another user's or others may write to it, where it has
    /// something in the files' places that no saver has made, or where they can't be made.
    pub fn prepare(folder: &Path) -> Result<Self> {
        Self::with_new_files(folder).map_err(cannot_save(folder))
    }

    fn with_new_files(path: &Path) -> io::Result<Self> {
        let lock = Lock::of(open_own(path)?)?;
        let folder = lock.folder();
        clear(&folder)?;
        let name = new_name()?;
        // A saver that was killed has left it, and its content is worth nothing.
        match fs::remove_file(folder.join(STATE_NEW)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let state = create(&folder.join(STATE_NEW), 0o600)?;
        // It is never written to again: its identity would change.
        let memory = create(&folder.join(&name), 0o400).inspect_err(|_| {
            let _ = fs::remove_file(folder.join(STATE_NEW));
        })?;
        Ok(SnapshotFolder {
            path: path.into(),
            lock,
            files: SaveFiles {
                state,
                memory,
                name,
            },
            published: false,
        })
    }

    /// Returns the new files.
    pub fn files(&self) -> &SaveFiles {
        &self.files
    }

    /// Puts the new snapshot in the old one's place. A machine must have been saved into the files.
    ///
    /// # Errors
    ///
    /// [`Error::Save`] where the folder can't be changed, in which case the old snapshot is still whole.
    pub fn publish(mut self) -> Result<()> {
        let published = self.replace();
        published.map_err(cannot_save(&self.path))
    }

    fn replace(&mut self) -> io::Result<()> {
        let folder = self.lock.folder();
        fs::rename(folder.join(STATE_NEW), folder.join(SaveFiles::STATE))?;
        self.published = true;
        // The rename reaches the disk before the old memory file goes.
        self.lock.0.sync_all()?;
        remove_all_but(&folder, &self.files.name);
        Ok(())
    }
}

impl Drop for SnapshotFolder {
    fn drop(&mut self) {
        if !self.published {
            // The next save deletes what can't be deleted now.
            let folder = self.lock.folder();
            let _ = fs::remove_file(folder.join(STATE_NEW));
            let _ = fs::remove_file(folder.join(&self.files.name));
        }
    }
}

/// Wraps the reason for which a snapshot can't be saved in `path`.
fn cannot_save(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Save { path, source }
}

/// Names the folder that a snapshot was to go to, which what wrote into its files doesn't know.
pub(crate) fn of_folder(error: Error, folder: &Path) -> Error {
    match error {
        Error::Save { source, .. } => cannot_save(folder)(source),
        other => other,
    }
}

/// Creates a file for writing; `mode` is for all later openings.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
}

/// Checks that the folder holds a snapshot or none, and deletes what savers that were killed have left.
fn clear(folder: &Path) -> io::Result<()> {
    for name in [SaveFiles::STATE, STATE_NEW] {
        check_replaceable(folder, name)?;
    }
    match Snapshot::memory_file(folder) {
        Ok(old) => remove_all_but(folder, &old),
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            remove_all_but(folder, "")
        }
        // A file of the user's, in a folder that was named by mistake.
        Err(Error::Snapshot {
            source: SnapshotError::Foreign,
            ..
        }) => {
            return Err(io::Error::other(NOT_OURS));
        }
        // Another version's snapshot, for one, whose memory file's name can't be read.
        Err(Error::Snapshot { .. }) => {}
        Err(Error::File { source, .. }) => return Err(source),
        Err(error) => return Err(io::Error::other(error)),
    }
    Ok(())
}

/// Refuses a folder in which something other than a regular file has a state file's name: no saver has made it, and it stays.
fn check_replaceable(folder: &Path, name: &str) -> io::Result<()> {
    match fs::symlink_metadata(folder.join(name)) {
        Ok(metadata) if !metadata.is_file() => Err(io::Error::other(format!(
            "`{name}` in it is not a regular file: name another folder"
        ))),
        // An empty one is no saver's either: a state file appears whole.
        Ok(metadata) if name == SaveFiles::STATE && metadata.len() == 0 => {
            Err(io::Error::other(NOT_OURS))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A lock on a folder, which keeps other savers out.
struct Lock(File);

impl Lock {
    fn of(folder: File) -> io::Result<Lock> {
        match folder.try_lock() {
            Ok(()) => Ok(Lock(folder)),
            Err(fs::TryLockError::WouldBlock) => Err(io::Error::other(
                "another process or thread is saving a snapshot there",
            )),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Returns a path to the folder that was checked, also when something else has taken its place.
    fn folder(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

impl Drop for Lock {
    /// Unlocks the folder. Closing it isn't always enough: a process that another thread has just forked has it open too,
    /// until it executes its program.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Opens the folder, which is created if it isn't there, and checks its owner and its mode.
fn open_own(path: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let us = geteuid().as_raw();
    let foreign = |owner: u32| {
        io::Error::other(format!(
            "it is user {owner}'s, and this is user {us}: name a folder of this user's"
        ))
    };
    let named = fs::symlink_metadata(path)?;
    if named.is_symlink() && ![us, 0].contains(&named.uid()) {
        return Err(foreign(named.uid()));
    }
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)?;
    let metadata = folder.metadata()?;
    if metadata.uid() != us {
        return Err(foreign(metadata.uid()));
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Err(io::Error::other(format!(
            "others may write to it (mode {:04o}), and could change what is saved: `chmod go-w` it, or name another folder",
            metadata.mode() & 0o7777
        )));
    }
    Ok(folder)
}

/// Returns a name that no other memory file has had.
fn new_name() -> io::Result<String> {
    let mut number = [0; 8];
    // So few bytes come at once.
    getrandom(&mut number, GetRandomFlags::empty())?;
    Ok(SaveFiles::memory_name(u64::from_ne_bytes(number)))
}

/// Deletes every other memory file, and nothing that only begins like one. One that can't be deleted takes room and does no
/// harm.
fn remove_all_but(folder: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let Some(file) = file.to_str() else { continue };
        if SaveFiles::is_memory_name(file) && file != name {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_the_save_though_a_copy_of_the_folder_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::open(folder.path()).unwrap();
        let file = open();
        // A process that was forked meanwhile has one, too.
        let _copy = file.try_clone().unwrap();
        let lock = Lock::of(file).unwrap();
        assert!(Lock::of(open()).is_err());
        drop(lock);
        Lock::of(open()).unwrap();
    }
}

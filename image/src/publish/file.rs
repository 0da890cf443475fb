//! Files of a cache.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::lock::{self, Access, is_named, is_own, open_locked};
use super::{make_folder_of, rename, touch};
use crate::io_error::{FileError, failed};

/// A file being made, locked against other makers until it is dropped.
///
/// It gets its name when it is whole: what opens that name finds all of it.
///
/// ```
/// use std::io::Write;
/// use minivm_image::Partial;
///
/// let folder = tempfile::tempdir()?;
/// let name = folder.path().join("greeting");
/// let mut partial = Partial::lock(folder.path().join("greeting.partial"))?;
/// partial.restart()?;
/// partial.file.write_all(b"hello")?;
/// assert!(!name.exists());
/// partial.publish(&name)?;
/// assert_eq!(std::fs::read(name)?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Partial {
    /// The file, which may have the beginning that an earlier maker left.
    pub file: File,
    path: PathBuf,
}

impl Partial {
    /// Opens or makes the file, in a folder of its owner's, and locks it; waits while another process makes it. Look whether it
    /// is finished by now.
    ///
    /// # Errors
    ///
    /// Where it can't be made or locked, or the process that has it locked does nothing for a quarter of an hour.
    pub fn lock(path: PathBuf) -> Result<Partial, FileError> {
        make_folder_of(&path)?;
        let operation = FlockOperation::NonBlockingLockExclusive;
        let wait = |file: &File| {
            let progress = || file.metadata().map_or(0, |metadata| metadata.len());
            lock::wait(&path, file, operation, &progress, lock::PATIENCE).map(|()| true)
        };
        let file = open_locked(&path, Access::Write, wait)?;
        let file = file.expect("a lock that is waited for is there, or an error");
        Ok(Partial { file, path })
    }

    /// Forgets what was written so far.
    ///
    /// # Errors
    ///
    /// Where the file can't be truncated.
    pub fn restart(&mut self) -> Result<(), FileError> {
        let restarted = self.file.set_len(0).and_then(|()| self.file.rewind());
        restarted.map_err(|source| self.failed(source))
    }

    /// Fills the file from its beginning by `fill`, and publishes it. Where that fails, nothing of it is left.
    ///
    /// # Errors
    ///
    /// Those of `fill`, and where the file can't be written.
    pub fn make<E: From<FileError>>(
        mut self,
        to: &Path,
        fill: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<File, E> {
        let filled = self.restart().map_err(E::from);
        match filled.and_then(|()| fill(&mut self.file)) {
            Ok(()) => Ok(self.publish(to)?),
            Err(error) => {
                // It may be large, and no maker goes on from it.
                let _ = self.discard();
                Err(error)
            }
        }
    }

    /// Puts the file, whole and checked, into its place; returns it, still locked.
    ///
    /// # Errors
    ///
    /// Where it can't be written to the disk or renamed.
    pub fn publish(self, to: &Path) -> Result<File, FileError> {
        // Without it a power failure could leave the new name with old content: none.
        self.file.sync_data().map_err(failed("write", to))?;
        if !is_named(&self.file, &self.path).map_err(failed("read", &self.path))? {
            let removed = io::Error::other("it was removed while it was made: run it once more");
            return Err(failed("create", to)(removed));
        }
        rename(&self.path, to)?;
        Ok(self.file)
    }

    /// Removes the file.
    ///
    /// # Errors
    ///
    /// Where it can't be removed.
    pub fn discard(self) -> Result<(), FileError> {
        let removed = match is_named(&self.file, &self.path) {
            Ok(true) => fs::remove_file(&self.path),
            named => named.map(|_| ()),
        };
        removed.map_err(failed("remove", &self.path))
    }

    /// The error of a system call on the file.
    pub(crate) fn failed(&self, source: io::Error) -> FileError {
        failed("write", &self.path)(source)
    }
}

/// What [`find`] has found.
#[derive(Debug)]
pub enum Found<T> {
    /// The entry.
    There(T),
    /// None: it is for this process to make it, as this file.
    Missing(Partial),
}

/// Opens an entry by `open`, or locks the file `partial` to make it where that returns `None`. Of several processes one makes it,
/// and the others wait for its lock and open what it has made.
///
/// # Errors
///
/// Those of `open`, and where `partial` can't be made or locked.
pub fn find<T, E: From<FileError>>(
    partial: PathBuf,
    open: impl Fn() -> Result<Option<T>, E>,
) -> Result<Found<T>, E> {
    if let Some(there) = open()? {
        return Ok(Found::There(there));
    }
    let partial = Partial::lock(partial)?;
    match open()? {
        Some(there) => {
            partial.discard()?;
            Ok(Found::There(there))
        }
        None => Ok(Found::Missing(partial)),
    }
}

/// Opens a finished file for reading; `None` where there is none, or something else is in its place.
///
/// # Errors
///
/// Where it is there and can't be opened.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        there => there?,
    };
    if !is_own(path, &there)? {
        return Ok(None);
    }
    match rustix::fs::open(path, flags, Mode::empty()) {
        // Closed even to its owner, or removed or replaced in this moment.
        Err(Errno::ACCESS | Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
        opened => {
            let file = File::from(opened?);
            Ok(file.metadata()?.is_file().then_some(file))
        }
    }
}

/// Opens a finished file and keeps it there until it is closed: it is locked together with its other users, and used now. `None`
/// where there is none, or an empty one, as a power failure leaves it.
///
/// # Errors
///
/// Where it is there and can't be opened or locked.
pub fn hold(path: &Path) -> Result<Option<File>, FileError> {
    match open(path).map_err(failed("open", path))? {
        Some(file) => hold_open(file, path),
        None => Ok(None),
    }
}

/// As [`hold`], with the file that [`Partial::publish`] has returned.
///
/// # Errors
///
/// Where it can't be locked.
pub fn hold_open(file: File, path: &Path) -> Result<Option<File>, FileError> {
    let operation = FlockOperation::NonBlockingLockShared;
    lock::wait(path, &file, operation, &|| 0, lock::PATIENCE).map_err(failed("lock", path))?;
    let there = is_named(&file, path).and_then(|named| Ok(named && file.metadata()?.len() > 0));
    if !there.map_err(failed("read", path))? {
        return Ok(None);
    }
    touch(&file);
    Ok(Some(file))
}

/// Keeps an open file from being removed until it is closed, and notes its use. Where that can't be, in a store that can only be
/// read, its name may go early: what has it open can read it all the same.
pub(crate) fn keep_there(file: &File) {
    while flock(file, FlockOperation::LockShared) == Err(Errno::INTR) {}
    touch(file);
}

/// Returns whether a process makes or uses a finished file, or what the file is the lock of. It needn't be there.
pub fn is_in_use(path: &Path) -> bool {
    let Ok(Some(file)) = open(path) else {
        return false;
    };
    let locked = lock::try_once(&file, FlockOperation::NonBlockingLockExclusive);
    // A process that another thread has just forked has the file open too: closing is not enough.
    let _ = flock(&file, FlockOperation::Unlock);
    matches!(locked, Ok(false))
}

//! Locks between processes, each on a file that is made where it isn't there.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

use super::{folder_of, make_folder_of, touch, tree};
use crate::io_error::{FileError, failed};

/// How long another process may hold a lock without progress: longer than any pause of a pull, an engine or an installer.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);
/// How often a lock is tried that another process holds.
pub(super) const POLL: Duration = Duration::from_millis(20);
/// How often a file's place is cleared. Each time another process would have had to put something there.
const TRIES: u32 = 10;
/// Permissions of a lock's file and of a partial one: its owner's to read and write.
const OWNERS: u32 = 0o600;

/// How a file is opened that is to be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// For writing.
    Write,
    /// For writing, or where that can't be, in a cache that can only be read, for reading.
    Any,
}

/// A file that this process has locked, until the value is dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Locks the file of this name for this process alone; it is made where it isn't there, in a folder of its owner's. `None`
    /// where another process has locked it.
    ///
    /// # Errors
    ///
    /// Where the file can't be made or locked.
    pub fn try_alone(path: &Path) -> Result<Option<Lock>, FileError> {
        Lock::take(path, FlockOperation::NonBlockingLockExclusive, None)
    }

    /// Locks the file together with others; waits while another process has locked it alone.
    ///
    /// # Errors
    ///
    /// Where the file can't be made or locked, or another process keeps it locked for a quarter of an hour.
    pub fn shared(path: &Path) -> Result<Lock, FileError> {
        Lock::wait_shared(path, &|| 0)
    }

    /// As [`shared`](Self::shared), for as long as the other process makes progress.
    pub(super) fn wait_shared(path: &Path, progress: &dyn Fn() -> u64) -> Result<Lock, FileError> {
        Lock::wait(path, FlockOperation::NonBlockingLockShared, progress)
    }

    /// Locks the file alone; waits while another process has locked it, for as long as that makes progress.
    pub(super) fn wait_alone(path: &Path, progress: &dyn Fn() -> u64) -> Result<Lock, FileError> {
        Lock::wait(path, FlockOperation::NonBlockingLockExclusive, progress)
    }

    fn wait(
        path: &Path,
        operation: FlockOperation,
        progress: &dyn Fn() -> u64,
    ) -> Result<Lock, FileError> {
        let taken = Lock::take(path, operation, Some(progress))?;
        Ok(taken.expect("a lock that is waited for is there, or an error"))
    }

    fn take(
        path: &Path,
        operation: FlockOperation,
        progress: Option<&dyn Fn() -> u64>,
    ) -> Result<Option<Lock>, FileError> {
        make_folder_of(path)?;
        let lock = |file: &File| match progress {
            Some(progress) => wait(path, file, operation, progress, PATIENCE).map(|()| true),
            None => try_once(file, operation),
        };
        Ok(open_locked(path, Access::Any, lock)?.map(Lock))
    }

    /// Returns the locked file.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Notes that what the lock guards is used now. Where that can't be noted, it is removed earlier than it should be.
    pub fn touch(&self) {
        touch(&self.0);
    }
}

impl Drop for Lock {
    /// Unlocks the file. Closing alone wouldn't always: a process that another thread has just forked has the file open too,
    /// until it executes its program.
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opens and locks the file of this name; `None` where `lock` returns `false`.
pub(super) fn open_locked(
    path: &Path,
    access: Access,
    lock: impl Fn(&File) -> io::Result<bool>,
) -> Result<Option<File>, FileError> {
    loop {
        let file = open_own(path, access).map_err(failed("open", path))?;
        if !lock(&file).map_err(failed("lock", path))? {
            return Ok(None);
        }
        // The process that had the lock before may have renamed or removed the file meanwhile.
        if is_named(&file, path).map_err(failed("read", path))? {
            return Ok(Some(file));
        }
    }
}

/// Returns whether the file still has this name.
pub(super) fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Locks an open file, unless another process has locked it; returns whether it is locked.
pub(super) fn try_once(file: &File, operation: FlockOperation) -> io::Result<bool> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            locked => return locked.map(|()| true).map_err(Into::into),
        }
    }
}

/// Waits as long as the process that has the lock makes progress, and then for `patience`: that process may be stopped. Ends
/// without the lock where the file has another name, or none: its maker has published it, and may use it for long.
pub(super) fn wait(
    path: &Path,
    file: &File,
    operation: FlockOperation,
    progress: &dyn Fn() -> u64,
    patience: Duration,
) -> io::Result<()> {
    let mut seen = None;
    let mut since = Instant::now();
    while !try_once(file, operation)? {
        if seen.is_none() {
            log::info!("waiting for another process that makes {}", path.display());
            seen = Some(progress());
        }
        if !is_named(file, path)? {
            return Ok(());
        }
        if since.elapsed() > patience {
            let now = Some(progress());
            if now == seen {
                return Err(io::Error::other(
                    "another process has it locked and does nothing: end that one",
                ));
            }
            (seen, since) = (now, Instant::now());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Opens the file of this name, or makes it, for its owner only. What else stands in its place is removed.
pub(super) fn open_own(path: &Path, access: Access) -> io::Result<File> {
    for _ in 0..TRIES {
        if !clear_place(path)? {
            return open_there(path, access);
        }
    }
    let text = "what doesn't belong there comes into its place again and again";
    Err(io::Error::other(text))
}

/// Opens a regular file, or makes it. A pipe that has just come into its place is not waited for, nor a link followed.
fn open_there(path: &Path, access: Access) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = flags | OFlags::RDWR | OFlags::CREATE;
    match open(path, write, Mode::from_raw_mode(OWNERS)) {
        Err(error) if access == Access::Any => {
            let read = open(path, flags | OFlags::RDONLY, Mode::empty());
            Ok(read.map_err(|_| error)?.into())
        }
        opened => Ok(opened?.into()),
    }
}

/// Removes what stands in a file's place and isn't a file of ours that can be written to; returns whether anything did.
///
/// The folder is locked for it: two processes that find it at once could otherwise remove what the first has made instead.
fn clear_place(path: &Path) -> io::Result<bool> {
    if belongs_there(path)? {
        return Ok(false);
    }
    let folder = File::open(folder_of(path))?;
    // A network's file system may not lock folders.
    while flock(&folder, FlockOperation::LockExclusive) == Err(Errno::INTR) {}
    if belongs_there(path)? {
        return Ok(false);
    }
    match tree::remove(path).whole() {
        Ok(_) => Ok(true),
        Err(error) => Err(error.source),
    }
}

/// Returns whether nothing has this name, or a file of ours that can be written to.
fn belongs_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(is_own(path, &there)? && there.mode() & OWNERS == OWNERS),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Returns whether it is a regular file of this process's user, or of the user that owns the folder.
pub(super) fn is_own(path: &Path, there: &Metadata) -> io::Result<bool> {
    if !there.is_file() {
        return Ok(false);
    }
    let us = rustix::process::geteuid().as_raw();
    Ok(there.uid() == us || there.uid() == fs::metadata(folder_of(path))?.uid())
}

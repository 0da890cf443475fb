//! Folders of a cache.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use rustix::fs::syncfs;

use super::lock::{Lock, PATIENCE, POLL};
use super::tree::{self, Cleared};
use super::{make_folder, rename};
use crate::io_error::{FileError, failed};

const LOCK: &str = "lock";
const PARTIAL: &str = "partial";

/// An entry that is a folder, `NAME`, with its lock, `NAME.lock`, and the folder as which it is filled, `NAME.partial`. Of these
/// names what follows a last dot in `NAME` isn't a part.
///
/// ```
/// use minivm_image::io_error::FileError;
/// use minivm_image::publish::Folder;
///
/// let cache = tempfile::tempdir()?;
/// let entry = Folder::new(cache.path().join("greetings"));
/// for made in [true, false] {
///     let held = entry.open_or_make(|_| true, |partial, _lock| {
///         std::fs::write(partial.join("hello"), "world").unwrap();
///         Ok::<_, FileError>(())
///     })?;
///     assert_eq!(held.1, made);
///     assert_eq!(std::fs::read(entry.path().join("hello"))?, b"world");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The entry of this path, which needn't be there.
    pub fn new(path: impl Into<PathBuf>) -> Folder {
        Folder { path: path.into() }
    }

    /// The entries in a folder that are there, whole or not, or were: their paths, by name.
    ///
    /// # Errors
    ///
    /// Where the folder is there and can't be read.
    pub fn all(folder: &Path) -> Result<BTreeSet<PathBuf>, FileError> {
        let mut all = BTreeSet::new();
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            entries => entries.map_err(failed("read", folder))?,
        };
        for entry in entries {
            let path = entry.map_err(failed("read", folder))?.path();
            let extension = path.extension();
            if extension.is_none_or(|extension| extension == LOCK || extension == PARTIAL) {
                all.insert(path.with_extension(""));
            }
        }
        Ok(all)
    }

    /// The folder, as its users find it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder as which it is filled, and removed.
    pub fn partial_path(&self) -> PathBuf {
        self.path.with_extension(PARTIAL)
    }

    /// The file that makers and users lock.
    pub fn lock_path(&self) -> PathBuf {
        self.path.with_extension(LOCK)
    }

    /// Whether there is a folder of this name, and no link to one.
    pub fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|there| there.is_dir())
    }

    /// Locks the entry together with its other users; waits while it is being made or removed.
    ///
    /// # Errors
    ///
    /// Where the lock can't be made or locked, or its holder does nothing for a quarter of an hour.
    pub fn hold(&self) -> Result<Lock, FileError> {
        Lock::wait_shared(&self.lock_path(), &|| self.progress())
    }

    /// Locks the entry alone; waits while it is being used, made or removed.
    ///
    /// # Errors
    ///
    /// As [`hold`](Self::hold)'s.
    pub fn lock(&self) -> Result<Lock, FileError> {
        Lock::wait_alone(&self.lock_path(), &|| self.progress())
    }

    /// Locks the entry alone; `None` where it is being used, made or removed.
    ///
    /// # Errors
    ///
    /// Where the lock can't be made or locked.
    pub fn try_lock(&self) -> Result<Option<Lock>, FileError> {
        Lock::try_alone(&self.lock_path())
    }

    /// What the process that has the lock has got done, in a number.
    fn progress(&self) -> u64 {
        tree::size(&self.partial_path())
    }

    /// Opens the entry, or makes it by `fill`, which gets an empty folder and the lock, where it isn't there or not whole. Of
    /// several processes one makes it, and the others wait and find it made. Returns the lock that keeps the entry there, and
    /// whether it was made.
    ///
    /// # Errors
    ///
    /// Those of `fill`, after which nothing of it is left, and where the entry can't be locked or written.
    pub fn open_or_make<E: From<FileError>>(
        &self,
        is_whole: impl Fn(&Path) -> bool,
        mut fill: impl FnMut(&Path, &Lock) -> Result<(), E>,
    ) -> Result<(Lock, bool), E> {
        let is_whole = || self.is_there() && is_whole(&self.path);
        let mut made = false;
        let began = Instant::now();
        loop {
            let shared = self.hold()?;
            if is_whole() {
                shared.touch();
                return Ok((shared, made));
            }
            drop(shared);
            // It isn't waited for alone: the process that makes it meanwhile may use it for long.
            match self.try_lock()? {
                Some(_) if is_whole() => {}
                Some(alone) => {
                    let partial = self.begin(&alone)?;
                    fill(partial.path(), &alone)?;
                    partial.publish()?;
                    made = true;
                }
                None if began.elapsed() > PATIENCE => {
                    let why = "another process uses what is left of it: end that one";
                    return Err(failed("lock", &self.path)(io::Error::other(why)).into());
                }
                None => thread::sleep(POLL),
            }
        }
    }

    /// Makes an empty folder to fill, in place of what another maker has left. The lock is the entry's, held alone.
    ///
    /// # Errors
    ///
    /// Where what is left can't be removed, or the folder not be made.
    pub fn begin<'l>(&self, _lock: &'l Lock) -> Result<Unfinished<'l>, FileError> {
        let path = self.partial_path();
        tree::remove(&path).whole()?;
        make_folder(&path).map_err(failed("create", &path))?;
        Ok(Unfinished {
            path,
            entry: self.path.clone(),
            _lock,
        })
    }

    /// Removes what there is of the entry, and at last its lock, which is the one given, held alone. What can't be removed keeps
    /// the lock's file there.
    pub fn remove(&self, lock: Lock) -> Cleared {
        let partial = self.partial_path();
        let mut cleared = tree::remove(&partial);
        // Under its own name it is whole, also if this process is killed now.
        match fs::rename(&self.path, &partial) {
            Ok(()) => cleared.add(tree::remove(&partial)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => cleared.note(failed("remove", &self.path)(error)),
        }
        if cleared.left.is_empty() {
            let path = self.lock_path();
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    cleared.note(failed("remove", &path)(error));
                }
                _ => {}
            }
        }
        drop(lock);
        cleared
    }
}

/// A folder that is being filled. Dropped before it is published, it is removed.
#[derive(Debug)]
pub struct Unfinished<'l> {
    path: PathBuf,
    entry: PathBuf,
    /// Keeps other makers out as long as this is there.
    _lock: &'l Lock,
}

impl Unfinished<'_> {
    /// The folder to fill.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings all that is in the folder to the disk, and gives it the entry's name, in place of what is there and not whole.
    ///
    /// # Errors
    ///
    /// Where the disk has no room, or the name can't be given to it.
    pub fn publish(self) -> Result<(), FileError> {
        bring_to_disk(&self.path, &self.entry)?;
        rename(&self.path, &self.entry)
    }

    /// As [`publish`](Self::publish), where the files in it are on the disk already.
    ///
    /// # Errors
    ///
    /// Where the name can't be given to it.
    pub fn publish_synced(self) -> Result<(), FileError> {
        rename(&self.path, &self.entry)
    }

    /// As [`publish`](Self::publish), but of a folder in this one, under a name that was not known before. The rest is removed.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish)'s.
    pub fn publish_part(self, part: &str, to: &Path) -> Result<(), FileError> {
        let whole = self.path.join(part);
        bring_to_disk(&whole, to)?;
        rename(&whole, to)
    }
}

/// Writes a folder with all that is in it to the disk. It is to become `to`.
fn bring_to_disk(folder: &Path, to: &Path) -> Result<(), FileError> {
    let synced = File::open(folder).and_then(|folder| Ok(syncfs(&folder)?));
    synced.map_err(failed("write", to))
}

impl Drop for Unfinished<'_> {
    /// Removes what has not been published. It may be large, and no maker goes on from it.
    fn drop(&mut self) {
        let left = tree::remove(&self.path);
        for error in left.left {
            log::debug!(
                "a partial entry of the cache is left: {error}: {}",
                error.source
            );
        }
    }
}

//! Removal of trees, whatever is in them.
//!
//! A tree that came out of an image may be deeper than a path is long, or than there are descriptors, and its folders may be
//! closed even to their owner. So a walk goes from open folder to open folder, down by a name and up by `..`, and has two of
//! them open at a time. It leaves what is mounted in a tree alone. What can't be removed is noted, and the rest goes.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, chmodat, fstat,
    openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

use super::lock;
use crate::io_error::{FileError, failed};

/// The most reasons that are kept.
const TOLD: usize = 20;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const OWNERS: Mode = Mode::RWXU;

/// The result of a removal: what was removed, and what could not be.
#[derive(Debug)]
pub struct Cleared<E = FileError> {
    /// Bytes of the files that are gone.
    pub freed: u64,
    /// The first reasons why something is left that should have gone.
    pub left: Vec<E>,
    /// Number of further reasons.
    pub more: u64,
}

impl<E> Default for Cleared<E> {
    fn default() -> Self {
        Cleared {
            freed: 0,
            left: Vec::new(),
            more: 0,
        }
    }
}

impl<E> Cleared<E> {
    /// Notes that something is left.
    pub fn note(&mut self, error: E) {
        match self.left.len() < TOLD {
            true => self.left.push(error),
            false => self.more += 1,
        }
    }

    /// Adds what was removed and left elsewhere.
    pub fn add<F: Into<E>>(&mut self, other: Cleared<F>) {
        self.freed += other.freed;
        self.more += other.more;
        let left = other.left.into_iter().map(Into::into);
        left.for_each(|error| self.note(error));
    }

    /// Returns how many bytes are gone, if nothing is left.
    ///
    /// # Errors
    ///
    /// The first reason why something is left.
    pub fn whole(mut self) -> Result<u64, E> {
        match self.left.is_empty() {
            true => Ok(self.freed),
            false => Err(self.left.swap_remove(0)),
        }
    }
}

/// Removes what has this name, a folder with all that is in it. It needn't be there.
pub fn remove(folder: &Path) -> Cleared {
    let mut cleared = Cleared::default();
    let (Some(above), Some(name)) = (folder.parent(), folder.file_name()) else {
        return cleared;
    };
    match File::open(above) {
        Ok(open) => {
            let mut walk = Walk::new(open.into(), above, What::All);
            walk.enter(name.to_owned());
            walk.finish();
            walk.cleared
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => cleared,
        Err(error) => {
            cleared.note(failed("open", above)(error));
            cleared
        }
    }
}

/// Removes the files in a folder and below it, but for `kept` and those that a process has locked. Folders stay.
pub fn remove_unlocked(folder: &Path, kept: &[PathBuf]) -> Cleared {
    walk_in(folder, What::Unlocked(kept))
}

/// Removes a file unless a process has locked it; returns whether it is gone, which it isn't either where it can't be removed.
pub fn remove_if_unlocked(path: &Path) -> bool {
    remove_file(path).unwrap_or(false)
}

/// Removes a file unless a process has locked it; returns whether it is gone. It needn't be there.
///
/// # Errors
///
/// Where it can't be removed.
pub fn remove_file(path: &Path) -> io::Result<bool> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    let removed = File::open(above).and_then(|open| {
        let walk = Walk::new(open.into(), above, What::Unlocked(&[]));
        let stat = statat(&walk.here, name, AtFlags::SYMLINK_NOFOLLOW)?;
        walk.take(name, &stat)
    });
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        removed => removed,
    }
}

/// Counts the bytes of the files in a folder and below it.
pub fn size(folder: &Path) -> u64 {
    walk_in(folder, What::None).freed
}

fn walk_in(folder: &Path, what: What<'_>) -> Cleared {
    let mut cleared = Cleared::default();
    match File::open(folder) {
        Ok(open) => {
            let mut walk = Walk::new(open.into(), folder, what);
            walk.begin();
            walk.finish();
            walk.cleared
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => cleared,
        Err(error) => {
            cleared.note(failed("open", folder)(error));
            cleared
        }
    }
}

/// What a walk removes.
#[derive(Clone, Copy)]
enum What<'a> {
    /// Files and folders.
    All,
    /// Files that no process has locked, without these.
    Unlocked(&'a [PathBuf]),
    /// Nothing: files are counted as if they went.
    None,
}

/// A folder that a walk is in.
struct Level {
    name: OsString,
    /// The folder that it is in; none for the one in which the walk began.
    above: Option<(u64, u64)>,
    /// Folders in it that the walk still has to enter.
    below: Vec<OsString>,
    /// Whether something in it is left.
    stays: bool,
}

struct Walk<'a> {
    here: OwnedFd,
    /// Where that is.
    path: PathBuf,
    levels: Vec<Level>,
    what: What<'a>,
    cleared: Cleared,
}

impl<'a> Walk<'a> {
    fn new(here: OwnedFd, path: &Path, what: What<'a>) -> Self {
        Walk {
            here,
            path: path.to_owned(),
            levels: Vec::new(),
            what,
            cleared: Cleared::default(),
        }
    }

    fn finish(&mut self) {
        while let Some(level) = self.levels.last_mut() {
            match level.below.pop() {
                Some(name) => self.enter(name),
                None => self.leave(),
            }
        }
    }

    /// Takes the files of the folder in which the walk begins.
    fn begin(&mut self) {
        self.levels.push(Level {
            name: OsString::new(),
            above: None,
            below: Vec::new(),
            stays: true,
        });
        self.take_files();
    }

    /// Goes into a folder and takes its files.
    fn enter(&mut self, name: OsString) {
        let above = match fstat(&self.here) {
            Ok(above) => identity(&above),
            Err(error) => return self.stays(&name, "read", error.into()),
        };
        match self.open(&name) {
            Ok(folder) => {
                self.here = folder;
                self.path.push(&name);
                self.levels.push(Level {
                    name,
                    above: Some(above),
                    below: Vec::new(),
                    stays: false,
                });
                self.take_files();
            }
            Err(Errno::NOENT) => {}
            // It is a file, or a link: where the walk begins anything may be.
            Err(Errno::NOTDIR | Errno::LOOP) if matches!(self.what, What::All) => {
                if let Err(error) = unlinkat(&self.here, &name, AtFlags::empty()) {
                    self.stays(&name, "remove", error.into());
                }
            }
            Err(Errno::XDEV) => {
                let mounted = io::Error::other("another file system is mounted there: unmount it");
                self.stays(&name, "remove", mounted);
            }
            Err(error) => self.stays(&name, "open", error.into()),
        }
    }

    /// Opens a folder, which its owner may do anything in from then on, and that there is a way out of.
    fn open(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        let changes = !matches!(self.what, What::None);
        let folder = match self.open_as_it_is(name) {
            Err(Errno::ACCESS) if changes => {
                chmodat(&self.here, name, OWNERS, AtFlags::empty())?;
                self.open_as_it_is(name)?
            }
            opened => opened?,
        };
        let mode = Mode::from_raw_mode(fstat(&folder)?.st_mode);
        if changes && !mode.contains(OWNERS) {
            // Where that can't be, its files may go all the same.
            let _ = rustix::fs::fchmod(&folder, OWNERS);
        }
        openat(&folder, "..", FOLDER, Mode::empty())?;
        Ok(folder)
    }

    fn open_as_it_is(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        let flags = FOLDER | OFlags::NOFOLLOW;
        let alone = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        match openat2(&self.here, name, flags, Mode::empty(), alone) {
            // An old kernel, or a filter of system calls.
            Err(Errno::NOSYS | Errno::PERM) => {
                let folder = openat(&self.here, name, flags, Mode::empty())?;
                match fstat(&folder)?.st_dev == fstat(&self.here)?.st_dev {
                    true => Ok(folder),
                    false => Err(Errno::XDEV),
                }
            }
            opened => opened,
        }
    }

    /// Takes the files of the folder that the walk is in, and notes its folders.
    fn take_files(&mut self) {
        let names = match names(&self.here) {
            Ok(names) => names,
            Err(error) => return self.stays(OsStr::new(""), "read", error.into()),
        };
        for name in names {
            let stat = match statat(&self.here, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => {
                    self.stays(&name, "read", error.into());
                    continue;
                }
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                if let Some(level) = self.levels.last_mut() {
                    level.below.push(name);
                }
                continue;
            }
            match self.take(&name, &stat) {
                Ok(true) => {
                    let size = u64::try_from(stat.st_size).unwrap_or(0);
                    #[allow(
                        clippy::useless_conversion,
                        reason = "arm64's number of links is a u32"
                    )]
                    let links = u64::from(stat.st_nlink.max(1));
                    self.cleared.freed += size / links;
                }
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.stays(&name, "remove", error),
            }
        }
    }

    /// Removes a file, if the walk removes such; returns whether it did.
    fn take(&self, name: &OsStr, stat: &Stat) -> io::Result<bool> {
        let mut file = None;
        if let What::Unlocked(kept) = self.what {
            if kept.contains(&self.path.join(name)) {
                return Ok(false);
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                let opened = file.insert(self.open_file(name)?);
                if !lock::try_once(opened, FlockOperation::NonBlockingLockExclusive)? {
                    return Ok(false);
                }
            }
        }
        if !matches!(self.what, What::None) {
            unlinkat(&self.here, name, AtFlags::empty())?;
        }
        // The lock is ours until the name is gone: a process that waits for it sees that its file has no name.
        drop(file);
        Ok(true)
    }

    /// A network's file system locks for one alone only what can be written to.
    fn open_file(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |access| openat(&self.here, name, flags | access, Mode::empty());
        let opened = open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY));
        Ok(opened?.into())
    }

    /// Goes back to the folder above, and removes the one that was left, if all in it went.
    fn leave(&mut self) {
        let Some(level) = self.levels.pop() else {
            return;
        };
        let Some(above) = level.above else {
            return;
        };
        let opened = openat(&self.here, "..", FOLDER, Mode::empty()).and_then(|folder| {
            match identity(&fstat(&folder)?) == above {
                true => Ok(folder),
                false => Err(Errno::STALE),
            }
        });
        match opened {
            Ok(folder) => self.here = folder,
            // Another process has moved it: where this is now isn't known.
            Err(error) => {
                self.levels.clear();
                let path = &self.path;
                return self.cleared.note(failed("leave", path)(error.into()));
            }
        }
        self.path.pop();
        let goes = matches!(self.what, What::All) && !level.stays;
        let removed = match goes {
            true => unlinkat(&self.here, &level.name, AtFlags::REMOVEDIR),
            false => Ok(()),
        };
        match removed {
            Err(Errno::NOENT) => {}
            Err(error) => self.stays(&level.name, "remove", error.into()),
            Ok(()) if level.stays => self.mark(),
            Ok(()) => {}
        }
    }

    /// Notes that something in the folder that the walk is in is left.
    fn stays(&mut self, name: &OsStr, action: &'static str, why: io::Error) {
        self.mark();
        let path = match name.is_empty() {
            true => self.path.clone(),
            false => self.path.join(name),
        };
        self.cleared.note(failed(action, &path)(why));
    }

    fn mark(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.stays = true;
        }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// The names in a folder: all of them before one is removed.
fn names(folder: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_owned();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(&name).to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;

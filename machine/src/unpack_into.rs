//! Unpacking of cpio archives into a folder. Archives are hostile: they come from guests, or are made of images.
//!
//! The folder is opened once and never left. Names come from [`minivm_guest::unpack`], which lets only those pass that are
//! relative and have no `..` in them. The folder that a name is in is opened below the first one, through no link, and stays
//! open as long as names in it come; all that is done with an entry is done in that folder, by the last part of its name. So
//! at most three folders are open at a time, however deep they are, and a name never leads through a link, whichever process
//! has put it there and when.
//!
//! Folders are their owner's alone until all is in them, and get their permissions and times then. Devices and the bits that
//! give privileges are left out: here they would be the host's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use minivm_guest::unpack::{Entry, Kind};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fchmod, futimens, linkat,
    mkdirat, openat, openat2, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

/// Bytes of a file between two looks at whether it is over.
pub(crate) const CHUNK: usize = 64 << 10;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What an archive may do.
#[derive(Clone, Copy)]
pub(crate) struct Policy<'a> {
    /// What becomes of what is there already.
    pub(crate) there: There<'a>,
    /// Which symbolic links are made.
    pub(crate) links: Links,
    /// Whether several names can be one file. If not, each is a file.
    pub(crate) hard_links: bool,
    /// The permissions that files and folders can have.
    pub(crate) permissions: u32,
    /// The permissions that folders have in any case.
    pub(crate) folders: u32,
    /// Whether all of a folder comes right behind it. A folder that is left is finished then, and nothing comes into it any more.
    pub(crate) in_order: bool,
    /// Ends it, between two pieces of a file.
    pub(crate) is_over: &'a dyn Fn() -> bool,
}

/// What becomes of what is there already.
#[derive(Clone, Copy)]
pub(crate) enum There<'a> {
    /// It is an error: the folder was empty.
    Refused,
    /// Files and links give way, folders are filled, and all else stays as it is. Until it is whole, a file has this name, which
    /// no archive can know.
    Replaced(&'a str),
}

/// Which symbolic links are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// All, at last: they may lead anywhere, for the processes that follow them have the folder as their root.
    All,
    /// Those that stay in the folder, wherever they are followed from.
    Inside,
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// It is there.
    Whole,
    /// It was left out, for this reason.
    LeftOut(String),
}

/// A folder that is filled.
pub(crate) struct Target<'a> {
    root: OwnedFd,
    policy: Policy<'a>,
    /// The folder that the last entry was in, or was, below the root.
    path: PathBuf,
    folder: OwnedFd,
    /// Folders that are to be finished, each before those in it.
    folders: Vec<Folder>,
    /// Links that are made at last.
    links: Vec<(PathBuf, PathBuf, u32)>,
    /// The first name of each file that has more.
    names: HashMap<u32, PathBuf>,
    /// A piece of a file.
    buffer: RefCell<Vec<u8>>,
}

/// What a folder gets when all is in it.
struct Folder {
    path: PathBuf,
    permissions: u32,
    mtime: u32,
}

impl<'a> Target<'a> {
    /// Fills the folder, which is open.
    pub(crate) fn new(root: OwnedFd, policy: Policy<'a>) -> io::Result<Self> {
        Ok(Target {
            folder: root.try_clone()?,
            root,
            policy,
            path: PathBuf::new(),
            folders: Vec::new(),
            links: Vec::new(),
            names: HashMap::new(),
            buffer: RefCell::new(vec![0; CHUNK]),
        })
    }

    /// Gives the folder itself the permissions and time of an entry, when all is in it.
    pub(crate) fn be(&mut self, entry: &Entry) -> io::Result<()> {
        fchmod(&self.root, Mode::RWXU)?;
        self.push(Path::new(""), entry);
        Ok(())
    }

    /// Adds an entry, as `path`.
    ///
    /// # Errors
    ///
    /// Where it can't be made, or must not be; what was there stays then, and what isn't whole is gone.
    pub(crate) fn add(
        &mut self,
        path: &Path,
        entry: &Entry,
        data: &mut impl Read,
    ) -> io::Result<Added> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let above = path.parent().unwrap_or(Path::new(""));
        self.enter(above)?;
        let there = self.there(name)?;
        if let Some(what) = there.and_then(special) {
            return match entry.kind {
                Kind::Folder => Err(io::Error::other("its files have no place")),
                _ => left_out(&format!("{what} is in its place")),
            };
        }
        match &entry.kind {
            Kind::Folder => self.make_folder(path, name, there, entry)?,
            Kind::File { .. } => self.make_file(path, name, entry, data)?,
            Kind::Symlink(to) if self.policy.links == Links::All => {
                self.links.push((path.to_owned(), to.clone(), entry.mtime));
            }
            Kind::Symlink(to) if !stays_inside(path.components().count(), to) => {
                return left_out("a link that may lead elsewhere");
            }
            Kind::Symlink(_) if there == Some(FileType::Directory) => {
                return left_out("a link in the place of a folder");
            }
            Kind::Symlink(to) => {
                self.make_way(name, there)?;
                self.make_link(name, to, entry.mtime)?;
            }
            Kind::Other => return left_out("neither a file, a folder nor a link"),
        }
        Ok(Added::Whole)
    }

    /// Makes the links that come at last, and finishes all folders, whatever the first error is.
    ///
    /// # Errors
    ///
    /// The first.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let mut all = Ok(());
        for (path, to, mtime) in std::mem::take(&mut self.links) {
            let made = self
                .open(path.parent().unwrap_or(Path::new("")))
                .and_then(|()| {
                    let name = path.file_name().ok_or(Errno::INVAL)?;
                    self.make_link(name, &to, mtime)
                });
            all = all.and(made);
        }
        all.and(self.finish_until(|_| false))
    }

    /// Opens the folder of a name.
    fn enter(&mut self, above: &Path) -> io::Result<()> {
        if self.policy.in_order && self.path != above {
            let left = !self.path.starts_with(above);
            self.finish_until(|folder| above.starts_with(&folder.path))?;
            if left {
                return Err(io::Error::other("it comes without its folder"));
            }
        }
        self.open(above)
    }

    fn open(&mut self, path: &Path) -> io::Result<()> {
        if self.path != path {
            self.folder = open_below(self.root.as_fd(), path)?;
            path.clone_into(&mut self.path);
        }
        Ok(())
    }

    fn push(&mut self, path: &Path, entry: &Entry) {
        self.folders.push(Folder {
            path: path.to_owned(),
            permissions: entry.permissions & self.policy.permissions | self.policy.folders,
            mtime: entry.mtime,
        });
    }

    /// Finishes folders, the deepest first, for one may be closed even to its owner then.
    fn finish_until(&mut self, stays: impl Fn(&Folder) -> bool) -> io::Result<()> {
        let mut all = Ok(());
        while let Some(folder) = self.folders.pop_if(|folder| !stays(folder)) {
            let finished = self.open(&folder.path).and_then(|()| {
                fchmod(&self.folder, Mode::from_raw_mode(folder.permissions))?;
                Ok(futimens(&self.folder, &times(folder.mtime))?)
            });
            all = all.and(finished);
        }
        all
    }

    /// What has this name in the open folder, where that may be anything; a link is a link.
    fn there(&self, name: &OsStr) -> io::Result<Option<FileType>> {
        if let There::Refused = self.policy.there {
            return Ok(None);
        }
        match statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes the file or link that has this name.
    fn make_way(&self, name: &OsStr, there: Option<FileType>) -> io::Result<()> {
        match there {
            Some(_) => Ok(unlinkat(&self.folder, name, AtFlags::empty())?),
            None => Ok(()),
        }
    }

    /// Makes a folder, in place of a file or a link, or opens the one that is there.
    fn make_folder(
        &mut self,
        path: &Path,
        name: &OsStr,
        there: Option<FileType>,
        entry: &Entry,
    ) -> io::Result<()> {
        if there != Some(FileType::Directory) {
            self.make_way(name, there)?;
            mkdirat(&self.folder, name, Mode::RWXU)?;
        }
        self.folder = open_own(self.folder.as_fd(), name)?;
        path.clone_into(&mut self.path);
        self.push(path, entry);
        Ok(())
    }

    /// Makes a file, or gives the one that it is one more name.
    fn make_file(
        &mut self,
        path: &Path,
        name: &OsStr,
        entry: &Entry,
        data: &mut impl Read,
    ) -> io::Result<()> {
        let number = entry.link.filter(|_| self.policy.hard_links);
        if let Some(first) = number.and_then(|number| self.names.get(&number)) {
            let above = first.parent().unwrap_or(Path::new(""));
            let above = open_below(self.root.as_fd(), above)?;
            let first = first.file_name().ok_or(Errno::INVAL)?;
            return Ok(linkat(above, first, &self.folder, name, AtFlags::empty())?);
        }
        match self.policy.there {
            There::Refused => self.write_file(name, entry, data)?,
            There::Replaced(unfinished) => {
                let folder = self.folder.as_fd();
                // It is gone with this, unless it is whole and has its own name.
                let _unfinished = RemoveOnDrop(folder, unfinished);
                self.write_file(OsStr::new(unfinished), entry, data)?;
                renameat(folder, unfinished, folder, name)?;
            }
        }
        if let Some(number) = number {
            self.names.insert(number, path.to_owned());
        }
        Ok(())
    }

    fn write_file(&self, name: &OsStr, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.folder, name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(file);
        let buffer = &mut *self.buffer.borrow_mut();
        copy(data, &mut file, buffer, self.policy.is_over)?;
        let permissions = entry.permissions & self.policy.permissions;
        fchmod(&file, Mode::from_raw_mode(permissions))?;
        Ok(futimens(&file, &times(entry.mtime))?)
    }

    fn make_link(&self, name: &OsStr, to: &Path, mtime: u32) -> io::Result<()> {
        symlinkat(to, &self.folder, name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match utimensat(&self.folder, name, &times(mtime), flags) {
            // The filter of an unpacker whose names could lead out of the folder.
            Err(Errno::ACCESS) => Ok(()),
            set => Ok(set?),
        }
    }
}

struct RemoveOnDrop<'a>(BorrowedFd<'a>, &'a str);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.0, self.1, AtFlags::empty());
    }
}

fn left_out(why: &str) -> io::Result<Added> {
    Ok(Added::LeftOut(why.to_owned()))
}

/// Copies a file's data through a buffer, until it is over.
pub(crate) fn copy(
    data: &mut impl Read,
    to: &mut impl Write,
    buffer: &mut [u8],
    is_over: &dyn Fn() -> bool,
) -> io::Result<()> {
    loop {
        check(is_over)?;
        match data.read(buffer)? {
            0 => return Ok(()),
            len => to.write_all(&buffer[..len])?,
        }
    }
}

/// Ends what is over.
pub(crate) fn check(is_over: &dyn Fn() -> bool) -> io::Result<()> {
    match is_over() {
        true => Err(io::Error::other("it was cut off")),
        false => Ok(()),
    }
}

/// Opens a folder below another one, through no link.
fn open_below(root: BorrowedFd, path: &Path) -> io::Result<OwnedFd> {
    if path.as_os_str().is_empty() {
        return root.try_clone_to_owned();
    }
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(root, path, FOLDER, Mode::empty(), below) {
        // An old kernel, or a filter of system calls.
        Err(Errno::NOSYS | Errno::PERM) => step_below(root, path),
        opened => Ok(opened?),
    }
}

/// As [`open_below`], a folder at a time.
fn step_below(root: BorrowedFd, path: &Path) -> io::Result<OwnedFd> {
    let mut folder = root.try_clone_to_owned()?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            return Err(Errno::INVAL.into());
        };
        folder = openat(&folder, name, FOLDER, Mode::empty())?;
    }
    Ok(folder)
}

/// Opens a folder that is in another one, and lets its owner fill it. A link in its place is not followed.
pub(crate) fn open_own(above: BorrowedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let folder = match openat(above, name, FOLDER, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // It is closed to its owner. It is named by its descriptor, or a link could have taken its place.
            let there = openat(above, name, FOLDER | OFlags::PATH, Mode::empty())?;
            let path = format!("/proc/self/fd/{}", there.as_raw_fd());
            rustix::fs::chmod(path, Mode::RWXU)?;
            openat(above, name, FOLDER, Mode::empty())?
        }
        opened => opened?,
    };
    fchmod(&folder, Mode::RWXU)?;
    Ok(folder)
}

/// What a thing is called that is neither a file, a folder nor a link.
fn special(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::Fifo => Some("a pipe"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        _ => None,
    }
}

/// A file's times, from the one that its archive has: seconds since 1970.
fn times(seconds: u32) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Whether a link so deep in a folder (1 if right in it), which no link is above, stays in that folder.
///
/// It does if it goes up only at its beginning, and not too far: from there on it goes down, and other links that it passes
/// stay inside themselves. A `..` behind the name of a link would go up from wherever that leads.
fn stays_inside(depth: usize, to: &Path) -> bool {
    let mut parts = to
        .components()
        .filter(|part| *part != Component::CurDir)
        .peekable();
    let mut up = 0;
    while parts.next_if_eq(&Component::ParentDir).is_some() {
        up += 1;
    }
    up < depth && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests;

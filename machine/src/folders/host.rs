//! The host's file system: single steps from one descriptor to the next, and what is done with a descriptor.
//!
//! No function takes a path. A descriptor that says where something is (O_PATH) is opened for use through `/proc/self/fd`: the kernel
//! takes its number for that very file, however the names above it have changed since.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags,
    StatxTimestamp, Timestamps, accessat, chmodat, fstatfs, linkat, openat, openat2, readlinkat,
    statx, utimensat,
};

use super::abi::Result;
use super::name::Name;

/// How each step is made: down, through no link, and not into another file system.
const DOWN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// Flags of all that is opened.
const ALWAYS: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW);
/// What `fstatfs` returns for procfs.
const PROC_SUPER_MAGIC: u32 = 0x9fa0;
/// Bytes of a folder that are read at a time, where all of it is.
const LISTED: usize = 32 << 10;

/// Which file it is. The time of its creation tells it from one that got its number later, as ext4 soon gives it to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: u64,
    pub(super) number: u64,
    born: (i64, u32),
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Link,
    /// A device, FIFO or socket: it is shown, but not opened.
    Other,
}

impl From<FileType> for Kind {
    fn from(file_type: FileType) -> Self {
        match file_type {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        }
    }
}

/// What tells a file from the same one when its content was another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// A file's attributes.
#[derive(Clone, Copy)]
pub(super) struct Stat(Statx);

impl Stat {
    pub(super) fn of(fd: impl AsFd) -> Result<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        statx(fd, "", AtFlags::EMPTY_PATH, wanted).map(Stat)
    }

    pub(super) fn found(&self) -> &Statx {
        &self.0
    }

    pub(super) fn key(&self) -> Key {
        let born = match self.0.stx_mask & StatxFlags::BTIME.bits() {
            0 => (0, 0),
            _ => (self.0.stx_btime.tv_sec, self.0.stx_btime.tv_nsec),
        };
        Key {
            device: u64::from(self.0.stx_dev_major) << 32 | u64::from(self.0.stx_dev_minor),
            number: self.0.stx_ino,
            born,
        }
    }

    /// Returns what changes with a file's content: its size, and the times of its change.
    pub(super) fn version(&self) -> Version {
        let time = |time: &StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Version {
            size: self.size(),
            modified: time(&self.0.stx_mtime),
            changed: time(&self.0.stx_ctime),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        FileType::from_raw_mode(self.0.stx_mode.into()).into()
    }

    pub(super) fn type_bits(&self) -> u32 {
        u32::from(self.0.stx_mode) & 0o170_000
    }

    /// The permissions, with set-ID and sticky bits.
    pub(super) fn mode(&self) -> u32 {
        u32::from(self.0.stx_mode) & 0o7777
    }

    pub(super) fn links(&self) -> u32 {
        self.0.stx_nlink
    }

    pub(super) fn size(&self) -> u64 {
        self.0.stx_size
    }

    /// Bytes of it on the disk: no more than its size fills, since a file system may have taken blocks ahead.
    pub(super) fn on_disk(&self) -> u64 {
        let full = self.0.stx_size.div_ceil(4096).saturating_mul(4096);
        self.0.stx_blocks.saturating_mul(512).min(full)
    }
}

/// Makes one step: returns what has a name in a folder, as a descriptor for nothing but further steps. A link is that link.
pub(super) fn step(folder: impl AsFd, name: &Name) -> Result<OwnedFd> {
    openat2(
        folder,
        name.as_os_str(),
        OFlags::PATH | ALWAYS,
        Mode::empty(),
        DOWN,
    )
}

/// Makes a file in a folder, where nothing has its name, and opens it.
pub(super) fn make_file(
    folder: impl AsFd,
    name: &Name,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL | ALWAYS;
    openat2(folder, name.as_os_str(), flags, mode, DOWN)
}

/// Sets times, of a link too.
pub(super) fn set_times(fd: impl AsFd, times: &Timestamps) -> Result<()> {
    utimensat(fd, "", times, AtFlags::EMPTY_PATH)
}

/// What is in a folder, by name.
pub(super) struct Listed {
    pub(super) name: Name,
    pub(super) kind: Kind,
}

/// Returns all that is in a folder that is open for reading.
pub(super) fn list(folder: BorrowedFd<'_>) -> Result<Vec<Listed>> {
    let mut buffer = vec![MaybeUninit::uninit(); LISTED];
    let mut entries = RawDir::new(folder, &mut buffer);
    let mut listed = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Ok(name) = Name::new(entry.file_name().to_bytes()) else {
            continue; // . and ..
        };
        let kind = match entry.file_type() {
            FileType::Unknown => match step(folder, &name).and_then(Stat::of) {
                Ok(stat) => stat.kind(),
                Err(_) => continue,
            },
            known => known.into(),
        };
        listed.push(Listed { name, kind });
    }
    Ok(listed)
}

/// `/proc/self/fd`: this process's descriptors.
#[derive(Debug)]
pub(super) struct Descriptors(OwnedFd);

impl Descriptors {
    /// Opens it. It stays usable where the process later loses sight of `/proc`.
    pub(super) fn open() -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(rustix::fs::CWD, "/proc/self/fd", flags, Mode::empty())?;
        if u32::try_from(fstatfs(&folder)?.f_type) != Ok(PROC_SUPER_MAGIC) {
            return Err(std::io::Error::other("it is not procfs"));
        }
        Ok(Descriptors(folder))
    }

    /// Returns the path of what a descriptor is for.
    pub(super) fn path(&self, fd: &impl AsFd) -> Result<PathBuf> {
        let path = readlinkat(&self.0, number(fd), Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
    }

    /// Opens the file or folder that a descriptor is for.
    pub(super) fn reopen(&self, fd: &impl AsFd, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        openat(&self.0, number(fd), flags, Mode::empty())
    }

    /// Sets the permissions of a file or folder.
    pub(super) fn set_mode(&self, fd: &impl AsFd, mode: u32) -> Result<()> {
        chmodat(
            &self.0,
            number(fd),
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )
    }

    /// Checks what this process may do with a file or folder.
    pub(super) fn access(&self, fd: &impl AsFd, access: Access) -> Result<()> {
        accessat(&self.0, number(fd), access, AtFlags::EACCESS)
    }

    /// Gives a file or link another name.
    pub(super) fn link(&self, fd: &impl AsFd, folder: impl AsFd, name: &Name) -> Result<()> {
        linkat(
            &self.0,
            number(fd),
            folder,
            name.as_os_str(),
            AtFlags::SYMLINK_FOLLOW,
        )
    }
}

impl AsFd for Descriptors {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn number(fd: &impl AsFd) -> String {
    fd.as_fd().as_raw_fd().to_string()
}

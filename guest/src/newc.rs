//! The writer of cpio archives in the "newc" format, which Linux unpacks as an initramfs.
//!
//! An entry is a header of 110 ASCII bytes (a magic number and thirteen fields of eight hexadecimal digits), the name with
//! its NUL, padding to a multiple of four, the data, padding again. An entry named `TRAILER!!!` ends the archive
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`). Nothing points backwards, so an archive is written as a
//! stream, and archives may simply follow one another.
//!
//! Equal calls make equal bytes: inode numbers are counted, and times and owners are the caller's.
//!
//! ```
//! use minivm_guest::newc::{Archive, Attributes};
//!
//! let mut archive = Archive::new(Vec::new());
//! archive.directory("etc", Attributes::new(0o755))?;
//! archive.file("etc/motd", Attributes::new(0o644), 6, &b"hello\n"[..])?;
//! archive.symlink("motd", "etc/motd", Attributes::new(0o777))?;
//! let bytes = archive.finish()?;
//! assert!(bytes.starts_with(b"070701"));
//! # Ok::<(), minivm_guest::newc::Error>(())
//! ```

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The longest name, or target of a symbolic link, that Linux unpacks, in bytes; a name's NUL counts. It skips longer
/// ones silently.
const PATH_MAX: usize = 4096;

const TRAILER: &str = "TRAILER!!!";

/// The reason why an entry can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive's own output failed.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// A file's data can't be read, or not written.
    #[error("cannot copy {} into the archive", name.display())]
    Copy {
        /// The entry's name.
        name: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file or folder that is to be archived can't be opened.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder, as it was opened.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file ended before the size its header had promised.
    #[error("{} ended after {actual} of {expected} bytes", name.display())]
    Short {
        /// The entry's name.
        name: PathBuf,
        /// The size in the header.
        expected: u64,
        /// The bytes that were there.
        actual: u64,
    },
    /// A file is larger than the format allows, which has 32 bits for a size.
    #[error("{} has {size} bytes, and an archive holds only files of less than 4 GiB", name.display())]
    TooLarge {
        /// The file.
        name: PathBuf,
        /// The file's size in bytes.
        size: u64,
    },
    /// A name or a link's target is longer than Linux unpacks: it would skip the entry.
    #[error("{} is too long a path for an initramfs", path.display())]
    TooLong {
        /// The name or the target of the link.
        path: PathBuf,
    },
    /// The name has a NUL inside, or nothing but slashes.
    #[error("{path:?} is not a valid name for an entry of an archive")]
    BadName {
        /// The name.
        path: PathBuf,
    },
}

/// Permissions, owner and time of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-user-ID and the like: the lower twelve bits of `st_mode`.
    pub permissions: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Time of the last change, in seconds since 1970. Linux sets it if it was built with `CONFIG_INITRAMFS_PRESERVE_MTIME`.
    pub mtime: u32,
}

impl Attributes {
    /// Returns attributes with these permissions, root's, of 1970.
    pub fn new(permissions: u32) -> Attributes {
        Attributes {
            permissions,
            uid: 0,
            gid: 0,
            mtime: 0,
        }
    }
}

/// An entry that has no data, only a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named as in inode(7)")]
pub enum Node {
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

impl Node {
    fn file_type(self) -> u32 {
        match self {
            Node::Fifo => 0o010_000,
            Node::CharDevice { .. } => 0o020_000,
            Node::BlockDevice { .. } => 0o060_000,
            Node::Socket => 0o140_000,
        }
    }

    fn numbers(self) -> (u32, u32) {
        match self {
            Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
                (major, minor)
            }
            Node::Fifo | Node::Socket => (0, 0),
        }
    }
}

/// A file that was written and can be given further names, see [`Archive::hard_link`].
#[derive(Clone, Copy, Debug)]
pub struct Linked {
    inode: u32,
    attributes: Attributes,
    links: u32,
}

/// An archive that is being written. Names are relative to the archive's root (a leading `/` is dropped) and come parents first.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    next_inode: u32,
}

/// The fields of a header that differ between entries.
#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: u32,
    size: u32,
    device: (u32, u32),
}

impl Header {
    fn new(inode: u32, file_type: u32, attributes: Attributes) -> Header {
        let Attributes {
            permissions,
            uid,
            gid,
            mtime,
        } = attributes;
        Header {
            inode,
            mode: file_type | (permissions & 0o7777),
            uid,
            gid,
            links: 1,
            mtime,
            ..Header::default()
        }
    }
}

impl<W: Write> Archive<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Archive<W> {
        Archive { out, next_inode: 1 }
    }

    /// Adds a directory.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`] or [`Error::TooLong`] refuse the name; [`Error::Write`] where the output fails.
    pub fn directory(
        &mut self,
        name: impl AsRef<Path>,
        attributes: Attributes,
    ) -> Result<(), Error> {
        let header = Header {
            links: 2,
            ..Header::new(self.inode(), 0o040_000, attributes)
        };
        self.header(name.as_ref(), &header)
    }

    /// Adds a file of `size` bytes, which are read from `data`; bytes behind them are left there.
    ///
    /// # Errors
    ///
    /// Those of [`directory`](Self::directory); [`Error::TooLarge`] or [`Error::Short`] refuse the size; [`Error::Copy`] where
    /// the data can't be read or written.
    pub fn file(
        &mut self,
        name: impl AsRef<Path>,
        attributes: Attributes,
        size: u64,
        data: impl Read,
    ) -> Result<(), Error> {
        let header = Header::new(self.inode(), 0o100_000, attributes);
        self.regular(name.as_ref(), header, size, data)
    }

    /// Adds a file that has, or may get, further names: `links` altogether, or 2 where that isn't known. The data go with the
    /// first name.
    ///
    /// # Errors
    ///
    /// Those of [`file`](Self::file).
    pub fn linked_file(
        &mut self,
        name: impl AsRef<Path>,
        attributes: Attributes,
        links: u32,
        size: u64,
        data: impl Read,
    ) -> Result<Linked, Error> {
        let inode = self.inode();
        let header = Header {
            links,
            ..Header::new(inode, 0o100_000, attributes)
        };
        self.regular(name.as_ref(), header, size, data)?;
        Ok(Linked {
            inode,
            attributes,
            links,
        })
    }

    /// Adds a further name of a file.
    ///
    /// Linux takes entries with one inode number and more than one link for names of one file (`maybe_link` in
    /// `init/initramfs.c`). It opens the file again for each but truncates it only the first time, and a later entry of size
    /// zero leaves the data as they are.
    ///
    /// One inode number is left out for it: a file system in memory counts each name as it does each file, so the last inode
    /// number is the number of inodes that the archive takes there.
    ///
    /// # Errors
    ///
    /// Those of [`directory`](Self::directory).
    pub fn hard_link(&mut self, name: impl AsRef<Path>, file: Linked) -> Result<(), Error> {
        self.inode();
        let header = Header {
            links: file.links,
            ..Header::new(file.inode, 0o100_000, file.attributes)
        };
        self.header(name.as_ref(), &header)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    ///
    /// Those of [`directory`](Self::directory), also for the target's length.
    pub fn symlink(
        &mut self,
        name: impl AsRef<Path>,
        target: impl AsRef<Path>,
        attributes: Attributes,
    ) -> Result<(), Error> {
        let target = target.as_ref();
        let bytes = target.as_os_str().as_bytes();
        let size = u32::try_from(bytes.len())
            .ok()
            .filter(|_| bytes.len() <= PATH_MAX);
        let size = size.ok_or_else(|| Error::TooLong {
            path: target.into(),
        })?;
        let header = Header {
            size,
            ..Header::new(self.inode(), 0o120_000, attributes)
        };
        self.header(name.as_ref(), &header)?;
        self.out.write_all(bytes).map_err(Error::Write)?;
        self.pad(size)
    }

    /// Adds a device, a named pipe or a socket.
    ///
    /// # Errors
    ///
    /// Those of [`directory`](Self::directory).
    pub fn node(
        &mut self,
        name: impl AsRef<Path>,
        node: Node,
        attributes: Attributes,
    ) -> Result<(), Error> {
        let header = Header::new(self.inode(), node.file_type(), attributes);
        self.header(
            name.as_ref(),
            &Header {
                device: node.numbers(),
                ..header
            },
        )
    }

    /// Ends the archive and returns the output.
    ///
    /// # Errors
    ///
    /// [`Error::Write`] where the output fails.
    pub fn finish(mut self) -> Result<W, Error> {
        let header = Header {
            links: 1,
            ..Header::default()
        };
        self.stored(OsStr::new(TRAILER), &header)?;
        self.out.flush().map_err(Error::Write)?;
        Ok(self.out)
    }

    fn inode(&mut self) -> u32 {
        let inode = self.next_inode;
        self.next_inode += 1;
        inode
    }

    fn regular(
        &mut self,
        name: &Path,
        mut header: Header,
        size: u64,
        data: impl Read,
    ) -> Result<(), Error> {
        header.size = u32::try_from(size).map_err(|_| Error::TooLarge {
            name: name.into(),
            size,
        })?;
        self.header(name, &header)?;
        let copied = io::copy(&mut data.take(size), &mut self.out);
        let actual = copied.map_err(|source| Error::Copy {
            name: name.into(),
            source,
        })?;
        if actual != size {
            return Err(Error::Short {
                name: name.into(),
                expected: size,
                actual,
            });
        }
        self.pad(header.size)
    }

    fn header(&mut self, name: &Path, header: &Header) -> Result<(), Error> {
        let stored = stored_name(name)?;
        if stored == TRAILER {
            // A file may have that name. Linux compares the name as it stands, before it opens it.
            return self.stored(OsStr::new("./TRAILER!!!"), header);
        }
        self.stored(stored, header)
    }

    /// Writes the header, the name and the padding after it.
    fn stored(&mut self, stored: &OsStr, header: &Header) -> Result<(), Error> {
        let name_size = u32::try_from(stored.len() + 1).map_err(|_| Error::TooLong {
            path: stored.into(),
        })?;
        let Header {
            inode,
            mode,
            uid,
            gid,
            links,
            mtime,
            size,
            device: (major, minor),
        } = *header;
        let mut bytes = Vec::with_capacity(128 + stored.len());
        bytes.extend_from_slice(b"070701");
        // The two zeros after the size are the device the file was on: one archive, one device. The last is a checksum,
        // which this variant of the format doesn't have.
        for field in [
            inode, mode, uid, gid, links, mtime, size, 0, 0, major, minor, name_size, 0,
        ] {
            write!(bytes, "{field:08x}").expect("growing memory can be written");
        }
        bytes.extend_from_slice(stored.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.out.write_all(&bytes).map_err(Error::Write)
    }

    fn pad(&mut self, size: u32) -> Result<(), Error> {
        let missing = (4 - size % 4) % 4;
        self.out
            .write_all(&[0; 3][..missing as usize])
            .map_err(Error::Write)
    }
}

/// Returns a name as the archive has it: without leading slashes.
fn stored_name(name: &Path) -> Result<&OsStr, Error> {
    let bytes = name.as_os_str().as_bytes();
    let start = bytes
        .iter()
        .position(|&byte| byte != b'/')
        .unwrap_or(bytes.len());
    let stored = &bytes[start..];
    if stored.is_empty() || stored.contains(&0) {
        return Err(Error::BadName { path: name.into() });
    }
    if stored.len() >= PATH_MAX {
        return Err(Error::TooLong { path: name.into() });
    }
    Ok(OsStr::from_bytes(stored))
}

#[cfg(test)]
mod tests;

//! Entries of layers, as a file system has them.

use crate::tar_reader::Time;
use minivm_guest::newc::{self, Node};

/// The longest path that Linux takes, with its NUL, and the longest name in one (`include/uapi/linux/limits.h`).
pub(super) const PATH_MAX: usize = 4096;
pub(super) const NAME_MAX: usize = 255;

/// An entry of a layer.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its name, taken apart and put together again: no empty parts, no `.` and no `..`, no slash before or after.
    pub(super) path: Box<[u8]>,
    pub(super) attributes: Attributes,
    pub(super) xattrs: Xattrs,
    pub(super) kind: Kind,
}

/// Permissions, owner and time of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits, set-user-ID and the like: the lower twelve bits of `st_mode`.
    pub(crate) permissions: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
}

impl Attributes {
    /// Returns attributes with these permissions, root's, of 1970.
    pub(crate) fn new(permissions: u32) -> Attributes {
        Attributes {
            permissions,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
        }
    }

    /// Returns what a cpio archive can hold of them. Times before 1970 and after 2106 don't fit the format.
    pub(super) fn newc(self) -> newc::Attributes {
        newc::Attributes {
            permissions: self.permissions,
            uid: self.uid,
            gid: self.gid,
            mtime: u32::try_from(self.mtime.seconds.max(0)).unwrap_or(u32::MAX),
        }
    }
}

/// Extended attributes: names and values, sorted by name.
pub(crate) type Xattrs = Box<[(Box<[u8]>, Box<[u8]>)]>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File { size: u64 },
    Symlink(Box<[u8]>),
    HardLink(Box<[u8]>),
    Node(Node),
}

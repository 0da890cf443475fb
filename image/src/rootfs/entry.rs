//! Entries of layers, as a file system has them.

use minivm_guest::newc::{Attributes, Node};

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

/// Extended attributes: names and values, sorted by name.
pub(super) type Xattrs = Box<[(Box<[u8]>, Box<[u8]>)]>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File { size: u32 },
    Symlink(Box<[u8]>),
    HardLink(Box<[u8]>),
    Node(Node),
}

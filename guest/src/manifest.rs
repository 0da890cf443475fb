//! The manifest of an initramfs, for the guest's init: the image's own command, and attributes that a cpio archive can't hold.
//!
//! An initramfs that was made of an image has, beside the image's files, the folder [`FOLDER`] and the program [`INIT`]. Init
//! removes both before the command runs, so that the command sees the image as it is.

use serde::{Deserialize, Serialize};

/// The folder of minivm's own files. An image must not have it.
pub const FOLDER: &str = ".minivm";
/// The path of the [`Manifest`], in postcard's format.
pub const PATH: &str = ".minivm/manifest";
/// The path of the guest's first process, where the kernel looks for it by itself.
pub const INIT: &str = "init";
/// The path of an image's own `/init`, file or folder, until init puts it back.
pub const IMAGES_INIT: &str = ".minivm/init";

/// The path of an empty file, the archive's last entry. A guest without it has a part of the image only: the kernel stops
/// unpacking an image that doesn't fit into memory, and boots with the part that it has.
pub const COMPLETE: &str = ".minivm/complete";

/// The word on the kernel's command line that has init mount the image in the machine's persistent memory, in place of the files of
/// the archive, which then has init and the manifest alone.
pub const MAPPED_ROOT: &str = "root=/dev/pmem0";

/// The part of an image that init has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The image's own command: its entrypoint and its command's arguments. Init runs it where no host sends a request.
    pub argv: Vec<Vec<u8>>,
    /// Its environment, `NAME=value` each.
    pub env: Vec<Vec<u8>>,
    /// Its working folder; empty means `/`.
    pub cwd: Vec<u8>,
    /// Its user, as container images have it: `USER[:GROUP]`, names or numbers; empty means root.
    pub user: String,
    /// Extended attributes, which a cpio archive can't hold.
    pub xattrs: Vec<Xattr>,
}

/// An extended attribute of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// The file's path from the root on, without a leading slash; empty for the root itself.
    pub path: Vec<u8>,
    /// The attribute's whole name, such as `security.capability`.
    pub name: Vec<u8>,
    /// The attribute's value.
    pub value: Vec<u8>,
}

impl Manifest {
    /// Returns the bytes of the file [`PATH`].
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data in growing memory can be written")
    }

    /// Reads the bytes that [`to_bytes`](Self::to_bytes) has returned.
    ///
    /// # Errors
    ///
    /// postcard's, where the bytes are no manifest.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

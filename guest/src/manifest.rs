//! What an initramfs tells the guest's init: the image's own command, and what the archive's format has no field for.
//!
//! An initramfs that was made of an image has, beside the image's files, the folder [`FOLDER`] and the program [`INIT`]. Init
//! takes both away before the command runs, so that it sees the image as it is.

use serde::{Deserialize, Serialize};

/// The folder with what is ours. An image must not have it.
pub const FOLDER: &str = ".minivm";
/// The [`Manifest`], in postcard's format.
pub const PATH: &str = ".minivm/manifest";
/// The guest's first process, where the kernel looks for it by itself.
pub const INIT: &str = "init";
/// Where an image's own `/init`, file or folder, is until init puts it back.
pub const IMAGES_INIT: &str = ".minivm/init";

/// An empty file, the archive's last entry. Where it isn't there, the image did not fit into the guest's memory: the kernel
/// stops unpacking then, and goes on with what it has.
pub const COMPLETE: &str = ".minivm/complete";

/// What init has to know of its image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What the image runs by itself: its entrypoint and its command's arguments. It is run where no host asks for anything
    /// else.
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
    /// The file, from the root on, without a leading slash; empty for the root itself.
    pub path: Vec<u8>,
    /// The attribute's whole name, such as `security.capability`.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

impl Manifest {
    /// The bytes of the file [`PATH`].
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data in growing memory can be written")
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// Where the bytes are no manifest.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

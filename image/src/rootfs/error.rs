//! Why an image can't be made a root file system.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::limits::Exceeded;
use crate::tar_reader::{self, Unsound};
use minivm_guest::newc;

/// Why an image can't be made an initramfs or an EROFS image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer can't be read or decompressed.
    #[error("cannot read {layer}")]
    Read {
        /// The layer's name.
        layer: String,
        /// The cause.
        source: io::Error,
    },
    /// A layer is compressed in a format that isn't read.
    #[error(
        "{layer} is compressed with {format}; gzip, zstd, xz, bzip2 and plain tar archives can be read"
    )]
    Compression {
        /// The layer's name.
        layer: String,
        /// The program's name.
        format: &'static str,
    },
    /// A layer has another digest than the image's configuration says.
    #[error("{layer} has the digest {actual} when it is decompressed, not {expected}")]
    Digest {
        /// The layer's name.
        layer: String,
        /// The digest in the configuration.
        expected: String,
        /// The layer's own.
        actual: String,
    },
    /// A layer is not a tar archive, or only a part of one.
    #[error("{layer} is not a valid tar archive")]
    Tar {
        /// The layer's name.
        layer: String,
        /// The cause.
        source: Unsound,
    },
    /// An entry of a layer, or a file of a folder, can't be in a root file system.
    #[error("cannot take {path:?} from {layer}")]
    Entry {
        /// The layer's name.
        layer: String,
        /// The entry's name.
        path: PathBuf,
        /// The cause.
        source: Fault,
    },
    /// The image is too large.
    #[error("cannot take {layer}")]
    Limit {
        /// The layer that went beyond the limit.
        layer: String,
        /// The limit.
        source: Exceeded,
    },
    /// A layer had other content when it was read again.
    #[error("{layer} has changed while it was read")]
    Changed {
        /// The layer's name.
        layer: String,
    },
    /// An image's folder can't be read, or holds what an archive can't, or the archive can't be written.
    #[error(transparent)]
    Archive(#[from] newc::Error),
    /// The output failed, or an archive became too large.
    #[error("cannot write the root file system")]
    Write(#[source] io::Error),
    /// The image has a file at a path that is reserved for minivm.
    #[error("{path:?} is reserved for minivm, the image must not have it")]
    Reserved {
        /// The file.
        path: PathBuf,
    },
}

/// Why an entry of a layer, or a file of a folder, can't be in a root file system.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Its name, or the one it is a hard link to, has a `..`.
    #[error("its path has a .. in it")]
    Upwards,
    /// It would replace the root.
    #[error("it names no file")]
    NoName,
    /// Its name, or its target, has a NUL.
    #[error("its name or its target has a NUL in it")]
    Nul,
    /// Its path is longer than Linux allows.
    #[error("its path is longer than 4095 bytes, or a part of it than 255")]
    TooLong,
    /// A part of its path is not a folder.
    #[error("{path:?} is not a folder")]
    NoFolder {
        /// The path up to that part.
        path: PathBuf,
    },
    /// Its path leads through too many symbolic links, as in a circle.
    #[error("its path leads through more than 40 symbolic links")]
    Loop,
    /// It is a hard link to a name that isn't there.
    #[error("it is a hard link to {target:?}, which isn't there")]
    NoTarget {
        /// The target of the link.
        target: PathBuf,
    },
    /// It is a hard link to a folder, which can have one name only.
    #[error("it is a hard link to {target:?}, which is a folder")]
    FolderTarget {
        /// The target of the link.
        target: PathBuf,
    },
    /// minivm's own files are there.
    #[error("the name is reserved for minivm")]
    Reserved,
    /// It is a file that a cpio archive can't hold.
    #[error("it has {size} bytes, an initramfs holds files of less than 4 GiB")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// Its owner is not a valid one for Linux.
    #[error("its owner {id} doesn't fit 32 bits")]
    Owner {
        /// The number of the user or the group.
        id: i128,
    },
    /// A field of its header is not a valid number.
    #[error("the {field} in its header is not a valid number")]
    Number {
        /// The field.
        field: &'static str,
    },
    /// It has an extended attribute that Linux doesn't allow.
    #[error("its extended attribute {name:?} has a bad name, or more than 64 KiB")]
    Xattr {
        /// The attribute.
        name: String,
    },
    /// It has an extended attribute that an EROFS image can't hold.
    #[error("its extended attribute {name:?} has 64 KiB, an EROFS image holds those with less")]
    LongXattr {
        /// The attribute.
        name: String,
    },
    /// It has more extended attributes than an EROFS image can hold.
    #[error(
        "its extended attributes take more than {limit} bytes, the most that an EROFS image holds of one file"
    )]
    ManyXattrs {
        /// The limit in bytes.
        limit: u32,
    },
    /// It is a device with numbers that Linux doesn't have.
    #[error(
        "its device number {major}:{minor} is too large: Linux has 12 bits for the first and 20 for the second"
    )]
    Device {
        /// The number of the driver.
        major: u32,
        /// The number of the device.
        minor: u32,
    },
    /// Its map of holes contradicts itself, or is of a kind that isn't read.
    #[error("its map of holes can't be read")]
    Sparse,
    /// It has a type that no image has.
    #[error("it has the type {kind:?}, which no image has")]
    Kind {
        /// The type in the header.
        kind: char,
    },
    /// The image is beyond a limit with it.
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// Returns bytes as a path, for an error.
pub(super) fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

impl Error {
    /// Wraps a failed read, or the limit that a reader ran into.
    pub(super) fn read(layer: &str, source: io::Error) -> Error {
        let layer = layer.to_owned();
        let limit = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Exceeded>());
        match limit {
            Some(&source) => Error::Limit { layer, source },
            None if source.kind() == io::ErrorKind::UnexpectedEof => Error::Tar {
                layer,
                source: Unsound::Truncated,
            },
            None => Error::Read { layer, source },
        }
    }

    /// Wraps a failure of the reader of a layer's archive.
    pub(super) fn archive(layer: &str, error: tar_reader::Error) -> Error {
        match error {
            tar_reader::Error::Read(source) => Error::read(layer, source),
            tar_reader::Error::Unsound(source) => Error::Tar {
                layer: layer.to_owned(),
                source,
            },
            tar_reader::Error::Size { name } => {
                Error::entry(layer, &name, Fault::Number { field: "size" })
            }
            tar_reader::Error::Holes { name } => Error::entry(layer, &name, Fault::Sparse),
        }
    }

    pub(super) fn entry(layer: &str, name: &[u8], source: Fault) -> Error {
        Error::Entry {
            layer: layer.to_owned(),
            path: path(name),
            source,
        }
    }
}

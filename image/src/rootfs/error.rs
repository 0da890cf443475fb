//! Why an image can't be made an initramfs.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::limits::Exceeded;
use crate::tar_reader::{self, Unsound};
use minivm_guest::newc;

/// Why an image can't be made an initramfs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer can't be read or decompressed.
    #[error("cannot read {layer}")]
    Read {
        /// What the layer is called.
        layer: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A layer is compressed by a program that we don't know.
    #[error(
        "{layer} is compressed with {format}; gzip, zstd, xz, bzip2 and plain tar archives can be read"
    )]
    Compression {
        /// What the layer is called.
        layer: String,
        /// The program's name.
        format: &'static str,
    },
    /// A layer is not what the image's configuration says.
    #[error("{layer} has the digest {actual} when it is decompressed, not {expected}")]
    Digest {
        /// What the layer is called.
        layer: String,
        /// The digest in the configuration.
        expected: String,
        /// The layer's own.
        actual: String,
    },
    /// A layer is not a tar archive, or only a part of one.
    #[error("{layer} is no sound tar archive")]
    Tar {
        /// What the layer is called.
        layer: String,
        /// What is wrong with it.
        source: Unsound,
    },
    /// An entry of a layer can't be taken over.
    #[error("cannot take {path:?} from {layer}")]
    Entry {
        /// What the layer is called.
        layer: String,
        /// The entry's name.
        path: PathBuf,
        /// What is wrong with it.
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
    /// A layer was not the same when it was read again.
    #[error("{layer} has changed while it was read")]
    Changed {
        /// What the layer is called.
        layer: String,
    },
    /// An image's folder can't be read, or holds what an archive can't, or the archive can't be written.
    #[error(transparent)]
    Archive(#[from] newc::Error),
    /// What the archive is written to failed, or the archive became too large.
    #[error("cannot write the initramfs")]
    Write(#[source] io::Error),
    /// The image has a file where ours are.
    #[error("{path:?} is reserved for minivm, the image must not have it")]
    Reserved {
        /// The file.
        path: PathBuf,
    },
}

/// What is wrong with an entry of a tar archive.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Its name, or the one it is a hard link to, has a `..`.
    #[error("its path has a .. in it")]
    Upwards,
    /// It would replace the root.
    #[error("it names no file")]
    NoName,
    /// A NUL can't be in a name.
    #[error("its name or its target has a NUL in it")]
    Nul,
    /// Linux has no such long paths.
    #[error("its path is longer than 4095 bytes, or a part of it than 255")]
    TooLong,
    /// Nothing can be below what isn't a folder.
    #[error("{path:?} is no folder")]
    NoFolder {
        /// The part of the path that should be one.
        path: PathBuf,
    },
    /// Symbolic links in its path go round in circles.
    #[error("its path leads through more than 40 symbolic links")]
    Loop,
    /// A hard link to nowhere.
    #[error("it is a hard link to {target:?}, which isn't there")]
    NoTarget {
        /// The name it links to.
        target: PathBuf,
    },
    /// Folders have one name.
    #[error("it is a hard link to {target:?}, which is a folder")]
    FolderTarget {
        /// The name it links to.
        target: PathBuf,
    },
    /// Our own files are there.
    #[error("the name is reserved for minivm")]
    Reserved,
    /// A file that a cpio archive can't hold.
    #[error("it has {size} bytes, an initramfs holds files of less than 4 GiB")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// An owner that Linux doesn't have.
    #[error("its owner {id} doesn't fit 32 bits")]
    Owner {
        /// User or group.
        id: i128,
    },
    /// A field of its header isn't a number.
    #[error("the {field} in its header is no number that fits")]
    Number {
        /// Which field.
        field: &'static str,
    },
    /// An extended attribute that Linux wouldn't take.
    #[error("its extended attribute {name:?} has a bad name, or more than 64 KiB")]
    Xattr {
        /// The attribute.
        name: String,
    },
    /// Its map of holes makes no sense, or is of a kind that we don't read.
    #[error("its map of holes can't be read")]
    Sparse,
    /// Something that only some kinds of tar archives have.
    #[error("it is of the type {kind:?}, which no image has")]
    Kind {
        /// The type in the header.
        kind: char,
    },
    /// Too much of something.
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// Bytes of a path, for an error.
pub(super) fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

impl Error {
    /// A failed read, or the limit that a reader ran into.
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

    /// A failure of the reader of a layer's archive.
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

//! What an image is: a configuration, and files in layers or in a folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;

/// A container image, found and held open.
#[derive(Debug)]
pub struct Image {
    /// A digest of its root file system's content and its configuration: equal identities, equal images. `sha256:` and 64
    /// hexadecimal digits: of the configuration, which names all layers by their digests, so that an image is the same from
    /// wherever it comes; or, for a bare folder or archive, of its files' attributes on the host.
    pub identity: String,
    /// How it is to be run.
    pub config: Config,
    /// Its files.
    pub root: Root,
}

/// An image, with its documents as they were found.
#[derive(Debug)]
pub struct Described {
    /// The image.
    pub image: Image,
    /// Its documents; a bare folder or archive has none.
    pub(crate) originals: Option<Originals>,
}

/// An image's documents, byte for byte.
#[derive(Debug)]
pub(crate) struct Originals {
    pub(crate) config: Vec<u8>,
    /// `None` where layers have no other names than a list of files, as in archives of `docker save`.
    pub(crate) manifest: Option<Manifest>,
}

impl From<Image> for Described {
    /// Takes an image that has no documents.
    fn from(image: Image) -> Described {
        Described {
            image,
            originals: None,
        }
    }
}

/// What is known of an image without a look into it: of one that was opened before, or whose identity is that of its files'
/// attributes. Its content stays in the store as long as this value is held.
#[derive(Debug)]
pub struct Known {
    /// [`Image::identity`].
    pub identity: String,
    /// How it is to be run.
    pub config: Config,
    pub(crate) _held: Vec<File>,
}

/// The place of an image's files.
#[derive(Debug)]
pub enum Root {
    /// Layers, the lowest first.
    Layers(Vec<Layer>),
    /// A folder on the host.
    Folder(PathBuf),
}

/// How an image is to be run, as in the OCI image specification's `config`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments after these, which a user's own replace.
    pub cmd: Vec<String>,
    /// Environment, `NAME=value` each.
    pub env: Vec<String>,
    /// The working folder; empty means `/`.
    pub working_dir: String,
    /// `USER[:GROUP]`, names or numbers; empty means root.
    pub user: String,
    /// The signal that asks the program to end, such as `SIGTERM` or `15`; empty means `SIGTERM`.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A layer: a tar archive, plain or compressed, that adds, replaces and hides files.
///
/// [`rootfs::write()`](crate::rootfs::write()) checks it against its `diff_id`; before that, only what was pulled was checked.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The archive as it is stored.
    pub blob: Blob,
    /// The digest of the decompressed archive (`rootfs.diff_ids` of the image's configuration), where it is known: `sha256:`
    /// and 64 hexadecimal digits.
    pub diff_id: Option<String>,
}

/// A range of an open file.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The file. Readers read at offsets, so that they don't disturb each other.
    pub file: Arc<File>,
    /// The range's start, in bytes.
    pub offset: u64,
    /// The range's length, in bytes.
    pub len: u64,
    /// Its name in errors, such as `layer sha256:0123… of python:3-alpine`.
    pub name: String,
}

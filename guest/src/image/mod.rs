//! Container images: where they come from, what they say, and the layers they are made of.

use std::fs::File;
use std::sync::Arc;

/// A container image, found and held open.
#[derive(Debug)]
pub struct Image {
    /// What its root file system's content is known by: equal identities, equal files. For an image with a manifest or a
    /// config, `sha256:` and a digest.
    pub identity: String,
    /// Layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// A layer: a tar archive, plain or compressed, that adds, replaces and hides files.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The archive as it is kept.
    pub blob: Blob,
    /// The digest that the archive has once it is decompressed (`rootfs.diff_ids` of the image's config), where it is known:
    /// `sha256:` and 64 hexadecimal digits.
    pub diff_id: Option<String>,
}

/// A range of an open file.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The file. It is read at offsets, so that several readers don't disturb each other.
    pub file: Arc<File>,
    /// Where the range starts, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it is called in errors, such as `layer sha256:0123… of python:3-alpine`.
    pub name: String,
}

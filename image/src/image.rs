//! What an image is: a configuration, and files in layers or in a folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A container image, found and held open.
#[derive(Debug)]
pub struct Image {
    /// What its root file system's content and its configuration are known by: equal identities, equal images. `sha256:` and
    /// 64 hexadecimal digits: of the configuration, which names all layers by their digests, so that an image is the same
    /// from wherever it comes; or, for a bare folder or archive, of what the system tells about it.
    pub identity: String,
    /// What it says about how it is to be run.
    pub config: Config,
    /// Its files.
    pub root: Root,
}

/// Where an image's files are.
#[derive(Debug)]
pub enum Root {
    /// In layers, the lowest first.
    Layers(Vec<Layer>),
    /// In a folder of the host's.
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
    /// The signal that asks it to end, such as `SIGTERM` or `15`; empty means `SIGTERM`.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A layer: a tar archive, plain or compressed, that adds, replaces and hides files.
///
/// Whoever unpacks it checks it against its `diff_id`, for only what was pulled was checked before.
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

//! Container images: where they come from, what they say, and the layers they are made of.
//!
//! A [`Source`] is what a user calls an image. [`open`] finds it and hands out an [`Image`]: its configuration and its
//! layers, each a range of an open file. Nothing is unpacked here, and nothing is copied that is on this machine already:
//! - from a registry (`registry`), documents and layers are pulled into a [`Store`], by digest and only once;
//! - a container engine (`engine`) saves an archive, which the store keeps by the image's id;
//! - archives (`archive`, read as `saved` or `layout`) and folders (`layout`, `folder`) are used where they are.
//!
//! Whatever is read, wherever from, may be hostile: documents are limited in size and number, digests are checked and are
//! the only part of a document that becomes part of a path, and an error tells what was wrong, in one line.

mod archive;
mod compression;
mod config;
mod digest;
mod engine;
mod error;
mod files;
#[cfg(test)]
mod fixtures;
mod folder;
pub mod io_error;
mod json;
mod layout;
mod manifest;
mod progress;
pub mod publish;
mod reference;
mod registry;
pub mod rootfs;
mod saved;
mod source;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use digest::Hasher;
pub use digest::{Digest, NoDigest};
pub use error::{Cause, Error};
pub use manifest::Platform;
pub use progress::{Progress, Unwatched};
pub use publish::Partial;
pub use reference::Reference;
pub use source::Source;
pub use store::Store;

use archive::Archive;

/// Whether a registry may be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// For what isn't in the store.
    #[default]
    Missing,
    /// Always for what a tag stands for now, and then for what isn't in the store.
    Always,
    /// Never.
    Never,
}

/// How images are found.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether a registry, or a container engine, may be asked for what the store lacks.
    pub pull: Pull,
    /// The machine that an image must be for.
    pub platform: Platform,
    /// Registries (`HOST` or `HOST:PORT`) that are spoken to without TLS, besides those on this machine.
    pub plain_http: Vec<String>,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long a registry may be silent, or slower than a kilobyte a second, before a transfer counts as broken off.
    pub stall_timeout: Duration,
    /// How often a request is repeated after a failure that may pass.
    pub retries: u32,
    /// The pause before the first repetition; it doubles with each further one.
    pub backoff: Duration,
    /// The longest pause that a registry may ask for.
    pub longest_pause: Duration,
    /// How many layers are pulled at once.
    pub parallel: usize,
    /// How large all layers of an image may be together as a registry has them, and an archive that is decompressed or read
    /// from standard input, in bytes: as large as they may be when they are unpacked.
    pub largest: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            pull: Pull::default(),
            platform: Platform::here(),
            plain_http: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retries: 4,
            backoff: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            parallel: 3,
            largest: EXPANDED_MAX,
        }
    }
}

/// How large all layers of an image may be when they are unpacked, in bytes, where nothing else is said: 16 GiB.
pub(crate) const EXPANDED_MAX: u64 = 16 << 30;

/// Finds an image and opens it; what is pulled goes through `store`.
///
/// ```
/// use minivm_image::{Options, Root, Source, Store, Unwatched};
///
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("hello"), "world")?;
/// let source: Source = format!("dir:{}", folder.path().display()).parse()?;
/// let store = Store::new(folder.path().join("store"));
/// let image = minivm_image::open(&source, &store, &Options::default(), &Unwatched)?;
/// assert!(matches!(image.root, Root::Folder(_)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// One line that names the image, what is wrong and what to do; what lies below is the error's source. A registry that
/// fails, stalls or lies leads to an error too, within a time that [`Options`] bound.
///
/// # Panics
///
/// Within an asynchronous runtime's task, as blocking calls do there: give it a thread of its own.
pub fn open(
    source: &Source,
    store: &Store,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Image, Error> {
    match source {
        Source::Registry(name) => registry::open(name, store, options, progress),
        Source::Daemon(name) => engine::open(name, store, options),
        Source::Stdin if io::stdin().is_terminal() => {
            let problem =
                "is a terminal: let it come from an archive, as in `docker save NAME | …`";
            Err(Error::invalid("standard input", problem))
        }
        Source::Stdin => open_stream(io::stdin().lock(), "standard input", store, options),
        Source::DockerArchive { file, reference } => {
            let archive = open_archive(file, store, options)?;
            open_members(&archive, reference.as_ref(), options)
        }
        Source::OciArchive { file, tag } => {
            let archive = open_archive(file, store, options)?;
            match archive.member("index.json") {
                Some(_) => layout::open(&archive, tag.as_deref(), &options.platform),
                None => {
                    let reference = tag.as_ref().map(|tag| tag.parse()).transpose()?;
                    open_members(&archive, reference.as_ref(), options)
                }
            }
        }
        Source::Oci { folder, tag } => {
            let folder = layout::Folder::new(folder.clone());
            layout::open(&folder, tag.as_deref(), &options.platform)
        }
        Source::Folder(path) => folder::open_folder(path),
        Source::Tar(path) => folder::open_tar(path),
    }
}

fn open_archive(path: &Path, store: &Store, options: &Options) -> Result<Archive, Error> {
    let name = path.display().to_string();
    let file = files::open_regular(path).map_err(|source| Error::Read {
        name: name.clone(),
        source,
    })?;
    Archive::open(name, file, store, options.largest)
}

/// An archive of either kind; those that are both are read as Docker's.
fn open_members(
    archive: &Archive,
    reference: Option<&Reference>,
    options: &Options,
) -> Result<Image, Error> {
    match saved::is_one(archive) {
        true => saved::open(archive, reference, &options.platform),
        false => {
            let reference = reference.map(Reference::to_string);
            layout::open(archive, reference.as_deref(), &options.platform)
        }
    }
}

/// A stream has to be read to its end before anything can be found in it.
fn open_stream(
    stream: impl Read,
    name: &str,
    store: &Store,
    options: &Options,
) -> Result<Image, Error> {
    let mut spool = store.spool()?;
    let copied = files::copy_limited(stream, &mut spool, options.largest);
    let copied = copied.map_err(|source| Error::Read {
        name: name.into(),
        source,
    })?;
    if copied.is_none() {
        return Err(Error::TooLarge {
            what: name.into(),
            limit: options.largest,
        });
    }
    let archive = Archive::open(name.into(), spool, store, options.largest)?;
    open_members(&archive, None, options)
}

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

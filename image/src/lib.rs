//! Container images, and the root file systems that are made of them.
//!
//! A [`Source`] is what a user calls an image, such as `python:3-alpine` or `dir:/srv/root`. [`open`] finds the image and
//! returns an [`Image`]: its configuration and its layers, each a range of an open file. [`rootfs::write()`] lays the layers
//! over one another and writes an initramfs with their files. Nothing is unpacked onto the host's disk, and plain
//! archives and folders on this machine are used where they are.
//!
//! ```no_run
//! use std::fs::File;
//! use minivm_image::rootfs::{self, Compression, Limits};
//! use minivm_image::{Options, Source, Store, Unwatched};
//!
//! let source: Source = "python:3-alpine".parse()?;
//! let store = Store::new("/var/cache/images");
//! let image = minivm_image::open(&source, &store, &Options::default(), &Unwatched)?;
//! let init = std::fs::read("minivm-init")?;
//! let out = File::create("initramfs")?;
//! let made = rootfs::write(&image, &init, Compression::None, &Limits::default(), out)?;
//! println!("{} files, {} bytes", made.files, made.bytes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Modules
//!
//! | module | what it does |
//! |---|---|
//! | `source`, `reference` | parse what users call images |
//! | `registry` | pulls documents and layers from a registry into a [`Store`], by digest and only once |
//! | [`helpers`] | asks the user's files and programs for credentials and engines' images |
//! | `engine` | has Docker or Podman save an archive, which the store keeps by the image's id |
//! | `archive`, `saved`, `layout` | find images in archives and in folders of layouts |
//! | `folder` | opens a bare root file system: a folder, or a tar archive |
//! | `manifest`, `config`, `json` | read an image's documents |
//! | `store`, `files`, `digest` | keep content, open it, check it |
//! | [`inventory`] | lists what a store has |
//! | [`save`] | writes an image as an archive of an OCI layout |
//! | `tar_reader`, `blob_reader`, `compression` | read archives and layers |
//! | [`rootfs`] | makes one root file system of all layers |
//! | [`erofs`] | has the format of an EROFS image, and a reader of it |
//! | `image`, `options`, `platform`, `progress`, `error`, `shown` | hold what the others share |
//!
//! # Trust
//!
//! Images, archives and registries are hostile. Documents are limited in size and number; digests are checked, and are the
//! only part of a document that becomes part of a path. An error is one line that names what was wrong.

mod archive;
mod blob_reader;
mod compression;
mod config;
mod digest;
mod engine;
pub mod erofs;
mod error;
mod files;
#[cfg(test)]
mod fixtures;
mod folder;
pub mod helpers;
mod image;
pub mod inventory;
pub use minivm_guest::io_error;
mod json;
mod layout;
mod manifest;
mod options;
mod platform;
mod progress;
pub mod publish;
mod reference;
mod registry;
pub mod rootfs;
pub mod save;
mod saved;
mod shown;
mod source;
mod store;
mod tar_reader;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Read};
use std::path::Path;

pub use digest::{Digest, NoDigest};
pub use error::{Cause, Error};
pub use image::{Blob, Config, Described, Image, Known, Layer, Root};
pub use options::{Options, Pull};
pub use platform::{Platform, UnknownPlatform};
pub use progress::{Progress, Unwatched};
pub use publish::Partial;
pub use reference::Reference;
pub use source::Source;
pub use store::Store;

use archive::Archive;

/// Finds an image and opens it. `store` keeps what is pulled.
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
/// fails, stalls or lies is an error too, within a time that [`Options`] bound.
///
/// # Panics
///
/// Within a task of an asynchronous runtime, as blocking calls do there: give it a thread of its own.
pub fn open(
    source: &Source,
    store: &Store,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Image, Error> {
    describe(source, store, options, progress).map(|described| described.image)
}

/// As [`open`], and keeps the image's documents, for [`save`].
///
/// # Errors
///
/// As [`open`]'s.
pub fn describe(
    source: &Source,
    store: &Store,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Described, Error> {
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
        Source::Folder(path) => folder::open_folder(path).map(Described::from),
        Source::Tar(path) => folder::open_tar(path).map(Described::from),
    }
}

/// Returns what is known of an image without reading what a registry or an archive's maker wrote: that of a registry which was
/// opened before and is still in the store, a folder, or an archive of a root file system. `None` for any other one: [`open`] it.
///
/// # Errors
///
/// As [`open`]'s, for the files that are looked at.
pub fn known(source: &Source, store: &Store, options: &Options) -> Result<Option<Known>, Error> {
    let by_attributes = |image: Image| {
        Some(Known {
            identity: image.identity,
            config: image.config,
            _held: Vec::new(),
        })
    };
    match source {
        Source::Registry(name) => registry::known(name, store, options),
        Source::Folder(path) => folder::open_folder(path).map(by_attributes),
        Source::Tar(path) => folder::open_tar(path).map(by_attributes),
        _ => Ok(None),
    }
}

fn open_archive(path: &Path, store: &Store, options: &Options) -> Result<Archive, Error> {
    let name = path.display().to_string();
    let file = files::open_regular(path).map_err(Error::reading(&name))?;
    Archive::open(name, file, store, options.largest)
}

/// Opens an archive of either kind; one that is both is read as Docker's.
fn open_members(
    archive: &Archive,
    reference: Option<&Reference>,
    options: &Options,
) -> Result<Described, Error> {
    match saved::is_saved(archive) {
        true => saved::open(archive, reference, &options.platform),
        false => {
            let reference = reference.map(Reference::to_string);
            layout::open(archive, reference.as_deref(), &options.platform)
        }
    }
}

/// Copies a stream into the store, since it has to be read to its end before anything can be found in it, and opens the copy.
fn open_stream(
    stream: impl Read,
    name: &str,
    store: &Store,
    options: &Options,
) -> Result<Described, Error> {
    let mut spool = store.spool()?;
    let copied = files::copy_limited(stream, &mut spool, options.largest);
    if copied.map_err(Error::reading(name))?.is_none() {
        return Err(Error::TooLarge {
            what: name.into(),
            limit: options.largest,
        });
    }
    let archive = Archive::open(name.into(), spool, store, options.largest)?;
    open_members(&archive, None, options)
}

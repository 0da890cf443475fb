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
mod blob_reader;
mod compression;
mod config;
mod digest;
mod engine;
mod error;
mod files;
#[cfg(test)]
mod fixtures;
mod folder;
mod image;
mod json;
mod layout;
mod manifest;
mod options;
mod platform;
mod progress;
mod reference;
mod registry;
pub mod rootfs;
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
pub use image::{Blob, Config, Image, Layer, Root};
pub use options::{Options, Pull};
pub use platform::Platform;
pub use progress::{Progress, Unwatched};
pub use reference::Reference;
pub use source::Source;
pub use store::{Partial, Store};

use archive::Archive;

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
    let file = files::open_regular(path).map_err(Error::reading(&name))?;
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
    if copied.map_err(Error::reading(name))?.is_none() {
        return Err(Error::TooLarge {
            what: name.into(),
            limit: options.largest,
        });
    }
    let archive = Archive::open(name.into(), spool, store, options.largest)?;
    open_members(&archive, None, options)
}

//! An EROFS image of a root file system.
//!
//! Each layer is read once, the lowest first: its files' data go into the image as they come, its entries into the tree. When all
//! layers are read and their digests are right, the files that are hidden are taken out, and the tree is written behind the data.

mod folder;
mod stored;

use std::fs::File;

use super::Summary;
use super::error::Error;
use super::limits::{Budget, Limits};
use super::tree::Tree;
use super::{apply, scan};
use crate::erofs::{Chunks, Failure, Metadata};
use crate::image::{Image, Layer, Root};

use self::stored::Stored;

/// Writes an EROFS image with the image's files, and nothing else, to `out`: a file that is open for reading and writing, and empty.
///
/// Equal images make equal bytes on every machine. The superblock is written last, so a part of an image is no image.
///
/// # Errors
///
/// As [`write`](super::write())'s. What `out` has by then is no image.
///
/// ```
/// use minivm_image::erofs::read::{Content, Reader};
/// use minivm_image::rootfs::{self, Limits};
/// use minivm_image::{Config, Image, Root};
///
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("motd"), "hello")?;
/// let image = Image {
///     identity: "a test".into(),
///     config: Config::default(),
///     root: Root::Folder(folder.path().into()),
/// };
/// let out = tempfile::tempfile()?;
/// let made = rootfs::write_erofs(&image, &Limits::default(), &out)?;
/// assert_eq!(made.bytes, out.metadata()?.len());
///
/// let reader = Reader::open(&out)?;
/// reader.walk(|path, inode| {
///     if let Content::File(place) = &inode.content {
///         assert_eq!(path, b"motd");
///         assert_eq!(std::io::read_to_string(reader.data(place))?, "hello");
///     }
///     Ok::<_, Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_erofs(image: &Image, limits: &Limits, out: &File) -> Result<Summary, Error> {
    let budget = Budget::new(limits);
    let mut tree = Tree::new(&budget);
    let mut stored = Stored::new(out, limits);
    match &image.root {
        Root::Layers(layers) => take_layers(layers, &budget, &mut tree, &mut stored)?,
        Root::Folder(root) => folder::take(root, &budget, &mut tree, &mut stored)?,
    }
    let mut metadata = Metadata::new(&tree);
    let bytes = stored.finish(&mut metadata)?;
    Ok(Summary {
        bytes,
        files: metadata.names(),
    })
}

fn take_layers(
    layers: &[Layer],
    budget: &Budget,
    tree: &mut Tree<'_>,
    stored: &mut Stored<'_>,
) -> Result<(), Error> {
    for (layer, number) in layers.iter().zip(0..) {
        let name = &layer.blob.name;
        stored.begin();
        let found = scan::one(layer, budget, |index, entry, data| {
            let refused = |fault| Error::entry(name, &entry.path, fault);
            let size = stored.check(entry).map_err(refused)?;
            if size > 0 {
                let chunks = Chunks::of(size, data.pieces());
                let put = stored.put(index, size, chunks, data.data());
                let held = put.map_err(|failure| failed(name, failure))?;
                budget
                    .names(held)
                    .map_err(|exceeded| refused(exceeded.into()))?;
            }
            Ok(())
        })?;
        apply::layer(tree, number, name, found.entries)?;
    }
    Ok(())
}

/// Returns the error of a layer's data that could not be written.
fn failed(layer: &str, failure: Failure) -> Error {
    match failure {
        Failure::Read(source) => Error::read(layer, source),
        Failure::Write(source) => Error::Write(source),
        Failure::Exceeded(source) => Error::Limit {
            layer: layer.to_owned(),
            source,
        },
    }
}

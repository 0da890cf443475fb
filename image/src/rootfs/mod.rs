//! One root file system out of an image's layers, as an initramfs or as an EROFS image.
//!
//! [`write_erofs()`] makes the image in one pass over the layers (`erofs`; [`crate::erofs`] has the format). [`write()`] makes the
//! archive in two:
//! 1. each layer is decompressed, checked against its digest and read for its entries (`scan`, `stream`, `entries`, `fields`);
//!    these are put over each other in a tree that has every name, and the place of its data (`apply`, `tree`);
//! 2. the archive's folders and links are written from the tree, then each layer is decompressed again for the data of the
//!    files that are left, and checked again: other processes may write to the files that layers lie in (`pack`).
//!
//! Nothing is unpacked: it takes no disk, no privileges, and no file system of the host with its own ideas of names and owners.
//! Equal images make equal bytes on every machine. The layers are hostile: whatever they hold, nothing is written but the
//! archive, and memory and time are bounded by [`Limits`].

mod apply;
mod entries;
mod entry;
mod erofs;
mod error;
mod fields;
mod folder;
mod limits;
mod output;
mod pack;
mod reserved;
mod scan;
pub(crate) mod stream;
mod tree;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use self::limits::Budget;
use self::output::{Compressor, Counter};
use self::pack::Names;
use crate::image::{Config, Image, Layer, Root};
use minivm_guest::manifest;
use minivm_guest::newc::{Archive, Attributes};

pub(crate) use self::entry::Xattrs;
pub use self::erofs::write_erofs;
pub use self::error::{Error, Fault};
pub use self::limits::{Exceeded, Limits};
pub use self::output::Compression;
pub(crate) use self::tree::{Content, Id, Inode, ROOT, Tree};
pub use crate::tar_reader::{Time, Unsound};

/// Bytes of an entry's header in an archive.
const HEADER: usize = 110;
/// Bytes of an archive's last two entries, each with its name, a NUL, and no data: minivm's last file, and the archive's end.
const END: usize = (HEADER + manifest::COMPLETE.len() + 1).next_multiple_of(4)
    + (HEADER + "TRAILER!!!".len() + 1).next_multiple_of(4);

/// The size of a root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The archive's size in bytes before it was compressed. A guest needs this much memory for its files, and as much again
    /// while it unpacks them.
    pub bytes: u64,
    /// The number of files, folders and links of the image; every name counts.
    pub files: u64,
}

/// Writes an initramfs with the image's files and `init`, the guest's first process, to `out`.
///
/// The file at [`manifest::PATH`] has what init needs; paths in it are the image's. The image's own `/init` is at
/// [`manifest::IMAGES_INIT`].
///
/// # Errors
///
/// Where a layer can't be read, is not a valid archive or has another digest, or holds what a file system can't, and where the
/// image is beyond `limits`. The bytes that `out` has by then are not an archive.
///
/// ```
/// use std::{fs::File, sync::Arc};
/// use minivm_image::{Blob, Config, Image, Layer, Root};
/// use minivm_image::rootfs::{self, Compression, Limits};
///
/// let mut tar = tar::Builder::new(Vec::new());
/// let mut header = tar::Header::new_gnu();
/// header.set_size(6);
/// header.set_mode(0o644);
/// tar.append_data(&mut header, "etc/motd", &b"hello\n"[..])?;
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(&file, tar.into_inner()?)?;
///
/// let len = file.as_file().metadata()?.len();
/// let file = Arc::new(file.reopen()?);
/// let blob = Blob { file, offset: 0, len, name: "layer 1 of a test".into() };
/// let image = Image {
///     identity: "a test".into(),
///     config: Config { cmd: vec!["/bin/sh".into()], ..Config::default() },
///     root: Root::Layers(vec![Layer { blob, diff_id: None }]),
/// };
/// let mut archive = Vec::new();
/// let made = rootfs::write(&image, b"\x7fELF", Compression::None, &Limits::default(), &mut archive)?;
/// assert_eq!(made.bytes, archive.len() as u64);
/// assert_eq!(made.files, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write(
    image: &Image,
    init: &[u8],
    compression: Compression,
    limits: &Limits,
    out: impl Write,
) -> Result<Summary, Error> {
    let out = Compressor::new(compression, out).map_err(Error::Write)?;
    let out = BufWriter::with_capacity(1 << 20, Counter::new(out, limits));
    let mut archive = Archive::new(out);
    let files = match &image.root {
        Root::Layers(layers) => write_layers(layers, &image.config, init, limits, &mut archive)?,
        Root::Folder(root) => {
            let found = folder::survey(root)?;
            limits.check_archive(found.data).map_err(refused)?;
            reserved::write(&image.config, found.xattrs, init, &mut archive)?;
            folder::write(root, &mut archive)?
        }
    };
    archive.file(manifest::COMPLETE, Attributes::new(0o400), 0, io::empty())?;
    let out = archive.finish()?.into_inner();
    let out = out.map_err(|error| Error::Write(error.into_error()))?;
    let bytes = out.bytes;
    out.out.finish().map_err(Error::Write)?;
    Ok(Summary { bytes, files })
}

/// Wraps the refusal of the whole image.
fn refused(source: Exceeded) -> Error {
    Error::Limit {
        layer: "the image".to_owned(),
        source,
    }
}

/// Returns the number of names of files, folders and links that a guest has of an archive that [`write()`] made without
/// compression; `None` where it is not such an archive.
///
/// # Errors
///
/// Where the archive can't be read.
pub fn inodes(archive: &File) -> io::Result<Option<u64>> {
    let mut end = [0; END];
    let Some(start) = archive.metadata()?.len().checked_sub(END as u64) else {
        return Ok(None);
    };
    archive.read_exact_at(&mut end, start)?;
    // Inodes are numbered from one on, with a number for each further name of a file, and minivm's own file is the last.
    let number = end.strip_prefix(b"070701").and_then(|rest| rest.get(..8));
    let is_last = end[HEADER..].starts_with(manifest::COMPLETE.as_bytes());
    let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
    let number = number.filter(|_| is_last);
    Ok(number.and_then(|digits| u64::from_str_radix(digits, 16).ok()))
}

fn write_layers(
    layers: &[Layer],
    config: &Config,
    init: &[u8],
    limits: &Limits,
    archive: &mut Archive<impl Write>,
) -> Result<u64, Error> {
    let budget = Budget::new(limits);
    let mut tree = Tree::new(&budget);
    let mut digests = Vec::with_capacity(layers.len());
    for ((layer, found), number) in layers.iter().zip(scan::all(layers, &budget)?).zip(0..) {
        apply::layer(&mut tree, number, &layer.blob.name, found.entries)?;
        digests.push(found.digest);
    }
    let names = Names::new(&tree);
    // Checked here, before gigabytes are written for nothing.
    limits.check_archive(names.data()).map_err(refused)?;
    let xattrs = names.xattrs(limits).map_err(refused)?;
    reserved::write(config, xattrs, init, archive)?;
    names.write(layers, &digests, limits, archive)?;
    Ok(names.count())
}

#[cfg(test)]
mod tests;

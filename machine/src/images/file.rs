//! Images in files that the user names.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom};
use std::path::Path;

use minivm_image::io_error::failed;
use minivm_image::rootfs::{self, Compression, Limits, Summary};
use minivm_image::save::{self, Unsaved};
use minivm_image::{Described, Image, Options, Platform, Source, Store};
use serde::{Deserialize, Serialize};

use super::{Error, Init};
use crate::output_path::Output;

/// What an image becomes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// An archive of its files and of minivm's init, from which a machine boots.
    Initramfs(Compression),
    /// An EROFS image of its files alone.
    Erofs,
    /// The image itself, as an archive of an OCI layout.
    OciArchive,
}

/// Writes the image's archive with `init` to `output`, which is open at the `path` that the user wants.
///
/// # Errors
///
/// Where it can't be made or written.
pub fn build(
    image: &Image,
    init: &Init,
    compression: Compression,
    path: &Path,
    mut output: Output,
) -> Result<Summary, Error> {
    let summary = write_output(image, init, compression, path, &mut output)?;
    finish(output, path)?;
    Ok(summary)
}

/// Writes the image's archive to an output, which it doesn't finish.
pub(crate) fn write_output(
    image: &Image,
    init: &Init,
    compression: Compression,
    path: &Path,
    output: &mut Output,
) -> Result<Summary, Error> {
    let limits = Limits::default();
    let written = super::write(image, init, compression, &limits, &mut *output, path);
    written.map_err(|error| match output.failure() {
        Some(failure) => failed("write", path)(failure).into(),
        None => error,
    })
}

/// Writes an EROFS image of the image's files to an output, which it doesn't finish. One that takes bytes in order alone, such as a pipe,
/// gets a copy of one in `store`: the image is written from both of its ends.
pub(crate) fn write_erofs(
    image: &Image,
    store: &Store,
    path: &Path,
    output: &mut Output,
) -> Result<Summary, Error> {
    if let Some(mut file) = output.random_access() {
        let summary = write_erofs_to(image, file, path)?;
        // Another program may go on in an open file, behind the image.
        let end = file.seek(SeekFrom::End(0));
        end.map_err(failed("write", path))?;
        return Ok(summary);
    }
    let mut spool = store.spool()?;
    let summary = write_erofs_to(image, &spool, store.folder())?;
    let rewound = spool.rewind();
    let copied = rewound.and_then(|()| io::copy(&mut spool, output));
    copied.map_err(failed("write", path))?;
    Ok(summary)
}

/// Writes an EROFS image to an empty file, which is or will be at `path`.
pub(super) fn write_erofs_to(image: &Image, file: &File, path: &Path) -> Result<Summary, Error> {
    let written = rootfs::write_erofs(image, &Limits::default(), file);
    written.map_err(|error| match error {
        rootfs::Error::Write(source) => failed("write", path)(source).into(),
        error => error.into(),
    })
}

/// Writes the archive of an image that was opened for `platform`, and that the user calls `source`, to an output, which it doesn't finish.
pub(crate) fn write_oci_archive(
    found: &Described,
    source: &Source,
    platform: &Platform,
    path: &Path,
    output: &mut Output,
) -> Result<Summary, Error> {
    let limit = Options::default().largest;
    let out = BufWriter::with_capacity(1 << 20, output);
    let written = save::write(found, source, platform, limit, out);
    written.map_err(|error| match error {
        Unsaved::Write(source) => failed("write", path)(source).into(),
        Unsaved::Image(error) => error.into(),
        Unsaved::Layer(error) => error.into(),
    })
}

/// Gives the output, in which the whole image is, its name.
pub(crate) fn finish(output: Output, path: &Path) -> Result<(), Error> {
    let synced = output.sync();
    let finished = synced.and_then(|()| output.finish());
    Ok(finished.map_err(failed("write", path))?)
}

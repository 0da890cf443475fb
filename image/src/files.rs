//! Opens and checks files of unknown origin.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::digest::Digest;
use super::error::Error;
use super::image::Blob;
use super::manifest::{Descriptor, Kind};

/// Opens a regular file, and nothing else: a pipe or a device of that name would block the reader for ever.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Returns the whole of a file as a blob.
pub(super) fn whole(file: File, name: String) -> io::Result<Blob> {
    Ok(Blob {
        len: file.metadata()?.len(),
        offset: 0,
        file: Arc::new(file),
        name,
    })
}

/// Reads a small blob.
pub(super) fn read(blob: &Blob, limit: u64) -> Result<Vec<u8>, Error> {
    let too_large = || Error::TooLarge {
        what: blob.name.clone(),
        limit,
    };
    let len = usize::try_from(blob.len.min(limit + 1)).map_err(|_| too_large())?;
    if blob.len > limit {
        return Err(too_large());
    }
    let mut bytes = vec![0; len];
    let read = blob.file.read_exact_at(&mut bytes, blob.offset);
    read.map_err(Error::reading(&blob.name))?;
    Ok(bytes)
}

/// Reads a document, and checks its size and digest.
pub(super) fn read_document(
    blob: &Blob,
    descriptor: &Descriptor,
    kind: Kind,
) -> Result<Vec<u8>, Error> {
    check_size(blob, descriptor)?;
    let bytes = read(blob, kind.limit())?;
    check_digest(&blob.name, &bytes, &descriptor.digest)?;
    Ok(bytes)
}

/// Refuses content that is shorter or longer than its descriptor says.
pub(super) fn check_size(blob: &Blob, descriptor: &Descriptor) -> Result<(), Error> {
    match descriptor.size {
        Some(size) if size != blob.len => {
            let problem = format!("has {} bytes instead of {size}: it is incomplete", blob.len);
            Err(Error::invalid(&blob.name, problem))
        }
        _ => Ok(()),
    }
}

/// Refuses content that has another digest.
pub(super) fn check_digest(what: &str, bytes: &[u8], expected: &Digest) -> Result<(), Error> {
    let actual = Digest::of(bytes);
    match actual == *expected {
        true => Ok(()),
        false => Err(Error::Digest {
            what: what.into(),
            expected: expected.clone(),
            actual,
        }),
    }
}

/// Copies at most `limit` bytes, and returns how many there were; `None` if there are more.
pub(super) fn copy_limited(from: impl Read, to: &mut File, limit: u64) -> io::Result<Option<u64>> {
    let copied = io::copy(&mut from.take(limit.saturating_add(1)), to)?;
    Ok((copied <= limit).then_some(copied))
}

//! The layers of an archive: their digests and lengths, which come before their content.

use std::io::{self, Read};

use crate::blob_reader::BlobReader;
use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::image::{Blob, Layer};
use crate::rootfs::{self, stream};

use super::Unsaved;

/// A layer, as it will be in the archive.
pub(super) struct Content {
    pub(super) digest: Digest,
    pub(super) len: u64,
    pub(super) blob: Blob,
    form: Form,
}

/// The form of a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it is stored.
    Stored,
    /// Decompressed.
    Plain,
}

impl Content {
    /// A layer as it is stored, which has to have this digest.
    pub(super) fn stored(digest: &Digest, blob: &Blob) -> Content {
        Content {
            digest: digest.clone(),
            len: blob.len,
            blob: blob.clone(),
            form: Form::Stored,
        }
    }

    /// Opens the content, from its start.
    pub(super) fn open(&self) -> Result<Box<dyn Read + Send>, rootfs::Error> {
        match self.form {
            Form::Stored => Ok(Box::new(BlobReader::new(self.blob.clone()))),
            Form::Plain => stream::open(&self.blob),
        }
    }
}

/// Refuses layers that have more than `limit` bytes together.
pub(super) fn check_total(name: &str, layers: &[Content], limit: u64) -> Result<(), Error> {
    let mut total: u64 = 0;
    for layer in layers {
        total = total.saturating_add(layer.len);
    }
    match total <= limit {
        true => Ok(()),
        false => Err(Error::TooLarge {
            what: name.into(),
            limit,
        }),
    }
}

/// Decompresses layers once, for their digests and lengths, which have to be those that the image's configuration names. They may have
/// `limit` bytes together.
pub(super) fn plain(name: &str, layers: &[Layer], limit: u64) -> Result<Vec<Content>, Unsaved> {
    let mut left = limit;
    let mut all = Vec::new();
    for Layer { blob, diff_id } in layers {
        let mut hash = Hasher::default();
        let content = stream::open(blob)?;
        let len = hash.read(content.take(left.saturating_add(1)));
        let len = len.map_err(Error::reading(&blob.name))?;
        left = left.checked_sub(len).ok_or_else(|| Error::TooLarge {
            what: name.into(),
            limit,
        })?;
        let digest = hash.finish();
        let expected = diff_id.as_deref().and_then(|named| named.parse().ok());
        check(blob, expected.as_ref().unwrap_or(&digest), &digest)?;
        all.push(Content {
            digest,
            len,
            blob: blob.clone(),
            form: Form::Plain,
        });
    }
    Ok(all)
}

/// Refuses a layer that has another digest.
pub(super) fn check(blob: &Blob, expected: &Digest, actual: &Digest) -> Result<(), Error> {
    match expected == actual {
        true => Ok(()),
        false => Err(Error::Digest {
            what: blob.name.clone(),
            expected: expected.clone(),
            actual: actual.clone(),
        }),
    }
}

/// A reader that hashes what passes, and keeps the error that ends it: a copy's error may as well be its writer's.
pub(super) struct Checked<R> {
    inner: R,
    pub(super) hash: Hasher,
    pub(super) failure: Option<io::Error>,
}

impl<R: Read> Checked<R> {
    pub(super) fn new(inner: R) -> Checked<R> {
        Checked {
            inner,
            hash: Hasher::default(),
            failure: None,
        }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.hash.update(&buffer[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}

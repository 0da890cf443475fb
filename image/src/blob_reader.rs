//! Blobs as streams.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::image::Blob;

/// A blob being read from its start. Other readers of the file don't disturb it.
pub(super) struct BlobReader {
    blob: Blob,
    at: u64,
}

impl BlobReader {
    pub(super) fn new(blob: Blob) -> BlobReader {
        BlobReader { blob, at: 0 }
    }

    /// Moves on by `count` bytes, and returns how many there were: fewer only at the end.
    pub(super) fn skip(&mut self, count: u64) -> u64 {
        let skipped = count.min(self.blob.len.saturating_sub(self.at));
        self.at += skipped;
        skipped
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.len.saturating_sub(self.at);
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let offset = self.blob.offset.checked_add(self.at);
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        let count = self.blob.file.read_at(&mut buffer[..wanted], offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}

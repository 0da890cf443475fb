//! Data of files.

use std::io::{self, Read};

use super::{Error, Kind, Place, ReadAt, Reader};
use crate::erofs::BLOCK;
use crate::erofs::chunks::{ADDRESS, HOLE};

/// A reader of a file's data, with zeros for its holes. A file may have 8 EiB of them.
#[derive(Debug)]
pub struct Data<'s, S: ?Sized> {
    source: &'s S,
    place: Place,
    at: u64,
}

impl<'s, S: ?Sized> Data<'s, S> {
    /// Begins at a place of the file.
    pub(super) fn new(source: &'s S, place: Place, at: u64) -> Self {
        Data { source, place, at }
    }
}

impl<S: ReadAt + ?Sized> Read for Data<'_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.place.size || bytes.is_empty() {
            return Ok(0);
        }
        let (from, len) = part(self.source, &self.place, self.at)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = &mut bytes[..len];
        match from {
            Some(from) => self.source.read_at(bytes, from)?,
            None => bytes.fill(0),
        }
        self.at += len as u64;
        Ok(len)
    }
}

/// Returns where in the image a file's bytes from `at` on are, `None` for a hole's, and how many there are in a row; `at` is less than
/// the file's size.
fn part<S: ReadAt + ?Sized>(source: &S, place: &Place, at: u64) -> io::Result<(Option<u64>, u64)> {
    let left = place.size - at;
    Ok(match place.kind {
        Kind::Row(start) => (Some(start + at), left),
        Kind::Inline { row, inline, .. } if left > inline => (Some(row + at), left - inline),
        Kind::Inline {
            inline, at: tail, ..
        } => (Some(tail + inline - left), left),
        Kind::Chunks { len, addresses } => {
            let mut address = [0; 4];
            source.read_at(&mut address, addresses + at / len * ADDRESS)?;
            let start = match u32::from_le_bytes(address) {
                HOLE => None,
                block => Some(u64::from(block) * BLOCK + at % len),
            };
            (start, left.min(len - at % len))
        }
    })
}

impl<S: ReadAt + ?Sized> Reader<'_, S> {
    /// Calls `visit` with the place and the length of each part of a file's data that is in the image.
    pub(super) fn extents(
        &self,
        place: &Place,
        visit: &mut dyn FnMut(u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = 0;
        while at < place.size {
            let (from, len) = part(self.source, place, at)?;
            if let Some(from) = from {
                visit(from, len)?;
            }
            at += len;
        }
        Ok(())
    }
}

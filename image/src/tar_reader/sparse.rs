//! Files with holes: an archive has the pieces that have data, and a map of their places.
//!
//! GNU tar writes two kinds today: the type `S`, whose map starts in the header and continues in blocks after it, and version
//! 1.0 in pax headers, whose map is text before the data (GNU tar manual, "Storing Sparse Files"). A reader of the data gets the
//! holes' zeros, since cpio archives have no holes, or skips them, since EROFS images have.

use std::io::{self, Read};
use std::iter;
use std::ops::Range;

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::block::BLOCK;
use super::number;
use super::pax::Sparse;

/// The places of the bytes that follow: pieces in order, which don't overlap.
#[derive(Debug, Default)]
pub(super) struct Map {
    pieces: Vec<Range<u64>>,
    size: u64,
}

impl Map {
    /// The map of a file without holes.
    pub(super) fn plain(size: u64) -> Map {
        Map {
            pieces: iter::once(0..size).collect(),
            size,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The places of data, in order; bytes between and after them are zeros.
    pub(crate) fn pieces(&self) -> &[Range<u64>] {
        &self.pieces
    }

    /// Whether the file has no holes.
    pub(super) fn is_plain(&self) -> bool {
        match &self.pieces[..] {
            [] => self.size == 0,
            [piece] => piece.start == 0 && piece.end == self.size,
            _ => false,
        }
    }

    fn add(&mut self, start: u64, len: u64, limit: u64) -> Option<()> {
        let end = start.checked_add(len)?;
        let last = self.pieces.last().map_or(0, |piece| piece.end);
        let room = ((self.pieces.len() + 1) * size_of::<Range<u64>>()) as u64 <= limit;
        if start < last || end > self.size || !room {
            return None;
        }
        self.pieces.push(start..end);
        Some(())
    }

    fn holds(self, stored: u64) -> Option<Map> {
        let sum = self.pieces.iter().map(|piece| piece.end - piece.start);
        (sum.sum::<u64>() == stored).then_some(self)
    }

    /// Returns the file's bytes, with zeros for its holes.
    pub(super) fn expand<R: Read>(self, data: R) -> Expanded<R> {
        Expanded {
            map: self,
            data,
            piece: 0,
            at: 0,
        }
    }
}

/// A file's bytes, with zeros for its holes.
pub(crate) struct Expanded<R> {
    map: Map,
    data: R,
    piece: usize,
    at: u64,
}

impl<R> Expanded<R> {
    /// Goes on at a later place. The bytes up to there are a hole's.
    pub(crate) fn skip_to(&mut self, at: u64) {
        self.at = self.at.max(at);
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let pieces = &self.map.pieces;
        while (pieces.get(self.piece)).is_some_and(|piece| piece.end <= self.at) {
            self.piece += 1;
        }
        let (hole, end) = match pieces.get(self.piece) {
            Some(piece) if piece.start <= self.at => (false, piece.end),
            Some(piece) => (true, piece.start),
            None => (true, self.map.size),
        };
        let left = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let buffer = &mut buffer[..wanted];
        let count = if hole {
            buffer.fill(0);
            wanted
        } else {
            self.data.read(buffer)?
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// Reads the map of a member of the type `S`; `None` where it contradicts itself.
pub(super) fn gnu(
    header: &Header,
    stored: u64,
    limit: u64,
    mut block: impl FnMut() -> io::Result<Option<[u8; BLOCK]>>,
) -> io::Result<Option<Map>> {
    let Some(gnu) = header.as_gnu() else {
        return Ok(None);
    };
    let unsigned =
        |field: &[u8]| number::field(field).and_then(|number| u64::try_from(number).ok());
    let Some(size) = unsigned(&gnu.realsize) else {
        return Ok(None);
    };
    let pieces = Vec::new();
    let mut map = Map { pieces, size };
    let add = |map: &mut Map, pieces: &[GnuSparseHeader]| {
        // Unused places are empty.
        let used = pieces.iter().filter(|piece| piece.numbytes[0] != 0);
        used.into_iter().try_for_each(|piece| {
            map.add(unsigned(&piece.offset)?, unsigned(&piece.numbytes)?, limit)
        })
    };
    let mut sound = add(&mut map, &gnu.sparse);
    let mut more = gnu.is_extended();
    while more && sound.is_some() {
        let Some(bytes) = block()? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let mut extension = GnuExtSparseHeader::new();
        extension.as_mut_bytes().copy_from_slice(&bytes);
        sound = add(&mut map, extension.sparse());
        more = extension.is_extended();
    }
    Ok(sound.and_then(|()| map.holds(stored)))
}

/// Reads a map of version 1.0: decimal numbers, a line each: the number of pieces, then offset and length of each; padded to a
/// block.
pub(super) fn pax(
    sparse: Sparse,
    stored: u64,
    limit: u64,
    data: &mut impl Read,
) -> io::Result<Option<Map>> {
    let (Some(1), Some(0), Some(size)) = (sparse.major, sparse.minor, sparse.size) else {
        return Ok(None);
    };
    let pieces = Vec::new();
    let mut map = Map { pieces, size };
    let mut lines = Lines { data, read: 0 };
    let Some(count) = lines.number(stored)? else {
        return Ok(None);
    };
    for _ in 0..count {
        let (start, len) = (lines.number(stored)?, lines.number(stored)?);
        let added = start
            .zip(len)
            .and_then(|(start, len)| map.add(start, len, limit));
        if added.is_none() {
            return Ok(None);
        }
    }
    let padded = lines.read.next_multiple_of(BLOCK as u64);
    let padding = padded - lines.read;
    let skipped = io::copy(&mut data.take(padding), &mut io::sink())?;
    let held = stored.checked_sub(padded).filter(|_| skipped == padding);
    Ok(held.and_then(|held| map.holds(held)))
}

struct Lines<'d, R> {
    data: &'d mut R,
    read: u64,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self, limit: u64) -> io::Result<Option<u64>> {
        let mut line = Vec::new();
        while line.len() <= 20 && self.read < limit {
            let mut byte = [0];
            self.data.read_exact(&mut byte)?;
            self.read += 1;
            if byte == *b"\n" {
                let number = number::decimal(&line).and_then(|number| u64::try_from(number).ok());
                return Ok(number);
            }
            line.extend_from_slice(&byte);
        }
        Ok(None)
    }
}

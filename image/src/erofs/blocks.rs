//! The blocks of an image being written, one after another.
//!
//! Files' data come once, in the order of the layers, the lowest first, and are written as they come: which of them a higher layer will
//! hide isn't known yet. Nor would it be if the layers were read from the top down, since a path leads through links of lower layers,
//! and a hidden file's data may have another name. So the files that are hidden in the end are taken out when all is read
//! ([`Blocks::keep`]): the blocks behind the first of them move down. Nothing of a hidden file is left in the image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::iter;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::chunks::Chunks;
use super::{BLOCK, blocks_of};
use crate::rootfs::{Exceeded, Limits};
use crate::tar_reader::{Data, Input};

/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

/// The place of a file's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first block.
    pub(super) block: u32,
    /// The chunks that have data, where the file has holes.
    pub(super) chunks: Option<Box<Chunks>>,
}

impl Extent {
    /// Returns the number of blocks of a file of this size.
    fn blocks(&self, size: u64) -> u64 {
        let of_chunks = |chunks: &Chunks| chunks.blocks(size);
        self.chunks.as_deref().map_or(blocks_of(size), of_chunks)
    }

    /// Returns the places in a file of this size that have blocks.
    fn stored(&self, size: u64) -> Vec<Range<u64>> {
        match &self.chunks {
            None => iter::once(0..size).collect(),
            Some(chunks) => chunks.stored(size).collect(),
        }
    }

    /// Returns the bytes of memory that the places of its holes take.
    pub(crate) fn memory(&self) -> usize {
        self.chunks.as_ref().map_or(0, |chunks| 16 * chunks.runs())
    }
}

/// A file's data, with zeros for holes, which may be skipped.
pub(crate) trait Holes: Read {
    /// Goes on at a later place of the file. The bytes up to there are a hole's.
    fn skip_to(&mut self, at: u64) -> io::Result<()>;
}

impl<R: Input> Holes for Data<'_, R> {
    fn skip_to(&mut self, at: u64) -> io::Result<()> {
        self.skip_to(at);
        Ok(())
    }
}

impl Holes for &File {
    fn skip_to(&mut self, at: u64) -> io::Result<()> {
        self.seek(SeekFrom::Start(at)).map(drop)
    }
}

/// The reason why data were not written.
#[derive(Debug)]
pub(crate) enum Failure {
    /// They can't be read, or are fewer than they should be.
    Read(io::Error),
    /// The image can't be written to.
    Write(io::Error),
    /// The image would be too large.
    Exceeded(Exceeded),
}

/// An image's file, with the place where the next block goes.
#[derive(Debug)]
pub(crate) struct Blocks<'f> {
    file: &'f File,
    /// Bytes that are written next, how many they are, and their place in the file.
    buffer: Box<[u8]>,
    used: usize,
    at: u64,
    limits: Limits,
}

impl<'f> Blocks<'f> {
    /// Begins an image in a file that is empty, behind the superblock's block.
    pub(crate) fn new(file: &'f File, limits: &Limits) -> Blocks<'f> {
        Blocks {
            file,
            buffer: vec![0; BUFFER].into(),
            used: 0,
            at: BLOCK,
            limits: *limits,
        }
    }

    /// Returns the next block's address.
    pub(super) fn next(&self) -> u32 {
        // `reserve` refuses an image that has more.
        u32::try_from(blocks_of(self.position())).unwrap_or(u32::MAX)
    }

    /// The place where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.at + self.used as u64
    }

    /// Refuses so many bytes more where they would be beyond the limits, or have no address.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), Failure> {
        let end = self.position().saturating_add(bytes);
        let checked = self.limits.check_image(end);
        checked.map_err(Failure::Exceeded)
    }

    /// Writes a file's data, those of these chunks if it has holes, and zeros to the end of their last block.
    pub(crate) fn put(
        &mut self,
        size: u64,
        chunks: Option<Chunks>,
        mut data: impl Holes,
    ) -> Result<Extent, Failure> {
        let extent = Extent {
            block: self.next(),
            chunks: chunks.map(Box::new),
        };
        self.reserve(extent.blocks(size).saturating_mul(BLOCK))?;
        for place in extent.stored(size) {
            data.skip_to(place.start).map_err(Failure::Read)?;
            self.copy(&mut data, place.end - place.start)?;
        }
        Ok(extent)
    }

    /// Copies so many bytes, and fills their last block.
    fn copy(&mut self, data: &mut impl Read, mut left: u64) -> Result<(), Failure> {
        while left > 0 {
            let room = self.room().map_err(Failure::Write)?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            match data.read(&mut room[..wanted]) {
                Ok(0) => return Err(Failure::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.used += count;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Read(error)),
            }
        }
        self.fill_block().map_err(Failure::Write)
    }

    /// Writes bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.used += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Writes zeros up to this place.
    pub(super) fn pad_to(&mut self, place: u64) -> io::Result<()> {
        while self.position() < place {
            let missing = usize::try_from(place - self.position()).unwrap_or(usize::MAX);
            let room = self.room()?;
            let len = missing.min(room.len());
            room[..len].fill(0);
            self.used += len;
        }
        Ok(())
    }

    /// Writes zeros to the end of the block.
    pub(super) fn fill_block(&mut self) -> io::Result<()> {
        self.pad_to(self.position().next_multiple_of(BLOCK))
    }

    /// Returns the part of the buffer where the next bytes go, which has room.
    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.used == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.used..])
    }

    /// Hands what was written to the file.
    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer[..self.used], self.at)?;
        self.at += self.used as u64;
        self.used = 0;
        Ok(())
    }

    /// Takes out the blocks of all files but these, which come in the order in which they were written, with their sizes.
    pub(crate) fn keep<'e>(
        &mut self,
        kept: impl Iterator<Item = (&'e mut Extent, u64)>,
    ) -> io::Result<()> {
        self.flush()?;
        let mut end = 1;
        let mut row = Row::default();
        for (extent, size) in kept {
            let blocks = extent.blocks(size);
            let from = u64::from(extent.block);
            if from != row.from + row.blocks {
                self.move_down(&row)?;
                row = Row {
                    from,
                    to: end,
                    blocks: 0,
                };
            }
            row.blocks += blocks;
            // It is no higher than it was.
            extent.block = u32::try_from(end).unwrap_or(extent.block);
            end += blocks;
        }
        self.move_down(&row)?;
        self.at = end * BLOCK;
        Ok(())
    }

    fn move_down(&mut self, row: &Row) -> io::Result<()> {
        if row.from == row.to {
            return Ok(());
        }
        let len = row.blocks * BLOCK;
        let mut moved = 0;
        while moved < len {
            let wanted = usize::try_from(len - moved).unwrap_or(usize::MAX);
            let wanted = wanted.min(self.buffer.len());
            let bytes = &mut self.buffer[..wanted];
            self.file.read_exact_at(bytes, row.from * BLOCK + moved)?;
            self.file.write_all_at(bytes, row.to * BLOCK + moved)?;
            moved += wanted as u64;
        }
        Ok(())
    }

    /// Ends the image with the block of its superblock; returns its length in bytes.
    pub(super) fn finish(mut self, first: &[u8]) -> io::Result<u64> {
        self.flush()?;
        // Files that were taken out may have stood behind it.
        self.file.set_len(self.at)?;
        self.file.write_all_at(first, 0)?;
        Ok(self.at)
    }
}

/// Blocks in a row that move together.
#[derive(Default)]
struct Row {
    from: u64,
    to: u64,
    blocks: u64,
}

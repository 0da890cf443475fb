//! Files with holes: chunks of equal size, each with the address of its first block behind the inode, or with that of a hole (`struct
//! erofs_inode_chunk_info`, "Chunk-based files" in `erofs.rst`).
//!
//! A chunk has 4 KiB times a power of two. Small ones follow the holes closely, large ones need fewer addresses: a file has the size
//! with which both together take the fewest bytes.

use std::ops::Range;

use super::{BLOCK, blocks_of};

/// Bytes of an address.
pub(super) const ADDRESS: u64 = 4;
/// The address of a hole (`EROFS_NULL_ADDR`).
pub(super) const HOLE: u32 = u32::MAX;
/// The largest power of two in an inode (`EROFS_CHUNK_FORMAT_BLKBITS_MASK`).
const BITS_MAX: u8 = 31;

/// The chunks of a file that have data. Their blocks stand in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// A chunk has two to the power of this many blocks.
    bits: u8,
    runs: Box<[Range<u64>]>,
}

impl Chunks {
    /// Returns the chunks of a file with data in these places, in order; `None` where it takes no more bytes without holes.
    pub(crate) fn of(size: u64, pieces: &[Range<u64>]) -> Option<Chunks> {
        let whole = blocks_of(size) * BLOCK;
        let (mut best, mut least) = (None, whole);
        for bits in 0..=BITS_MAX {
            let chunks = Chunks::with(bits, pieces);
            let bytes = chunks.count(size) * ADDRESS + chunks.blocks(size) * BLOCK;
            if bytes < least {
                (best, least) = (Some(chunks), bytes);
            }
            if chunk_len(bits) >= whole {
                break;
            }
        }
        best
    }

    fn with(bits: u8, pieces: &[Range<u64>]) -> Chunks {
        let len = chunk_len(bits);
        let mut runs: Vec<Range<u64>> = Vec::new();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let (first, end) = (piece.start / len, piece.end.div_ceil(len));
            match runs.last_mut() {
                Some(last) if first <= last.end => last.end = last.end.max(end),
                _ => runs.push(first..end),
            }
        }
        Chunks {
            bits,
            runs: runs.into(),
        }
    }

    /// Returns their size as the file's inode has it.
    pub(super) fn format(&self) -> u32 {
        self.bits.into()
    }

    /// Returns the length of a chunk in bytes; `None` for a kind of chunks that isn't used.
    pub(super) fn len_of(format: u32) -> Option<u64> {
        let bits = u8::try_from(format).ok().filter(|&bits| bits <= BITS_MAX);
        bits.map(chunk_len)
    }

    /// The number of the file's chunks.
    pub(super) fn count(&self, size: u64) -> u64 {
        size.div_ceil(chunk_len(self.bits))
    }

    /// The number of runs of chunks that have data.
    pub(crate) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// The places in the file that have blocks.
    pub(super) fn stored(&self, size: u64) -> impl Iterator<Item = Range<u64>> {
        let len = chunk_len(self.bits);
        let runs = self.runs.iter();
        runs.map(move |run| run.start * len..(run.end * len).min(size))
    }

    /// The number of blocks of all data.
    pub(super) fn blocks(&self, size: u64) -> u64 {
        self.stored(size)
            .map(|place| blocks_of(place.end - place.start))
            .sum()
    }

    /// The address of every chunk, if the first block of the data is `block`.
    pub(super) fn addresses(&self, size: u64, block: u32) -> impl Iterator<Item = u32> {
        let mut runs = self.runs.iter().peekable();
        let mut next = u64::from(block);
        (0..self.count(size)).map(move |chunk| {
            runs.next_if(|run| run.end <= chunk);
            if runs.peek().is_none_or(|run| !run.contains(&chunk)) {
                return HOLE;
            }
            let address = next;
            next += 1 << self.bits;
            u32::try_from(address).unwrap_or(HOLE)
        })
    }
}

fn chunk_len(bits: u8) -> u64 {
    BLOCK << bits
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;

    /// Pieces of data, each with its start and its end.
    fn pieces(places: &[(u64, u64)]) -> Vec<Range<u64>> {
        places.iter().map(|&(start, end)| start..end).collect()
    }

    #[test]
    fn a_file_without_holes_that_are_worth_it_has_no_chunks() {
        for (size, places) in [
            (0, &[][..]),
            (1, &[(0, 1)]),
            (10 * K, &[(0, 10 * K)]),
            // A hole within a block, and one of fewer blocks than the addresses take.
            (4 * K, &[(0, K)]),
            (8 * K, &[(0, 3 * K), (5 * K, 8 * K)]),
        ] {
            let chunks = Chunks::of(size, &pieces(places));
            assert_eq!(chunks, None, "{size} {places:?}");
        }
    }

    #[test]
    fn the_size_of_chunks_makes_a_file_small() {
        let chunks = |size, places: &[(u64, u64)]| Chunks::of(size, &pieces(places)).unwrap();
        let places = [(K, 2 * K), (2 * K, 2 * K), (40 * K, 41 * K)];
        let small = chunks(64 * K, &places);
        assert_eq!((small.bits, small.blocks(64 * K)), (0, 2));
        let addresses: Vec<_> = small.addresses(64 * K, 7).collect();
        let mut expected = [HOLE; 16];
        (expected[0], expected[10]) = (7, 8);
        assert_eq!(addresses, expected);
        // 5 GiB with a byte in it, and the most that a file can have without any.
        let large = 5 << 30;
        let byte = chunks(large, &[(1 << 30, (1 << 30) + 1)]);
        assert!(byte.count(large) * ADDRESS + byte.blocks(large) * BLOCK < 320 * K);
        let most = i64::MAX.cast_unsigned();
        let empty = chunks(most, &[]);
        assert_eq!((empty.count(most), empty.blocks(most)), (1 << 20, 0));
    }

    #[test]
    fn the_last_chunk_has_the_blocks_that_it_needs() {
        let size = 100 * K + 1;
        let end = Chunks::with(3, &pieces(&[(99 * K, size)]));
        assert_eq!(
            end.stored(size).collect::<Vec<_>>(),
            pieces(&[(96 * K, size)])
        );
        assert_eq!(end.blocks(size), 2);
        let both = Chunks::with(3, &pieces(&[(0, 1), (99 * K, size)]));
        let addresses: Vec<_> = both.addresses(size, 5).collect();
        assert_eq!(addresses, [5, HOLE, HOLE, 13]);
    }
}

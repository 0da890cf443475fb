//! Blocks of tar archives.

use tar::Header;

use super::number;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// Returns the block as a header; `None` where its checksum is wrong.
pub(super) fn header(block: &[u8; BLOCK]) -> Option<Header> {
    let header = Header::from_byte_slice(block);
    let stored = number::field(&header.as_old().cksum);
    (stored == Some(checksum(block))).then(|| header.clone())
}

/// Returns the sum of a header's bytes, with the checksum's own field taken as spaces.
fn checksum(block: &[u8; BLOCK]) -> i128 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| i128::from(byte)).sum::<i128>();
    sum(&block[..148]) + 8 * i128::from(b' ') + sum(&block[156..])
}

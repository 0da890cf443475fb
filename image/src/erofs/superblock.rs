//! The superblock, `struct erofs_super_block`.

use super::read::Error;
use super::{BLOCK_BITS, get, put};
use crate::rootfs::Time;

/// Its place in the image, and the bytes that it has there.
pub(super) const OFFSET: usize = 1024;
const LEN: usize = 128;
/// The place of the byte behind it.
pub(super) const END: u64 = (OFFSET + LEN) as u64;
/// The bytes that its checksum is about: the rest of its block.
pub(super) const CHECKED: usize = (1 << BLOCK_BITS) - OFFSET;

const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: the superblock has a checksum.
const CHECKSUM: u32 = 1;
/// `EROFS_FEATURE_COMPAT_MTIME`: times are those of the last change of the content.
const MTIME: u32 = 2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`: there are chunk-based files.
const CHUNKED: u32 = 4;
/// `EROFS_FEATURE_INCOMPAT_ZERO_PADDING`: padding stands before compressed data. `mkfs.erofs` sets it in images without such data, too.
const PADDING: u32 = 1;

/// The fields that differ between images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// The root's number.
    pub(super) root: u16,
    /// The number of inodes.
    pub(super) inodes: u64,
    /// The time of compact inodes.
    pub(super) time: Time,
    /// Blocks of the image.
    pub(super) blocks: u32,
    /// The block in which slot 0 is.
    pub(super) metadata: u32,
    pub(super) uuid: [u8; 16],
    /// Whether there are chunk-based files.
    pub(super) chunked: bool,
}

impl Superblock {
    /// Returns the bytes from its place to the end of its block, with their checksum.
    pub(super) fn encode(&self) -> [u8; CHECKED] {
        let mut bytes = [0; CHECKED];
        put(&mut bytes, 0, MAGIC.to_le_bytes());
        put(&mut bytes, 8, (CHECKSUM | MTIME).to_le_bytes());
        put(&mut bytes, 12, [BLOCK_BITS]);
        put(&mut bytes, 14, self.root.to_le_bytes());
        put(&mut bytes, 16, self.inodes.to_le_bytes());
        put(&mut bytes, 24, self.time.seconds.to_le_bytes());
        put(&mut bytes, 32, self.time.nanoseconds.to_le_bytes());
        put(&mut bytes, 36, self.blocks.to_le_bytes());
        put(&mut bytes, 40, self.metadata.to_le_bytes());
        put(&mut bytes, 48, self.uuid);
        let features = if self.chunked { CHUNKED } else { 0 };
        put(&mut bytes, 80, features.to_le_bytes());
        let checksum = checksum(&bytes);
        put(&mut bytes, 4, checksum.to_le_bytes());
        bytes
    }

    /// Reads the superblock out of the bytes from its place to the end of its block.
    pub(super) fn parse(bytes: &[u8; CHECKED]) -> Result<Superblock, Error> {
        let number = |at| u32::from_le_bytes(get(bytes, at));
        if number(0) != MAGIC {
            return Err(Error::Magic);
        }
        if number(8) & CHECKSUM == 0 || number(4) != checksum(bytes) {
            return Err(Error::Checksum);
        }
        let features = number(80);
        if features & !(CHUNKED | PADDING) != 0 {
            return Err(Error::Features { features });
        }
        // What comes with other features, or with other sizes of blocks and superblocks.
        let (sizes, compression, devices, rest) = (
            get(bytes, 12),
            get(bytes, 84),
            get(bytes, 86),
            &bytes[88..LEN],
        );
        let zeros = rest.iter().all(|&byte| byte == 0);
        if sizes != [BLOCK_BITS, 0] || compression != [0; 2] || devices != [0; 2] || !zeros {
            return Err(Error::Superblock);
        }
        let time = Time {
            seconds: i64::from_le_bytes(get(bytes, 24)),
            nanoseconds: number(32),
        };
        if time.nanoseconds >= 1_000_000_000 {
            return Err(Error::Superblock);
        }
        Ok(Superblock {
            root: u16::from_le_bytes(get(bytes, 14)),
            inodes: u64::from_le_bytes(get(bytes, 16)),
            time,
            blocks: number(36),
            metadata: number(40),
            uuid: get(bytes, 48),
            chunked: features & CHUNKED != 0,
        })
    }
}

/// Gives an image that was changed the checksum that it should have; does nothing where it is too short to have one.
pub fn seal(image: &mut [u8]) {
    if let Some(bytes) = image.get_mut(OFFSET..OFFSET + CHECKED) {
        let checksum = checksum(bytes);
        put(bytes, 4, checksum.to_le_bytes());
    }
}

/// Returns the checksum of these bytes, with their own one taken as zeros: CRC-32C without its last inversion
/// (`erofs_superblock_csum_verify` in `fs/erofs/super.c`).
fn checksum(bytes: &[u8]) -> u32 {
    let own = |at: usize| (4..8).contains(&at);
    bytes.iter().enumerate().fold(!0, |checksum, (at, &byte)| {
        let byte = if own(at) { 0 } else { byte };
        (0..8).fold(checksum ^ u32::from(byte), |rest, _| {
            let polynomial = if rest & 1 == 1 { 0x82f6_3b78 } else { 0 };
            (rest >> 1) ^ polynomial
        })
    })
}

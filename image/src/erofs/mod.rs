//! EROFS, a read-only file system that Linux mounts from memory: its format, a writer and a reader.
//!
//! The format is that of Linux's `fs/erofs/erofs_fs.h`, explained in `Documentation/filesystems/erofs.rst` under "On-disk details",
//! "Directories" and "Chunk-based files". Of all that it has, the writer uses this much; numbers are little-endian:
//!
//! ```text
//! block 0             the superblock, from byte 1024 on
//! block 1 and on      the files' data, each file from the beginning of a block
//!                     the blocks of folders and links
//! meta_blkaddr        inodes, in slots of 32 bytes, each with its extended attributes, chunk addresses or inline data behind it
//! ```
//!
//! Blocks have 4 KiB, and 32 bits for their addresses. An inode's number is that of its slot; the superblock has 16 bits for the
//! root's, so the root comes first. Slot 0 is empty: programs take a file with the number 0 for one that was removed.
//!
//! | | size | time of the last change | owner, group, links | used for |
//! |---|---|---|---|---|
//! | compact inode, 32 bytes | below 4 GiB | the superblock's (`build_time`) | 16 bits each | inodes that it can hold |
//! | extended inode, 64 bytes | 64 bits | its own, with nanoseconds | 32 bits each | others |
//!
//! | content | layout in `i_format` | place |
//! |---|---|---|
//! | a file | flat, plain | whole blocks in a row |
//! | a file with holes | chunk-based | the addresses of equal pieces of the file are behind its inode; a hole's has all bits set |
//! | a folder, a link | flat, inline | whole blocks in a row, and the rest behind the inode, within a block |
//! | one whose rest doesn't fit there | flat, plain | whole blocks in a row |
//!
//! So Linux maps every file's data where they are, if the image lies in memory and is mounted with `dax`: it does so for both layouts
//! that files have here (`erofs_read_inode` in `fs/erofs/inode.c`). Folders and links are small, and are copied when they are read.
//!
//! A folder's names are sorted by their bytes, `.` and `..` among them, over all of its blocks: Linux looks for the block by the first
//! name of each, then for the name, by bisection (`fs/erofs/namei.c`). A block has entries of 12 bytes, then the names.
//!
//! # Files
//!
//! | file | what it does |
//! |---|---|
//! | `superblock`, `inode`, `xattr`, `directory`, `chunks` | make and read the parts of the format |
//! | `blocks` | writes files' data, as they come, into the next free blocks |
//! | `layout`, `metadata` | write the rest of an image, once the tree of its files is known |
//! | [`read`] | reads an image, and checks all of it |

mod blocks;
mod chunks;
mod directory;
mod inode;
mod layout;
mod metadata;
pub mod read;
mod superblock;
mod xattr;

pub(crate) use self::blocks::{Blocks, Extent, Failure, Holes};
pub(crate) use self::chunks::Chunks;
pub(crate) use self::inode::device;
pub(crate) use self::metadata::Metadata;
pub use self::superblock::seal;
pub(crate) use self::xattr::{check as check_xattrs, is_known as is_known_xattr};

/// Bytes of a block.
const BLOCK: u64 = 1 << BLOCK_BITS;
const BLOCK_BITS: u8 = 12;
/// Bytes of an inode's slot.
const SLOT: u64 = 32;
/// The bits of a mode that are a file's type (`inode(7)`).
const TYPE: u32 = 0o170_000;

/// Returns the field at this place of a part that is at least so long.
fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Sets the field at this place of a part that is at least so long.
fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&field);
}

/// Returns the number of blocks that so many bytes take.
const fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}

//! Folders' blocks: entries of `struct erofs_dirent`, then their names. The number of entries follows from the place of the first name.

use std::ops::Range;

use super::{BLOCK_BITS, TYPE, get, put};

/// Bytes of an entry: the inode's number, the place of the name in the block, the file's type, and one of no use.
const ENTRY: usize = 12;
const ROOM: usize = 1 << BLOCK_BITS;
/// The longest name (`EROFS_NAME_LEN`).
const NAME_MAX: usize = 255;

/// A name in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'n> {
    pub(super) name: &'n [u8],
    /// The inode's number.
    pub(super) number: u64,
    /// The file's type, as [`file_type`] returns it.
    pub(super) file_type: u8,
}

/// Returns the type of a file with this mode, as entries have it (`FT_REG_FILE` and so on, in `include/linux/fs_types.h`).
pub(super) fn file_type(mode: u32) -> u8 {
    match mode & TYPE {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        0o120_000 => 7,
        _ => 0,
    }
}

/// Puts names into blocks, in order; returns each block's part of them.
pub(super) fn pack(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let mut used = ROOM;
    for (number, len) in lengths.enumerate() {
        used += ENTRY + len;
        match blocks.last_mut() {
            Some(block) if used <= ROOM => block.end = number + 1,
            _ => {
                blocks.push(number..number + 1);
                used = ENTRY + len;
            }
        }
    }
    blocks
}

/// Returns the bytes that names of these lengths take in a block.
pub(super) fn used(lengths: impl Iterator<Item = usize>) -> u64 {
    lengths.map(|len| (ENTRY + len) as u64).sum()
}

/// Returns a block with these entries, as far as it is used.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; ENTRY * entries.len()];
    for (number, entry) in entries.iter().enumerate() {
        let at = ENTRY * number;
        // A block has fewer than 4096 bytes before its last name.
        let name = u16::try_from(bytes.len()).unwrap_or(0);
        put(&mut bytes, at, entry.number.to_le_bytes());
        put(&mut bytes, at + 8, name.to_le_bytes());
        put(&mut bytes, at + 10, [entry.file_type]);
        bytes.extend_from_slice(entry.name);
    }
    bytes
}

/// Reads the entries of a block, or of what is used of a folder's last one; `None` where it is not such a block.
pub(super) fn decode(block: &[u8]) -> Option<Vec<Entry<'_>>> {
    let start = |number: usize| {
        Some(usize::from(u16::from_le_bytes(get(
            block.get(ENTRY * number + 8..ENTRY * number + 10)?,
            0,
        ))))
    };
    let names = start(0)?;
    let count = names / ENTRY;
    if count == 0 || names % ENTRY != 0 {
        return None;
    }
    let mut entries = Vec::with_capacity(count.min(ROOM / ENTRY));
    let mut at = names;
    for number in 0..count {
        let head = block.get(ENTRY * number..ENTRY * (number + 1))?;
        let end = match number + 1 == count {
            // The last name goes on to a NUL, or to the end.
            true => block
                .get(at..)?
                .iter()
                .position(|&byte| byte == 0)
                .map_or(block.len(), |len| at + len),
            false => start(number + 1)?,
        };
        let name = block.get(at..end)?;
        if start(number)? != at
            || head[11] != 0
            || name.is_empty()
            || name.len() > NAME_MAX
            || name.contains(&0)
        {
            return None;
        }
        entries.push(Entry {
            name,
            number: u64::from_le_bytes(get(head, 0)),
            file_type: head[10],
        });
        at = end;
    }
    // Nothing but zeros behind the last name.
    block[at..].iter().all(|&byte| byte == 0).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fill_a_block_to_its_last_byte() {
        let counts = |lengths: &[usize]| {
            let blocks = pack(lengths.iter().copied()).into_iter();
            blocks.map(|block| block.len()).collect::<Vec<_>>()
        };
        // Sixteen entries of 256 bytes with their names.
        let mut lengths = [244; 16];
        assert_eq!(counts(&lengths), [16]);
        lengths[15] += 1;
        assert_eq!(counts(&lengths), [15, 1]);
        assert_eq!(counts(&[244; 17]), [16, 1]);
        let names = [[b'a'; 244], [b'b'; 244]].concat();
        let entries: Vec<_> = (names.chunks(244).cycle().zip(0..16))
            .map(|(name, number)| Entry {
                name,
                number,
                file_type: 1,
            })
            .collect();
        let block = encode(&entries);
        assert_eq!(block.len(), ROOM);
        assert_eq!(decode(&block), Some(entries));
    }
}

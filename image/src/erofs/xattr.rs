//! Extended attributes, behind their inode: `struct erofs_xattr_ibody_header`, then entries of `struct erofs_xattr_entry`, each with its
//! name and its value, padded to four bytes.
//!
//! An entry has a number for the beginning of its name, so an attribute whose name begins otherwise can't be held: those of other file
//! systems alone, such as `system.nfs4_acl`, and of other operating systems.

use super::{get, read};
use crate::rootfs::{Fault, Xattrs};

/// Bytes before the entries: a filter of names, which isn't used, and the number of attributes that are elsewhere.
const HEADER: u32 = 12;
/// Bytes of an entry before its name.
const ENTRY: usize = 4;
/// The most bytes of attributes for which an inode has a count.
const MOST: u32 = len(u16::MAX);

/// The beginnings of names, and their numbers (`EROFS_XATTR_INDEX_USER` and so on). Those of ACLs are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Returns the number of a name's beginning, and its rest; `None` for a name that an image can't hold.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(prefix, index)| {
        let rest = name.strip_prefix(prefix)?;
        let is_whole = !prefix.ends_with(b".");
        (rest.is_empty() == is_whole).then_some((index, rest))
    })
}

/// Returns whether an image can hold attributes with this name.
pub(crate) fn is_known(name: &[u8]) -> bool {
    split(name).is_some()
}

/// Refuses attributes that an image can't hold for their size; those that it can't hold for their names are left out.
pub(crate) fn check(xattrs: &Xattrs) -> Result<(), Fault> {
    for (name, value) in xattrs {
        if is_known(name) && u16::try_from(value.len()).is_err() {
            let name = name.escape_ascii().to_string();
            return Err(Fault::LongXattr { name });
        }
    }
    match encoded_len(xattrs) <= u64::from(MOST) {
        true => Ok(()),
        false => Err(Fault::ManyXattrs { limit: MOST }),
    }
}

/// Returns the bytes that [`encode`] will return.
pub(super) fn encoded_len(xattrs: &Xattrs) -> u64 {
    let entries = xattrs.iter().filter_map(|(name, value)| {
        let (_, rest) = split(name)?;
        Some((ENTRY + rest.len() + value.len()).next_multiple_of(4) as u64)
    });
    match entries.sum() {
        0 => 0,
        sum => sum + u64::from(HEADER),
    }
}

/// Returns the bytes behind an inode with these attributes, of which [`check`] has taken all.
pub(super) fn encode(xattrs: &Xattrs) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in xattrs {
        let (Some((index, rest)), Ok(size)) = (split(name), u16::try_from(value.len())) else {
            continue;
        };
        if bytes.is_empty() {
            bytes.resize(HEADER as usize, 0);
        }
        // A name has at most 255 bytes.
        bytes.push(u8::try_from(rest.len()).unwrap_or(u8::MAX));
        bytes.push(index);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Returns an inode's count for attributes of so many bytes.
pub(super) fn count(len: u32) -> u16 {
    match len.checked_sub(HEADER) {
        Some(entries) => u16::try_from(entries / 4 + 1).unwrap_or(u16::MAX),
        None => 0,
    }
}

/// Returns the bytes of attributes for which an inode has this count.
pub(super) const fn len(count: u16) -> u32 {
    match count {
        0 => 0,
        count => HEADER + 4 * (count as u32 - 1),
    }
}

/// Reads attributes, sorted; `None` where they aren't what [`encode`] makes.
pub(super) fn decode(bytes: &[u8]) -> Option<read::Xattrs> {
    let mut entries = match bytes {
        [] => return Some(Vec::new()),
        bytes => bytes.strip_prefix(&[0; HEADER as usize])?,
    };
    let mut decoded = Vec::new();
    while !entries.is_empty() {
        let head: [u8; ENTRY] = get(entries.get(..ENTRY)?, 0);
        let (name_len, index) = (usize::from(head[0]), head[1]);
        let value_len = usize::from(u16::from_le_bytes(get(&head, 2)));
        let end = ENTRY + name_len + value_len;
        let (rest, value) = entries.get(ENTRY..end)?.split_at(name_len);
        let (prefix, _) = PREFIXES.iter().find(|(_, known)| *known == index)?;
        let name = [*prefix, rest].concat();
        // Neither an ACL with more to its name, nor a name that is empty after its beginning.
        if split(&name)? != (index, rest) || rest.contains(&0) {
            return None;
        }
        decoded.push((name, value.to_vec()));
        entries = entries.get(end.next_multiple_of(4)..)?;
    }
    decoded.sort();
    let twice = decoded.windows(2).any(|pair| pair[0].0 == pair[1].0);
    (!decoded.is_empty() && !twice).then_some(decoded)
}

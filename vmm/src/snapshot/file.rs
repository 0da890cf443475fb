//! The state file's format.
//!
//! ```text
//!  0  magic, 8 bytes
//!  8  version, 4 bytes    all numbers are little endian
//! 12  length of the body in bytes, 4 bytes
//! 16  SHA-256 of the 16 bytes above and the body
//! 48  the body: a `State` in postcard's format
//! ```
//!
//! The body has no names and no field numbers, so each change of a type in it, however small, is a new [`VERSION`]. There
//! is one reader, for one version: a snapshot is a cache that its maker can make anew.

use sha2::{Digest, Sha256};

use super::error::SnapshotError;
use super::state::State;

/// The first bytes: not text, and damaged by any change of line ends, as in PNG's.
const MAGIC: [u8; 8] = *b"\x89minivm\n";
/// The format's version.
pub(crate) const VERSION: u32 = 2;
/// Bytes before the body.
const HEADER: usize = 48;
/// Bytes of the header that the checksum covers.
const COVERED: usize = 16;
/// The longest state file in bytes. None comes near: a vCPU takes about 10 KiB.
pub(crate) const LEN_MAX: usize = 1 << 20;

/// Returns the bytes of the state file of `state`.
pub(crate) fn encode(state: &State) -> Vec<u8> {
    let body = postcard::to_allocvec(state).expect("plain data in memory can be written");
    let length = u32::try_from(body.len()).expect("some 10 KiB a vCPU");
    let mut file = Vec::with_capacity(HEADER + body.len());
    file.extend(MAGIC);
    file.extend(VERSION.to_le_bytes());
    file.extend(length.to_le_bytes());
    file.extend(checksum(&file, &body));
    file.extend(body);
    file
}

/// Reads a state file, which may hold anything.
pub(crate) fn decode(file: &[u8]) -> Result<State, SnapshotError> {
    let start = &file[..file.len().min(MAGIC.len())];
    if start != &MAGIC[..start.len()] {
        return Err(SnapshotError::Foreign);
    }
    let (header, body) = file
        .split_at_checked(HEADER)
        .ok_or(SnapshotError::Truncated)?;
    let version = number(header, 8);
    if version < VERSION {
        return Err(SnapshotError::Older(version));
    }
    if version > VERSION {
        return Err(SnapshotError::Newer(version));
    }
    if (body.len() as u64) < u64::from(number(header, 12)) {
        return Err(SnapshotError::Truncated);
    }
    let (covered, sum) = header.split_at(COVERED);
    if (body.len() as u64) > u64::from(number(header, 12)) || checksum(covered, body) != sum {
        return Err(SnapshotError::Damaged);
    }
    let state: State = match postcard::take_from_bytes(body) {
        Ok((state, [])) => state,
        _ => return Err(SnapshotError::Senseless("it cannot be read")),
    };
    state.check().map_err(SnapshotError::Senseless)?;
    Ok(state)
}

fn checksum(covered: &[u8], body: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(covered)
        .chain_update(body)
        .finalize()
        .into()
}

fn number(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"))
}

//! The state file's format.
//!
//! ```text
//!  0  magic, 8 bytes
//!  8  version, 2 bytes    all numbers are little endian
//! 10  architecture, 2 bytes: 0 for x86-64, otherwise ELF's number of it
//! 12  length of the body in bytes, 4 bytes
//! 16  SHA-256 of the 16 bytes above and the body
//! 48  the body: a `State` in postcard's format
//! ```
//!
//! The body has no names and no field numbers, so each change of a type in it, however small, is a new [`VERSION`]. There
//! is one reader, for one version: a snapshot is a cache that its maker can make anew.

use std::cmp::Ordering;

use sha2::{Digest, Sha256};

use super::error::SnapshotError;
use super::state::State;
use crate::arch::vcpu_state::MACHINE;

/// The first bytes: not text, and damaged by any change of line ends, as in PNG's.
const MAGIC: [u8; 8] = *b"\x89minivm\n";
/// The format's version.
pub(crate) const VERSION: u16 = 4;
/// The architectures' numbers and names.
const ARCHITECTURES: [(u16, &str); 2] = [(0, "x86-64"), (183, "arm64")];
/// Bytes before the body.
const HEADER: usize = 48;
/// Bytes of the header that the checksum covers.
const COVERED: usize = 16;
/// The longest state file in bytes. None comes near: a vCPU takes about 10 KiB.
pub(crate) const LEN_MAX: usize = 1 << 20;

/// Returns the bytes of the state file of `state`.
pub(crate) fn encode(state: &State) -> Vec<u8> {
    let body = postcard::to_allocvec(state).expect("plain data in memory can be written");
    with_body(&body)
}

/// Returns the bytes of a state file with this body.
pub(crate) fn with_body(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("some 10 KiB a vCPU");
    let mut file = Vec::with_capacity(HEADER + body.len());
    file.extend(MAGIC);
    file.extend(VERSION.to_le_bytes());
    file.extend(MACHINE.to_le_bytes());
    file.extend(length.to_le_bytes());
    file.extend(checksum(&file, body));
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
    check_version(half(header, 8), half(header, 10))?;
    if (body.len() as u64) < u64::from(number(header, 12)) {
        return Err(SnapshotError::Truncated);
    }
    let (covered, sum) = header.split_at(COVERED);
    if (body.len() as u64) > u64::from(number(header, 12)) || checksum(covered, body) != sum {
        return Err(SnapshotError::Damaged);
    }
    let state: State = match postcard::take_from_bytes(body) {
        Ok((state, [])) => state,
        _ => return Err(SnapshotError::Senseless("it cannot be read".into())),
    };
    state
        .check()
        .map_err(|why| SnapshotError::Senseless(why.into()))?;
    Ok(state)
}

/// Refuses the format of another version, and before that the state of another architecture, which has versions of its own.
fn check_version(version: u16, machine: u16) -> Result<(), SnapshotError> {
    if machine != MACHINE {
        let name = ARCHITECTURES.iter().find(|(number, _)| *number == machine);
        let name = name.map_or(format!("number {machine}"), |(_, name)| (*name).into());
        return Err(SnapshotError::OtherArchitecture(name));
    }
    match version.cmp(&VERSION) {
        Ordering::Less => Err(SnapshotError::Older(version.into())),
        Ordering::Greater => Err(SnapshotError::Newer(version.into())),
        Ordering::Equal => Ok(()),
    }
}

fn checksum(covered: &[u8], body: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(covered)
        .chain_update(body)
        .finalize()
        .into()
}

fn half(header: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([header[at], header[at + 1]])
}

fn number(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"))
}

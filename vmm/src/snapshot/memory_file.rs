//! The memory file: guest RAM, the part above the hole right behind the part below it. Zero pages take no room in it.
//!
//! # What is checked, and when
//!
//! A restore must not read the file: its time would grow with the memory. So the saver, which knows the content, records with
//! its checksum what the file system says of the file ([`Identity`]): its inode, length, number of names, and the times of its
//! last change, which the kernel sets by itself on every write. As long as the identity is unchanged, so is the content, except
//! for root (which can set the clock back, or write to the disk underneath) and a broken disk. Where it has changed, because
//! the snapshot was copied or because a process wrote to the file, opening it takes as long as reading it does, and its
//! content has to match its checksum.
//!
//! An open file is checked again on every restore, after it has been mapped and before anything runs. A change while a machine
//! runs can't be seen in time: pages that the guest hasn't touched yet change with the file, and if it is cut short, touching
//! them is an error (a vCPU's, or this process's SIGBUS). So memory files are made read-only, and replaced and deleted as a
//! whole, never written to: a mapping keeps the file that it was made from.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::Bytes;

use super::sparse::{Piece, data_extents, used};
use crate::memory::{GuestRam, PAGE};

/// Bytes that are copied at a time.
const CHUNK: usize = 64 * PAGE;
/// Longer than the steps of a file system's clock: the kernel's tick, at most 10 ms. Where files' times are kept in seconds
/// (ext3, FAT), a change in the same second as the file was written goes unnoticed.
const TICK: Duration = Duration::from_millis(12);

/// The state file's record of its memory file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryRecord {
    /// Its name in the snapshot's folder.
    pub(crate) name: String,
    /// Its length, which is the machine's memory.
    pub(crate) bytes: u64,
    /// Its identity right after it was written.
    pub(crate) identity: Identity,
    /// SHA-256 of every page that isn't zero, each with its place before it.
    pub(crate) digest: [u8; 32],
}

/// The identity of a file's content, by what the file system says of the file. The device's number isn't part of it, because
/// it can be another one after a reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    inode: u64,
    links: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Identity::from(&metadata))
    }

    /// Returns the identity of a file that was just written, once the file system's clock has moved on, so that each later
    /// change gives the file another time.
    pub(crate) fn settled(file: &File) -> io::Result<Self> {
        thread::sleep(TICK);
        Identity::of(file)
    }

    /// Returns whether a file still has its content, whose identity was `self` and is `now`. A deletion changes the file, and
    /// with it the time of its last change, but neither its content nor the time of that.
    pub(crate) fn still_holds(&self, now: &Identity) -> bool {
        let deleted = now.links == 0 && self.links > 0;
        self == now
            || deleted
                && (self.inode, self.length, self.modified) == (now.inode, now.length, now.modified)
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }
}

#[cfg(test)]
impl Identity {
    /// An identity of no file.
    pub(crate) fn sample() -> Self {
        Identity {
            inode: 1,
            links: 1,
            length: 2,
            modified: (3, 4),
            changed: (5, 6),
        }
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Identity {
            inode: metadata.ino(),
            links: metadata.nlink(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Writes guest RAM to an empty file; returns the content's digest.
pub(crate) fn write(ram: &GuestRam, file: &File) -> io::Result<[u8; 32]> {
    file.set_len(ram.bytes())?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    for Piece {
        offset,
        address,
        len,
    } in used(ram, CHUNK)?
    {
        let chunk = &mut buffer[..len];
        ram.map()
            .read_slice(chunk, address)
            .map_err(io::Error::other)?;
        for (start, run) in runs(chunk) {
            let place = offset + start as u64;
            file.write_all_at(run, place)?;
            take(&mut digest, place, run);
        }
    }
    Ok(digest.finalize().into())
}

/// Reads a memory file; returns its content's digest.
pub(crate) fn digest(file: &File) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    for extent in data_extents(file)? {
        // In pages, so that the beginning of an extent makes no difference.
        let mut offset = extent.start / PAGE as u64 * PAGE as u64;
        while offset < extent.end {
            let rest = usize::try_from(extent.end - offset).unwrap_or(CHUNK);
            let chunk = &mut buffer[..rest.min(CHUNK)];
            file.read_exact_at(chunk, offset)?;
            for (start, run) in runs(chunk) {
                take(&mut digest, offset + start as u64, run);
            }
            offset += chunk.len() as u64;
        }
    }
    Ok(digest.finalize().into())
}

/// Adds a run of pages that aren't zero to a digest.
fn take(digest: &mut Sha256, offset: u64, run: &[u8]) {
    for (place, page) in (offset..).step_by(PAGE).zip(run.chunks(PAGE)) {
        digest.update(place.to_le_bytes());
        digest.update(page);
    }
}

/// Returns the runs of a chunk's pages that aren't zero: each with its offset and its bytes.
fn runs(chunk: &[u8]) -> Vec<(usize, &[u8])> {
    let mut runs = Vec::new();
    let mut start = None;
    for at in (0..chunk.len()).step_by(PAGE).chain([chunk.len()]) {
        let zero = at == chunk.len() || is_zero(&chunk[at..chunk.len().min(at + PAGE)]);
        match (zero, start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                runs.push((from, &chunk[from..at]));
                start = None;
            }
            _ => {}
        }
    }
    runs
}

fn is_zero(page: &[u8]) -> bool {
    static ZEROS: [u8; PAGE] = [0; PAGE];
    page == &ZEROS[..page.len()]
}

//! The parts of memory and files that hold anything at all, so that the rest need not be read.

#![allow(
    unsafe_code,
    reason = "lseek for data and holes has no safe interface in std"
)]

use std::cmp::Reverse;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::{io, iter};

use vm_memory::GuestAddress;

use crate::memory::{GuestRam, HUGE_PAGE, MAPPINGS, PAGE};

/// Bits of a page's entry in `/proc/self/pagemap` (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is a file's, and not this process's own copy of it.
const OF_FILE: u64 = 1 << 61;
/// The number of entries that are read at a time: those of 32 MiB.
const ENTRIES: usize = 8192;

/// A piece of guest RAM, in whole pages, and its place in a memory file.
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) address: GuestAddress,
    pub(crate) len: usize,
}

/// Returns all parts of guest RAM that may hold anything but zeros, in order, in pieces of at most `len_max` bytes.
///
/// Anonymous memory that neither the guest nor this process has touched has no page. A mapping of a file also has the file's
/// content.
pub(crate) fn used(ram: &GuestRam, len_max: usize) -> io::Result<Vec<Piece>> {
    // Without /proc, all of it is read, which takes longer.
    let pagemap = ram.pagemap().ok();
    let extents = ram.file().map_or(Ok(Vec::new()), data_extents)?;
    let mut pieces = Vec::new();
    let mut region_offset = 0;
    for (base, size, host) in ram.regions() {
        let offsets = region_offset..region_offset + size;
        let touched = pagemap
            .as_deref()
            .and_then(|pagemap| touched(pagemap, host, size, Present::Any).ok())
            .unwrap_or_else(|| iter::once(0..size).collect())
            .into_iter()
            .map(|part| shift(part, region_offset));
        let mut parts: Vec<_> = touched
            .chain(extents.iter().map(|extent| clip(extent, &offsets)))
            .collect();
        parts.sort_unstable_by_key(|part| part.start);
        let mut done = region_offset;
        for part in parts {
            let mut offset = part.start.max(done);
            while offset < part.end {
                let len = usize::try_from(part.end - offset)
                    .unwrap_or(len_max)
                    .min(len_max);
                pieces.push(Piece {
                    offset,
                    address: GuestAddress(base.0 + (offset - region_offset)),
                    len,
                });
                offset += len as u64;
            }
            done = done.max(part.end);
        }
        region_offset += size;
    }
    Ok(pieces)
}

fn shift(range: Range<u64>, by: u64) -> Range<u64> {
    range.start + by..range.end + by
}

/// Returns the part of `range` that lies within `bounds`, in whole pages.
fn clip(range: &Range<u64>, bounds: &Range<u64>) -> Range<u64> {
    let page = PAGE as u64;
    let (start, end) = (range.start / page * page, range.end.next_multiple_of(page));
    start.clamp(bounds.start, bounds.end)..end.clamp(bounds.start, bounds.end)
}

/// A kind of pages that are present.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Present {
    /// All pages.
    Any,
    /// Pages of this process alone.
    Own,
    /// Pages of a file.
    Shared,
}

/// Returns the parts of `size` bytes of this process's memory, from address `host` on, that have such pages by `pagemap`.
pub(super) fn touched(
    pagemap: &File,
    host: u64,
    size: u64,
    wanted: Present,
) -> io::Result<Vec<Range<u64>>> {
    let page = PAGE as u64;
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut buffer = vec![0; ENTRIES * 8];
    for first in (0..size / page).step_by(ENTRIES) {
        let count = usize::try_from(size / page - first).map_or(ENTRIES, |rest| rest.min(ENTRIES));
        let entries = &mut buffer[..count * 8];
        pagemap.read_exact_at(entries, (host / page + first) * 8)?;
        for (index, entry) in (first..).zip(entries.chunks_exact(8)) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
            let kind = match entry & OF_FILE {
                0 => Present::Own,
                _ => Present::Shared,
            };
            if entry & (PRESENT | SWAPPED) == 0 || wanted != Present::Any && wanted != kind {
                continue;
            }
            let at = index * page;
            match parts.last_mut() {
                Some(part) if part.end == at => part.end += page,
                _ => parts.push(at..at + page),
            }
        }
    }
    Ok(parts)
}

/// Returns the parts of a file that hold data. A file system that doesn't know says that all of it does.
pub(crate) fn data_extents(file: &File) -> io::Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(file, at, libc::SEEK_DATA)? {
        // There is always a hole at the end.
        let Some(end) = seek(file, start, libc::SEEK_HOLE)?.filter(|end| *end > start) else {
            break;
        };
        extents.push(start..end);
        at = end;
    }
    Ok(extents)
}

/// Returns the ranges of whole huge pages in which a file of `length` bytes holds nothing: the largest [`MAPPINGS`] of them, in
/// order. It seeks at most once per huge page.
pub(super) fn holes(file: &File, length: u64) -> io::Result<Vec<Range<u64>>> {
    let huge = HUGE_PAGE as u64;
    let whole = length / huge * huge;
    let mut holes: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < whole {
        let data = seek(file, at, libc::SEEK_DATA)?.map_or(whole, |data| data / huge * huge);
        if data > at {
            holes.push(at..data.min(whole));
        }
        at = data + huge;
    }
    holes.sort_unstable_by_key(|hole| Reverse(hole.end - hole.start));
    holes.truncate(MAPPINGS);
    holes.sort_unstable_by_key(|hole| hole.start);
    Ok(holes)
}

/// Finds the next data or hole from `from` on; `None` behind the last.
fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
    // SAFETY: it has no condition. It moves the file's position, which no code here uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

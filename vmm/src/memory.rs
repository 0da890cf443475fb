//! Guest RAM: memory of this process that KVM lends to the guest.
//!
//! A machine that boots gets anonymous memory. A page that the guest never touches is never allocated. The mapping starts at
//! a multiple of 2 MiB and asks for huge pages, so that one nested page fault makes 2 MiB present instead of 4 KiB.
//!
//! A restored machine's memory is a private mapping of the snapshot's memory file: nothing is read when it is mapped; a page
//! that the guest reads is the page cache's, which all machines of the snapshot share; a page that it writes to becomes a
//! copy of its own. The file itself never changes. Where the file has a large hole the memory is anonymous, as a booted
//! machine's: there is nothing to share, and a page that isn't copied comes sooner. It gets huge pages only where it is known
//! that clones leave it alone until they do something of their own: each page that they all touch would take 2 MiB.

#![allow(
    unsafe_code,
    reason = "mapping memory at chosen addresses has no safe interface"
)]

use std::cmp::Reverse;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::{io, iter, slice};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::error::{Error, Result};
use crate::layout;
use crate::opened::{OpenFile, open_pagemap};
use crate::pmem::Pmem;

/// The size of the host's pages, which `kvm` checks.
pub(crate) const PAGE: usize = 4096;
/// The size of a large page where pages have 4 KiB: the granule of the host's transparent huge pages.
pub(crate) const HUGE_PAGE: usize = 2 << 20;
/// The largest block that a guest's kernel hands memory out from (Linux, `MAX_PAGE_ORDER`): a clone that needs a little more
/// than another did takes it from the blocks that the other one touched.
const BLOCK: u64 = 4 << 20;
/// A file's mapping of which written pages become this process's own, and one that is read-only: protection and flags.
const COPY: (libc::c_int, libc::c_int) = (
    libc::PROT_READ | libc::PROT_WRITE,
    libc::MAP_PRIVATE | libc::MAP_NORESERVE,
);
const READ: (libc::c_int, libc::c_int) = (libc::PROT_READ, libc::MAP_SHARED);
/// The most parts of one region that are mapped differently.
pub(crate) const MAPPINGS: usize = 128;

/// Checks that the host's pages have the size that all of this crate builds on.
pub(crate) fn check_page_size() -> Result<()> {
    // SAFETY: it has no condition.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    check_page(usize::try_from(bytes).unwrap_or(0))
}

fn check_page(bytes: usize) -> Result<()> {
    match bytes {
        PAGE => Ok(()),
        other => Err(Error::KvmUnusable(format!(
            "this host's kernel has pages of {} KiB, and minivm needs 4 KiB ones",
            other >> 10
        ))),
    }
}

/// All RAM of one machine. Dropping it unmaps it: that must not happen before the machine's KVM descriptors are closed.
pub(crate) struct GuestRam {
    map: GuestMemoryMmap,
    /// The file that it is a private mapping of, for a restored machine.
    file: Option<Arc<File>>,
    /// The table in which the kernel shows this process's pages, where it is open.
    pagemap: Option<Arc<File>>,
    /// The ranges that are anonymous beside the file's, by guest-physical address, in whole huge pages.
    blank: Vec<Range<u64>>,
    /// The persistent memory beside it.
    pmem: Option<Pmem>,
    // Behind `map`, so that it is dropped after it.
    mappings: Vec<Mapping>,
}

impl GuestRam {
    /// Reserves `bytes` of guest RAM, laid out as [`layout::ram`] says.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        Self::mapped(bytes, None, &[])
    }

    /// Maps `file`, which has `bytes` bytes, privately as guest RAM: in it the part above the hole stands right behind the part
    /// below it. `holes` are the ranges in which the file holds nothing, in whole huge pages and in order.
    pub(crate) fn of_file(bytes: u64, file: Arc<File>, holes: &[Range<u64>]) -> Result<Self> {
        Self::mapped(bytes, Some(file), holes)
    }

    fn mapped(bytes: u64, file: Option<Arc<File>>, holes: &[Range<u64>]) -> Result<Self> {
        let mut regions = Vec::new();
        let mut mappings = Vec::new();
        let mut blank = Vec::new();
        let mut offset = 0;
        for (base, size) in layout::ram(bytes) {
            let length = usize::try_from(size).expect("checked against MEMORY_MAX");
            let mapping = Mapping::reserve(length).map_err(Error::host("guest memory"))?;
            match &file {
                None => mapping.use_huge_pages(0..size),
                Some(file) => {
                    let holes = within(holes, &(offset..offset + size));
                    for part in between(&holes, size) {
                        mapping
                            .replace(&part, file, offset + part.start, COPY)
                            .map_err(Error::host("guest memory"))?;
                    }
                    blank.extend(
                        holes
                            .iter()
                            .map(|hole| base.0 + hole.start..base.0 + hole.end),
                    );
                }
            }
            mapping.keep_out_of_dumps();
            regions.push(region(base, &mapping)?);
            mappings.push(mapping);
            offset += size;
        }
        let map = GuestMemoryMmap::from_regions(regions)
            .expect("the layout is in order and has no overlap");
        Ok(GuestRam {
            map,
            file,
            pagemap: None,
            blank,
            pmem: None,
            mappings,
        })
    }

    /// Maps a file as persistent memory beside the RAM, if there is one.
    pub(crate) fn with_pmem(mut self, file: Option<Arc<OpenFile>>) -> Result<Self> {
        let map = |file| Pmem::map(file, self.bytes());
        self.pmem = file.map(map).transpose()?;
        Ok(self)
    }

    /// Returns the error of persistent memory that can't be read, where `error` comes from that: KVM names no file.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let is_fault = matches!(&error, Error::Kvm { source, .. } if source.raw_os_error() == Some(libc::EFAULT));
        let pmem = self.pmem.as_ref().filter(|_| is_fault);
        // A snapshot's memory file may be to blame as well.
        let found = pmem.and_then(|pmem| pmem.failure(self.file.is_none()));
        found.unwrap_or(error)
    }

    /// Returns the persistent memory.
    pub(crate) fn pmem(&self) -> Option<&Pmem> {
        self.pmem.as_ref()
    }

    /// Keeps the table that [`pagemap`](Self::pagemap) returns, where it is open.
    pub(crate) fn with_pagemap(mut self, pagemap: Option<Arc<File>>) -> Self {
        self.pagemap = pagemap;
        self
    }

    /// Returns the table in which the kernel shows this process's pages.
    pub(crate) fn pagemap(&self) -> io::Result<Arc<File>> {
        match &self.pagemap {
            Some(pagemap) => Ok(pagemap.clone()),
            None => open_pagemap().map(Arc::new),
        }
    }

    /// Returns the file that the RAM is a private mapping of, if it is one.
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_deref()
    }

    /// Asks for huge pages in the anonymous ranges beside a file's, except in each [`BLOCK`] that a range of `touched` reaches.
    pub(crate) fn use_huge_pages_beside(&self, touched: &[Range<u64>]) {
        for ((base, size, _), mapping) in self.regions().zip(&self.mappings) {
            let region = base.0..base.0 + size;
            let blank = within(&self.blank, &region);
            let mut parts: Vec<_> = blank
                .iter()
                .flat_map(|hole| without(hole, &within(touched, &region)))
                .collect();
            // The kernel keeps a mapping for each, of which a process can have some 65,000.
            parts.sort_unstable_by_key(|part| Reverse(part.end - part.start));
            for part in parts.into_iter().take(MAPPINGS) {
                mapping.use_huge_pages(part);
            }
        }
    }

    /// Returns the size of the RAM in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.map.iter().map(GuestMemoryRegion::len).sum()
    }

    /// Returns the view that reads and writes by guest-physical address.
    pub(crate) fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Iterates over the regions: guest-physical base, size in bytes, and address in this process.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (GuestAddress, u64, u64)> {
        self.map
            .iter()
            .map(|region| (region.start_addr(), region.len(), region.as_ptr() as u64))
    }
}

/// Returns the parts of `ranges` that lie in `region`, relative to its start.
fn within(ranges: &[Range<u64>], region: &Range<u64>) -> Vec<Range<u64>> {
    ranges
        .iter()
        .map(|range| range.start.max(region.start)..range.end.min(region.end))
        .filter(|range| range.start < range.end)
        .map(|range| range.start - region.start..range.end - region.start)
        .collect()
}

/// Returns the parts of `size` bytes that lie between `holes`, which are in order.
fn between(holes: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let starts = iter::once(0).chain(holes.iter().map(|hole| hole.end));
    let ends = holes.iter().map(|hole| hole.start).chain([size]);
    starts
        .zip(ends)
        .map(|(start, end)| start..end)
        .filter(|part| part.start < part.end)
        .collect()
}

/// Returns the parts of `hole` that are left without every [`BLOCK`] that a range of `touched` reaches.
fn without(hole: &Range<u64>, touched: &[Range<u64>]) -> Vec<Range<u64>> {
    let blocks: Vec<_> = touched
        .iter()
        .filter(|part| part.start < part.end)
        .map(|part| {
            let end = part.end.checked_next_multiple_of(BLOCK);
            part.start / BLOCK * BLOCK..end.unwrap_or(u64::MAX)
        })
        .collect();
    let mut blocks = within(&blocks, hole);
    blocks.sort_unstable_by_key(|block| block.start);
    // Several parts may be in the same block.
    blocks.dedup_by(|next, block| {
        let overlaps = next.start <= block.end;
        if overlaps {
            block.end = block.end.max(next.end);
        }
        overlaps
    });
    between(&blocks, hole.end - hole.start)
        .into_iter()
        .map(|part| hole.start + part.start..hole.start + part.end)
        .collect()
}

/// A handle to a machine's RAM, for a program that shares some of it with the guest.
///
/// The guest can change any of it at any time: two reads of one place may differ, and nothing in it can be trusted. The memory
/// stays as long as a handle to it does, also when the machine has ended.
#[derive(Clone)]
pub struct Memory(Arc<GuestRam>);

/// The error of an access to an address where the guest has no RAM, or less behind it than was to be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has no memory at {address:#x}")]
pub struct NoMemory {
    /// The guest-physical address.
    pub address: u64,
}

impl Memory {
    pub(crate) fn new(ram: Arc<GuestRam>) -> Self {
        Memory(ram)
    }

    pub(crate) fn ram(&self) -> &GuestRam {
        &self.0
    }

    /// Copies bytes out of the guest's RAM, from the guest-physical `address` on.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] where not all of the bytes are RAM.
    pub fn read(&self, address: u64, into: &mut [u8]) -> std::result::Result<(), NoMemory> {
        let read = self.0.map.read_slice(into, GuestAddress(address));
        read.map_err(|_| NoMemory { address })
    }

    /// Copies bytes into the guest's RAM, from the guest-physical `address` on.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] where not all of the bytes are RAM.
    pub fn write(&self, address: u64, from: &[u8]) -> std::result::Result<(), NoMemory> {
        let written = self.0.map.write_slice(from, GuestAddress(address));
        written.map_err(|_| NoMemory { address })
    }

    /// Reads a word of four bytes at once, in the one order that all such accesses have (`SeqCst`).
    ///
    /// # Errors
    ///
    /// [`NoMemory`] where not all of the bytes are RAM, or the address is not a multiple of four.
    pub fn load(&self, address: u64) -> std::result::Result<u32, NoMemory> {
        let loaded = self.0.map.load(GuestAddress(address), Ordering::SeqCst);
        loaded.map_err(|_| NoMemory { address })
    }

    /// Writes a word of four bytes at once, in the order of [`load`](Self::load).
    ///
    /// # Errors
    ///
    /// [`NoMemory`] where not all of the bytes are RAM, or the address is not a multiple of four.
    pub fn store(&self, address: u64, word: u32) -> std::result::Result<(), NoMemory> {
        let stored = self
            .0
            .map
            .store(word, GuestAddress(address), Ordering::SeqCst);
        stored.map_err(|_| NoMemory { address })
    }
}

/// Lets vm-memory use `mapping` as the guest's memory from `base` on.
fn region(base: GuestAddress, mapping: &Mapping) -> Result<GuestRegionMmap> {
    let builder = MmapRegionBuilder::new(mapping.size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    // SAFETY: address and size are those of one mapping, and `GuestRam` keeps that mapping longer than this view of it.
    let builder = unsafe { builder.with_raw_mmap_pointer(mapping.address) };
    let mapped = builder
        .build()
        .map_err(|error| Error::host("guest memory")(io::Error::other(error)))?;
    Ok(GuestRegionMmap::new(mapped, base).expect("the layout ends far below 2^64"))
}

/// Memory of this process, aligned to [`HUGE_PAGE`], unmapped on drop.
pub(crate) struct Mapping {
    address: *mut u8,
    size: usize,
}

// SAFETY: the pointer is the sole owner of its mapping, and memory has no thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` gives no access to the memory: it only says where it is.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes of anonymous memory.
    pub(crate) fn reserve(size: usize) -> io::Result<Self> {
        // One huge page too many, so that there is an aligned address in it; the surplus costs address space only.
        let reserved = size
            .checked_add(HUGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let surplus = start.align_offset(HUGE_PAGE);
        let address = start.wrapping_byte_add(surplus);
        unmap(start, surplus);
        unmap(address.wrapping_byte_add(size), HUGE_PAGE - surplus);
        Ok(Mapping {
            address: address.cast(),
            size,
        })
    }

    /// Asks for huge pages in a part of the mapping. A kernel without transparent huge pages refuses, which costs time and
    /// nothing else.
    fn use_huge_pages(&self, part: Range<u64>) {
        self.advise(&part, libc::MADV_HUGEPAGE);
    }

    /// Keeps the mapping out of this process's core dumps: guest memory is as secret as the guest's data, and large.
    pub(crate) fn keep_out_of_dumps(&self) {
        self.advise(&(0..self.size as u64), libc::MADV_DONTDUMP);
    }

    fn advise(&self, part: &Range<u64>, advice: libc::c_int) {
        let (address, size) = self.part(part);
        // SAFETY: the range is ours; the advice changes how it is kept, not what it holds.
        unsafe { libc::madvise(address, size, advice) };
    }

    /// Returns address and size of a part of the mapping.
    fn part(&self, part: &Range<u64>) -> (*mut libc::c_void, usize) {
        let place = |at: u64| usize::try_from(at).map_or(self.size, |at| at.min(self.size));
        let (start, end) = (place(part.start), place(part.end));
        let address = self.address.wrapping_byte_add(start);
        (address.cast(), end.saturating_sub(start))
    }

    /// Returns its address in this process, and its size in bytes.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.address as u64, self.size as u64)
    }

    /// Writes bytes that lie in its first huge page, none of which has been touched, and makes all of it read-only.
    pub(crate) fn seal(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(self.size >= HUGE_PAGE);
        // One page is enough for the bytes.
        self.advise(&(0..HUGE_PAGE as u64), libc::MADV_NOHUGEPAGE);
        // SAFETY: the range is ours, as was just looked, and nothing else refers to it yet.
        let header = unsafe { slice::from_raw_parts_mut(self.address, HUGE_PAGE) };
        header[at..at + bytes.len()].copy_from_slice(bytes);
        // SAFETY: the range is ours, and nothing writes to it any more.
        let sealed = unsafe { libc::mprotect(self.address.cast(), self.size, libc::PROT_READ) };
        match sealed {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Shows a file in a part of it, read-only.
    pub(crate) fn show(&self, part: Range<u64>, file: &File) -> io::Result<()> {
        self.replace(&part, file, 0, READ)
    }

    /// Puts a mapping of `file`, from `offset` on, in a part's place.
    fn replace(
        &self,
        part: &Range<u64>,
        file: &File,
        offset: u64,
        (protection, flags): (libc::c_int, libc::c_int),
    ) -> io::Result<()> {
        let (address, size) = self.part(part);
        let (flags, file) = (flags | libc::MAP_FIXED, file.as_raw_fd());
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the range is ours, and nothing refers to it yet, so it may be replaced. What a file's mapping holds can
        // change while the file does, but guest memory is accessed as what can change at any time anyway.
        let mapped = unsafe { libc::mmap(address, size, protection, flags, file, offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.address.cast(), self.size);
    }
}

/// Unmaps `size` bytes from `address` on: a part of a [`Mapping`] that is not in use any more.
fn unmap(address: *mut libc::c_void, size: usize) {
    if size > 0 {
        // SAFETY: only `Mapping` calls this, with pages that it mapped itself and that nothing refers to.
        unsafe { libc::munmap(address, size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_another_size_are_refused_by_name() {
        check_page_size().unwrap();
        check_page(4 << 10).unwrap();
        let refusal = check_page(64 << 10).unwrap_err().to_string();
        assert!(refusal.contains("pages of 64 KiB"), "{refusal}");
    }

    #[test]
    fn a_handle_reaches_ram_and_nothing_else() {
        let memory = Memory::new(Arc::new(GuestRam::new(64 << 20).unwrap()));
        let start = layout::ram(64 << 20)[0].0.0;
        memory.write(start + 0x1000, b"guest").unwrap();
        let mut read = [0; 5];
        memory.read(start + 0x1000, &mut read).unwrap();
        assert_eq!(&read, b"guest");
        memory.store(start + 0x2000, 0xdead_beef).unwrap();
        assert_eq!(memory.load(start + 0x2000), Ok(0xdead_beef));
        let end = start + (64 << 20);
        assert_eq!(memory.load(end), Err(NoMemory { address: end }));
        assert!(memory.load(start + 0x2001).is_err(), "it is not aligned");
        assert!(memory.read(end - 4, &mut read).is_err());
        assert!(memory.write(u64::MAX, &read).is_err());
    }

    /// Around each border of RAM, and where addresses wrap: every short access of every length.
    #[test]
    fn an_access_at_a_border_lies_in_ram_as_a_whole_or_fails() {
        let memory = Memory::new(Arc::new(GuestRam::new(4 << 30).unwrap()));
        let parts = layout::ram(4 << 30);
        let borders = parts
            .iter()
            .flat_map(|(base, size)| [base.0, base.0 + size]);
        let borders: Vec<_> = borders.chain([u64::MAX, 1 << 52, 1 << 63]).collect();
        let is_ram = |at: u64, len: u64| {
            let end = at.checked_add(len);
            let holds = |(base, size): &(GuestAddress, u64)| {
                base.0 <= at && end.is_some_and(|end| end <= base.0 + size)
            };
            parts.iter().any(holds)
        };
        for border in borders {
            for (at, len) in (0..40).flat_map(|near| (1..20).map(move |len| (near, len))) {
                let at = border.wrapping_add(at).wrapping_sub(20);
                let expected = match is_ram(at, len) {
                    true => Ok(()),
                    false => Err(NoMemory { address: at }),
                };
                let mut bytes = vec![7; usize::try_from(len).unwrap()];
                assert_eq!(memory.write(at, &bytes), expected, "{at:#x}, {len}");
                assert_eq!(memory.read(at, &mut bytes), expected, "{at:#x}, {len}");
                let word = (is_ram(at, 4) && at.is_multiple_of(4)).then_some(());
                assert_eq!(memory.store(at, 0).ok(), word, "{at:#x}");
                assert_eq!(memory.load(at).ok().map(drop), word, "{at:#x}");
            }
        }
    }

    #[test]
    fn a_hole_loses_each_block_that_is_touched() {
        const MIB: u64 = 1 << 20;
        let left = |touched: &[(u64, u64)]| -> Vec<(u64, u64)> {
            let touched: Vec<_> = touched.iter().map(|part| part.0..part.1).collect();
            let left = without(&(4 * MIB..16 * MIB), &touched);
            let parts = left.iter().map(|part| (part.start / MIB, part.end / MIB));
            parts.collect()
        };
        let page = |at: u64| (at, at + 4096);
        assert_eq!(left(&[]), [(4, 16)]);
        let pages = [page(7 * MIB), page(0), page(20 * MIB), page(6 * MIB)];
        assert_eq!(left(&pages), [(8, 16)]);
        let pages = [(5 * MIB, 7 * MIB), page(16 * MIB - 4096)];
        assert_eq!(left(&pages), [(8, 12)]);
        // A set is read from a file, and may hold any range.
        assert_eq!(
            left(&[(u64::MAX - 1, u64::MAX), (9 * MIB, 5 * MIB)]),
            [(4, 16)]
        );
        assert_eq!(left(&[(0, u64::MAX)]), []);
    }

    #[test]
    fn ram_is_aligned_and_reaches_to_the_end_of_its_last_part() {
        let ram = GuestRam::new(4 << 30).unwrap();
        assert!(
            ram.regions()
                .all(|(_, _, host)| host.is_multiple_of(HUGE_PAGE as u64))
        );
        let parts = layout::ram(4 << 30);
        let ends: Vec<_> = parts.iter().map(|(base, size)| base.0 + size).collect();
        let write = |at: u64| ram.map().write_obj(0x55u8, GuestAddress(at));
        write(ends[ends.len() - 1] - 1).unwrap();
        assert!(ends.into_iter().all(|end| write(end).is_err()));
    }
}

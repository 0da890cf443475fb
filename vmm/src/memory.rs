//! Guest RAM: anonymous memory of this process that KVM lends to the guest.
//!
//! A page that the guest never touches is never allocated. The mapping starts at a multiple of 2 MiB and asks for huge
//! pages, so that one nested page fault makes 2 MiB present instead of 4 KiB.

#![allow(
    unsafe_code,
    reason = "mapping memory at chosen addresses has no safe interface"
)]

use std::io;
use std::ptr;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::error::{Error, Result};
use crate::layout;

/// x86's large page: the granule of the host's transparent huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// All RAM of one machine. Dropping it unmaps it: that must not happen before the machine's KVM descriptors are closed.
pub(crate) struct GuestRam {
    map: GuestMemoryMmap,
    // Behind `map`, so that it is dropped after it.
    _mappings: Vec<Mapping>,
}

impl GuestRam {
    /// Reserves `bytes` of guest RAM, laid out as [`layout::ram`] says.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let mut regions = Vec::new();
        let mut mappings = Vec::new();
        for (base, size) in layout::ram(bytes) {
            let size = usize::try_from(size).expect("checked against MEMORY_MAX");
            let mapping = Mapping::anonymous(size).map_err(Error::host("guest memory"))?;
            regions.push(region(base, &mapping)?);
            mappings.push(mapping);
        }
        let map = GuestMemoryMmap::from_regions(regions)
            .expect("the layout is in order and has no overlap");
        Ok(GuestRam {
            map,
            _mappings: mappings,
        })
    }

    /// The view of it that reads and writes by guest-physical address.
    pub(crate) fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Every region: guest-physical base, size in bytes, and address in this process.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (GuestAddress, u64, u64)> {
        self.map
            .iter()
            .map(|region| (region.start_addr(), region.len(), region.as_ptr() as u64))
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

/// Anonymous memory, aligned to [`HUGE_PAGE`], unmapped on drop.
struct Mapping {
    address: *mut u8,
    size: usize,
}

// SAFETY: the pointer is the sole owner of its mapping, and memory has no thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn anonymous(size: usize) -> io::Result<Self> {
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
        // SAFETY: the range is ours; the advice changes how it is backed, not what it holds. A kernel without
        // transparent huge pages refuses, and that is as well.
        unsafe { libc::madvise(address, size, libc::MADV_HUGEPAGE) };
        Ok(Mapping {
            address: address.cast(),
            size,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.address.cast(), self.size);
    }
}

/// Gives back `size` bytes from `address` on: part of a mapping of [`Mapping`]'s that nobody uses any more.
fn unmap(address: *mut libc::c_void, size: usize) {
    if size > 0 {
        // SAFETY: only `Mapping` calls this, with pages that it mapped itself and that nothing refers to.
        unsafe { libc::munmap(address, size) };
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn ram_is_aligned_and_reaches_behind_the_hole() {
        let ram = GuestRam::new(4 << 30).unwrap();
        assert!(
            ram.regions()
                .all(|(_, _, host)| host.is_multiple_of(HUGE_PAGE as u64))
        );
        ram.map()
            .write_obj(0x55u8, GuestAddress(layout::ABOVE_HOLE.0 + (1 << 30) - 1))
            .unwrap();
        assert!(ram.map().write_obj(0x55u8, layout::HOLE).is_err());
    }
}

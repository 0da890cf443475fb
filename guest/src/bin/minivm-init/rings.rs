//! The rings' memory: pages that stay where they are, with known addresses in the guest's memory.
//!
//! The pages are shared ones: a page of ordinary memory is copied when a process is forked and either side writes to it,
//! and the copy would be another page. They are locked, so that they are never swapped out; and a setting keeps the kernel from
//! moving locked pages when it compacts memory. Their addresses are in `/proc/self/pagemap`
//! (`Documentation/admin-guide/mm/pagemap.rst`), which kernels with `CONFIG_PROC_PAGE_MONITOR` have.
//!
//! A kernel's pages may be larger than the rings': arm64's have 4, 16 or 64 KiB. Then several of the rings' are in one.

#![allow(
    unsafe_code,
    reason = "memory that the host changes has no safe interface"
)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use minivm_guest::channel::ring::{
    Consumer, DIRECTORY_ADDRESSES, DIRECTORY_FOLDERS, DIRECTORY_MAGIC, DIRECTORY_PAGES, Direction,
    Memory, PAGE, Producer, Word,
};

/// Pages a ring: 128 KiB.
const PAGES: usize = 32;
/// The directory and two rings.
const TOTAL: usize = 1 + 2 * PAGES;
/// Size of a ring in bytes.
const SIZE: usize = PAGES * PAGE;

/// Bits of an entry of pagemap: the page's frame number, and the flag for a page that is present.
const PAGEMAP_FRAME: u64 = (1 << 55) - 1;
const PAGEMAP_PRESENT: u64 = 1 << 63;

/// This side's ends of the two rings.
pub(crate) struct Rings {
    pub(crate) output: Producer<Ring>,
    pub(crate) input: Consumer<Ring>,
    /// The guest-physical address of the directory, for the host.
    pub(crate) directory: u64,
    pages: Arc<Pages>,
}

impl Rings {
    /// Lays the rings out.
    pub(crate) fn new() -> io::Result<Rings> {
        // A kernel that never moves pages has no such file.
        let _ = fs::write("/proc/sys/vm/compact_unevictable_allowed", "0");
        let pages = Arc::new(Pages::new()?);
        let addresses = pages.addresses()?;
        let (directory, rings) = addresses.split_first().expect("there is at least one page");
        pages.write(0, &DIRECTORY_MAGIC);
        let count = u32::try_from(PAGES).expect("a few pages");
        pages.write(DIRECTORY_PAGES, &count.to_le_bytes());
        for (index, address) in rings.iter().enumerate() {
            pages.write(DIRECTORY_ADDRESSES + 8 * index, &address.to_le_bytes());
        }
        Ok(Rings {
            output: Producer::new(Ring::new(&pages, Direction::ToHost)),
            input: Consumer::new(Ring::new(&pages, Direction::ToGuest)),
            directory: *directory,
            pages,
        })
    }

    /// Writes down where the folders' rings are: the host looks at the first byte on COM3.
    pub(crate) fn announce(&self, folders: &Rings) {
        let address = folders.directory.to_le_bytes();
        self.pages.write(DIRECTORY_FOLDERS, &address);
        // The host's look is an exit later.
        fence(Ordering::SeqCst);
    }
}

/// The directory and the rings, one after the other.
struct Pages(*mut u8);

// SAFETY: the mapping belongs to the process, not to a thread, and lives as long as it.
unsafe impl Send for Pages {}
// SAFETY: threads read and write the bytes as the host does at the same time: no reference to them is ever made, and the words are atomic.
unsafe impl Sync for Pages {}

impl Pages {
    fn new() -> io::Result<Pages> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | libc::MAP_LOCKED,
        );
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), TOTAL * PAGE, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Pages(start.cast()))
    }

    /// Returns the pages' guest-physical addresses.
    fn addresses(&self) -> io::Result<Vec<u64>> {
        let kernels = rustix::param::page_size();
        let mut entries = vec![0; (TOTAL * PAGE).div_ceil(kernels) * 8];
        let first = self.0.addr() / kernels;
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, first as u64 * 8)?;
        addresses(&entries, kernels)
    }

    fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= TOTAL * PAGE, "within the pages");
        // SAFETY: the range is in the mapping, as asserted, which lives as long as this process; `from` isn't in it, for
        // no reference to it is ever made. The host may read it meanwhile, but relies on it only after the hello, or after
        // the position behind it was stored.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.0.wrapping_add(offset), from.len()) };
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= TOTAL * PAGE, "within the pages");
        // SAFETY: as in `write`. A host that changes the bytes while they are copied makes other bytes of them, no more.
        unsafe {
            ptr::copy_nonoverlapping(self.0.wrapping_add(offset), into.as_mut_ptr(), into.len())
        };
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset + 4 <= PAGE && offset.is_multiple_of(4),
            "in the directory"
        );
        let address = self.0.wrapping_add(offset).cast();
        // SAFETY: in the mapping and aligned, as asserted; all accesses to it, the host's too, are atomic.
        unsafe { AtomicU32::from_ptr(address) }
    }
}

/// Returns the addresses of the directory's and rings' pages, from the entries of pagemap for the kernel's pages, which have `kernels`
/// bytes each.
fn addresses(entries: &[u8], kernels: usize) -> io::Result<Vec<u64>> {
    let frames = entries.chunks_exact(8).map(|entry| {
        let entry = u64::from_le_bytes(entry.try_into().expect("8 bytes"));
        // A process without CAP_SYS_ADMIN gets zeros for frame numbers.
        match (entry & PAGEMAP_PRESENT, entry & PAGEMAP_FRAME) {
            (0, _) | (_, 0) => Err(io::Error::other("pagemap has no address for a page")),
            (_, frame) => Ok(frame * kernels as u64),
        }
    });
    let frames = frames.collect::<io::Result<Vec<_>>>()?;
    let all = frames
        .iter()
        .flat_map(|frame| (0..kernels / PAGE).map(move |page| frame + (page * PAGE) as u64));
    Ok(all.take(TOTAL).collect())
}

/// One of the rings.
pub(crate) struct Ring {
    pages: Arc<Pages>,
    direction: Direction,
    /// The offset of its first byte in `pages`.
    start: usize,
}

impl Ring {
    fn new(pages: &Arc<Pages>, direction: Direction) -> Ring {
        Ring {
            pages: pages.clone(),
            direction,
            start: PAGE + SIZE * direction as usize,
        }
    }

    fn word(&self, word: Word) -> &AtomicU32 {
        self.pages.word(word.offset(self.direction))
    }
}

impl Memory for Ring {
    fn size(&self) -> u32 {
        u32::try_from(SIZE).expect("a few pages")
    }

    fn load(&self, word: Word) -> u32 {
        self.word(word).load(Ordering::SeqCst)
    }

    fn store(&self, word: Word, value: u32) {
        self.word(word).store(value, Ordering::SeqCst);
    }

    fn read(&self, offset: u32, into: &mut [u8]) {
        self.pages.read(self.start + offset as usize, into);
    }

    fn write(&self, offset: u32, from: &[u8]) {
        self.pages.write(self.start + offset as usize, from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of pagemap for so many pages from a frame on, the first of them with these bits instead.
    fn entries(frames: std::ops::Range<u64>, first: Option<u64>) -> Vec<u8> {
        let mut entries: Vec<_> = frames.map(|frame| PAGEMAP_PRESENT | frame).collect();
        entries[0] = first.unwrap_or(entries[0]);
        entries.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn pages_have_the_addresses_of_their_places_in_the_kernels_pages() {
        let total = TOTAL as u64;
        let small = addresses(&entries(7..7 + total, None), 4096).unwrap();
        let expected: Vec<_> = (7..7 + total).map(|frame| frame * 4096).collect();
        assert_eq!(small, expected);

        let (whole, rest) = (total / 16, total % 16);
        assert!(rest > 0, "the last page is used in part");
        let large = addresses(&entries(7..7 + whole + 1, None), 65536).unwrap();
        let expected: Vec<_> = (0..total).map(|page| 7 * 65536 + page * 4096).collect();
        assert_eq!(large, expected);
    }

    #[test]
    fn a_page_without_an_address_is_an_error() {
        for bits in [0, 7, PAGEMAP_PRESENT] {
            let entries = entries(7..7 + TOTAL as u64, Some(bits));
            assert!(addresses(&entries, 4096).is_err(), "{bits:#x}");
        }
    }
}

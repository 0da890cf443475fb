//! The initramfs: an archive at the top of the RAM in which kernels look for it. The kernel unpacks it into its first root file system and frees the memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::thread;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestAddress, ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::error::{Error, Result};
use crate::kernel::{self, Loaded};
use crate::memory::{GuestRam, HUGE_PAGE};
use crate::opened::{INITRAMFS, OpenFile};

/// The place of the initramfs in guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Its first guest-physical address.
    pub(crate) start: u64,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// The least number of bytes for which it pays to start a thread.
const SHARE_MIN: u64 = 8 << 20;

/// Loads the initramfs above the kernel, at the top of the first part of RAM or of what the kernel can reach.
///
/// All processors copy it: mapped, the file would cost the guest a nested page fault for every 4 KiB of it; huge pages cost
/// one for 2 MiB. Most of the time goes into making these pages present, which scales with processors.
pub(crate) fn load(
    file: &OpenFile,
    processors: u64,
    kernel: &Loaded,
    ram: &GuestRam,
) -> Result<Placed> {
    let (path, size) = (&file.path, file.size);
    let top = kernel::low_ram_end(ram).min(kernel.initramfs_end);
    let placed = place(size, kernel.end.0, top).ok_or_else(|| Error::InitramfsTooLarge {
        path: path.clone(),
        size,
        room: top.saturating_sub(kernel.end.0),
    })?;
    copy(&file.file, placed, ram, processors).map_err(|source| Error::File {
        what: INITRAMFS.into(),
        path: path.clone(),
        source,
    })?;
    Ok(placed)
}

/// Copies the file to its place, by at most so many threads as there are processors.
fn copy(file: &File, placed: Placed, ram: &GuestRam, processors: u64) -> io::Result<()> {
    let threads = processors.min(placed.size / SHARE_MIN).max(1);
    let share = placed
        .size
        .div_ceil(threads)
        .next_multiple_of(HUGE_PAGE as u64);
    let part = |number: u64| {
        let start = (number * share).min(placed.size);
        let len = share.min(placed.size - start);
        let mut at = At {
            file,
            offset: start,
        };
        let len = usize::try_from(len).expect("it fits into RAM");
        ram.map()
            .read_exact_volatile_from(GuestAddress(placed.start + start), &mut at, len)
            .map_err(io::Error::other)
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|number| {
                let copying = thread::Builder::new().spawn_scoped(scope, move || part(number));
                (number, copying)
            })
            .collect();
        let first = part(0);
        // This thread does the part of one that could not be started.
        let joined = others.into_iter().map(|(number, copying)| match copying {
            Ok(copying) => copying.join().expect("copying doesn't panic"),
            Err(_) => part(number),
        });
        joined.fold(first, |all, one| all.and(one))
    })
}

/// A file and an offset of its own to read from, so that several threads can read it.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl ReadVolatile for At<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<B>,
    ) -> std::result::Result<usize, VolatileMemoryError> {
        let into = buffer.ptr_guard_mut();
        let offset = libc::off_t::try_from(self.offset)
            .map_err(|error| VolatileMemoryError::IOError(io::Error::other(error)))?;
        #[allow(unsafe_code, reason = "guest memory has no safe slice")]
        // SAFETY: the guard holds `len` bytes of guest memory, which no reference points to; the kernel writes them.
        let read = unsafe {
            libc::pread(
                self.file.as_raw_fd(),
                into.as_ptr().cast(),
                into.len(),
                offset,
            )
        };
        let read = usize::try_from(read)
            .map_err(|_| VolatileMemoryError::IOError(io::Error::last_os_error()))?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Returns the highest page-aligned place for `size` bytes between `floor` and `top`.
fn place(size: u64, floor: u64, top: u64) -> Option<Placed> {
    let start = top.checked_sub(size)? & !0xfff;
    (start >= floor).then_some(Placed { start, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_large_initramfs_is_copied_whole() {
        let bytes: Vec<u8> = (0..40_000_001u32)
            .map(|i| (i % 251).to_le_bytes()[0])
            .collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let ram = GuestRam::new(64 << 20).unwrap();
        let placed = place(bytes.len() as u64, 0, kernel::low_ram_end(&ram)).unwrap();
        copy(&file, placed, &ram, 4).unwrap();
        let mut read = vec![0; bytes.len()];
        let start = GuestAddress(placed.start);
        ram.map().read_slice(&mut read, start).unwrap();
        assert!(read == bytes);
        file.set_len(39_000_000).unwrap();
        assert!(copy(&file, placed, &ram, 4).is_err(), "it became shorter");
    }

    #[test]
    fn an_initramfs_is_placed_on_a_page_at_the_top_and_never_in_the_kernel() {
        assert_eq!(
            place(0x1234, 0, 0x10_0000),
            Some(Placed {
                start: 0xf_e000,
                size: 0x1234
            })
        );
        assert_eq!(
            place(0x1000, 0xf_f000, 0x10_0000),
            Some(Placed {
                start: 0xf_f000,
                size: 0x1000
            })
        );
        assert_eq!(place(0x1001, 0xf_f000, 0x10_0000), None);
        assert_eq!(place(u64::MAX, 0, 0x10_0000), None);
    }
}

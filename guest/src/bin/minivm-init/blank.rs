//! Zeros in free memory, for a machine that is about to be saved.
//!
//! Freed memory keeps its old content: the image's archive, for one, which is as long as the image. It would be saved, and a
//! clone that uses such a page would first get a copy of content that it is about to overwrite. So nearly all free memory is
//! allocated once, for which the kernel fills it with zeros, and freed: zeros take no room in a snapshot, and no copy in clones.

#![allow(
    unsafe_code,
    reason = "memory that is allocated and freed as a whole has no safe interface"
)]

use std::fs;
use std::ptr;

/// The memory that is left to the kernel, in bytes: several times its reserve meanwhile.
const LEFT: usize = 16 << 20;
/// The kernel's reserve (`vm.min_free_kbytes`). With huge pages it is a twentieth of the memory by default, and a process that
/// takes of it is killed: here the first process, and with it all of the machine.
const KEPT: &str = "/proc/sys/vm/min_free_kbytes";
const KEPT_MEANWHILE: &[u8] = b"2048";
/// The most memory that is allocated, in bytes: the host has to have it for a moment. In a larger machine most of it was never
/// used.
const MOST: usize = 1 << 30;

/// Fills free memory with zeros. Where that can't be done, clones are slower, and nothing else.
///
/// Pages that were freed last are on the processors' own lists, which have up to an eighth of the memory, in single pages. They
/// aren't counted as free, are handed out first, and never as a part of a huge page: so that much is allocated in single pages
/// to begin with.
pub(crate) fn fill() {
    let Ok(kept) = fs::read(KEPT) else { return };
    if fs::write(KEPT, KEPT_MEANWHILE).is_err() {
        return;
    }
    let small = bytes("MemTotal:").unwrap_or(0) / 8;
    let room = || bytes("MemFree:").unwrap_or(0).saturating_sub(LEFT);
    let listed = Zeros::take(small.min(room()), false);
    // Huge pages take a tenth of the time.
    let rest = Zeros::take(room().min(MOST), true);
    drop((listed, rest));
    // The old value is valid, so the kernel takes it back.
    let _ = fs::write(KEPT, kept);
}

/// Memory that the kernel has filled with zeros. It is freed on drop.
struct Zeros {
    start: *mut libc::c_void,
    size: usize,
}

impl Zeros {
    fn take(size: usize, huge: bool) -> Option<Zeros> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists. One of no bytes is refused.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let zeros = Zeros { start, size };
        if huge {
            // A kernel that has none refuses.
            zeros.advise(libc::MADV_HUGEPAGE);
        }
        zeros.advise(libc::MADV_POPULATE_WRITE);
        Some(zeros)
    }

    fn advise(&self, advice: libc::c_int) {
        // SAFETY: the range is our own mapping, to which nothing refers; its pages are only made to be there.
        unsafe { libc::madvise(self.start, self.size, advice) };
    }
}

impl Drop for Zeros {
    fn drop(&mut self) {
        // SAFETY: the range is our own mapping, and nothing refers to it.
        unsafe { libc::munmap(self.start, self.size) };
    }
}

/// Reads a line of proc(5), "/proc/meminfo", in bytes.
fn bytes(name: &str) -> Option<usize> {
    bytes_in(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn bytes_in(meminfo: &str, name: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::bytes_in;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let meminfo =
            "MemTotal:         348212 kB\nMemFree:          271068 kB\nMemAvailable:     1 kB\n";
        assert_eq!(bytes_in(meminfo, "MemFree:"), Some(271_068 << 10));
        assert_eq!(bytes_in(meminfo, "MemTotal:"), Some(348_212 << 10));
        assert_eq!(bytes_in("MemFree: some kB", "MemFree:"), None);
        assert_eq!(bytes_in("", "MemFree:"), None);
    }
}

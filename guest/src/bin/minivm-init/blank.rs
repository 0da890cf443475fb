//! Free memory that holds zeros, for a machine that is about to be saved.
//!
//! What was freed still holds what it was used for: the image's archive, for one, as long as the image. It would be saved, and
//! each clone that is given such a page would get a copy of what it is about to overwrite. So nearly all free memory is taken
//! once, which the kernel fills with zeros for that, and given back: a snapshot has no room for zeros, and its clones no copy.

#![allow(
    unsafe_code,
    reason = "memory that is taken and given back as a whole has no safe interface"
)]

use std::fs;
use std::ptr;

/// How much is left to the kernel, in bytes: several times what it keeps for itself meanwhile.
const LEFT: usize = 16 << 20;
/// What the kernel keeps for itself (`vm.min_free_kbytes`). With huge pages it is a twentieth of the memory by default, and a process
/// that takes of that is killed for it, this one with all of the machine.
const KEPT: &str = "/proc/sys/vm/min_free_kbytes";
const KEPT_MEANWHILE: &[u8] = b"2048";
/// How much is taken at most: the host has to have it for a moment. In a larger machine most of it was never used.
const MOST: usize = 1 << 30;

/// Fills free memory with zeros. Where that can't be done, clones are slower, and nothing else.
pub(crate) fn fill() {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let size = free(&meminfo).unwrap_or(0).saturating_sub(LEFT).min(MOST);
    let Ok(kept) = fs::read(KEPT) else { return };
    if size == 0 || fs::write(KEPT, KEPT_MEANWHILE).is_err() {
        return;
    }
    fill_with_zeros(size);
    // It was right before, so it is now.
    let _ = fs::write(KEPT, kept);
}

fn fill_with_zeros(size: usize) {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return;
    }
    // Huge pages take a tenth of the time. A kernel that has none refuses.
    // SAFETY: the range is the new mapping, to which nothing refers.
    unsafe { libc::madvise(start, size, libc::MADV_HUGEPAGE) };
    // SAFETY: the same; the pages are only made to be there.
    unsafe { libc::madvise(start, size, libc::MADV_POPULATE_WRITE) };
    // SAFETY: the same; nothing refers to it yet.
    unsafe { libc::munmap(start, size) };
}

/// How many bytes are free and hold nothing (proc(5), "/proc/meminfo").
fn free(meminfo: &str) -> Option<usize> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemFree:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::free;

    #[test]
    fn what_is_free_is_read_in_bytes() {
        let meminfo =
            "MemTotal:         348212 kB\nMemFree:          271068 kB\nMemAvailable:     1 kB\n";
        assert_eq!(free(meminfo), Some(271_068 << 10));
        assert_eq!(free("MemFree: some kB"), None);
        assert_eq!(free(""), None);
    }
}

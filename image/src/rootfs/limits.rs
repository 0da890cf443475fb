//! Limits of images.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::options::EXPANDED_MAX;

/// Limits beyond which an image is refused.
///
/// A layer of a few kilobytes can expand to terabytes, so each is counted while it is read, and reading stops at the limit.
/// Further limits are those of Linux and of the formats: paths of less than 4096 bytes, names of at most 255, files of less than
/// 4 GiB in an initramfs, extended attributes of at most 64 KiB.
///
/// ```
/// use minivm_image::rootfs::Limits;
///
/// let small = Limits { expanded: 64 << 20, ..Limits::default() };
/// assert_eq!(small.entries, 2_000_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers, decompressed: 16 GiB.
    pub expanded: u64,
    /// Bytes of the archive or the EROFS image that is made of them, before it is compressed: 16 GiB, and never more than
    /// `expanded`.
    pub archive: u64,
    /// Entries of all layers, with the folders that they imply: 2 million.
    pub entries: u64,
    /// Bytes of names, link targets and extended attributes of all layers, which are held in memory: 256 MiB. An attribute
    /// counts for 64 bytes more than it has. In an EROFS image, a run of data between holes counts for 16 bytes.
    pub names: u64,
    /// Bytes of the headers that a single entry may have before it: 1 MiB.
    pub header: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            expanded: EXPANDED_MAX,
            archive: EXPANDED_MAX,
            entries: 2_000_000,
            names: 256 << 20,
            header: 1 << 20,
        }
    }
}

/// A limit that an image went beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image has more than {limit} {what}, the limit")]
pub struct Exceeded {
    /// The most that is allowed.
    pub limit: u64,
    /// The noun of what is limited.
    pub what: &'static str,
}

impl Limits {
    /// Refuses an archive of this size.
    pub(super) fn check_archive(&self, bytes: u64) -> Result<(), Exceeded> {
        let limit = self.archive.min(self.expanded);
        let what = "bytes in its archive";
        match bytes <= limit {
            true => Ok(()),
            false => Err(Exceeded { limit, what }),
        }
    }

    /// Refuses an EROFS image of this size: one that is beyond the limits, or has blocks for which there are no addresses.
    pub(crate) fn check_image(&self, bytes: u64) -> Result<(), Exceeded> {
        // An address with all bits set is a hole's.
        let addressed = (u64::from(u32::MAX) - 1) << 12;
        let limit = self.archive.min(self.expanded).min(addressed);
        let what = "bytes in its EROFS image";
        match bytes <= limit {
            true => Ok(()),
            false => Err(Exceeded { limit, what }),
        }
    }
}

/// The use that all layers together make of their limits; shared by the threads that read them.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) limits: Limits,
    expanded: AtomicU64,
    entries: AtomicU64,
    names: AtomicU64,
    /// Steps along symbolic links: forty links of 4096 bytes for each entry would take days.
    detours: AtomicU64,
}

impl Budget {
    pub(super) fn new(limits: &Limits) -> Budget {
        Budget {
            limits: *limits,
            expanded: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            names: AtomicU64::new(0),
            detours: AtomicU64::new(0),
        }
    }

    pub(super) fn expand(&self, bytes: u64) -> Result<(), Exceeded> {
        take(&self.expanded, bytes, self.limits.expanded, "bytes")
    }

    pub(super) fn entry(&self) -> Result<(), Exceeded> {
        take(&self.entries, 1, self.limits.entries, "files and folders")
    }

    pub(super) fn names(&self, bytes: usize) -> Result<(), Exceeded> {
        let what = "bytes of names and attributes";
        take(&self.names, bytes as u64, self.limits.names, what)
    }

    pub(super) fn detour(&self, steps: u64) -> Result<(), Exceeded> {
        let limit = self.limits.entries.saturating_mul(16);
        take(&self.detours, steps, limit, "steps along symbolic links")
    }
}

/// Adds to the use. The sum doesn't wrap: a reader stops at its first refusal.
fn take(used: &AtomicU64, more: u64, limit: u64, what: &'static str) -> Result<(), Exceeded> {
    let before = used.fetch_add(more.min(1 << 40), Ordering::Relaxed);
    match before.checked_add(more) {
        Some(sum) if sum <= limit => Ok(()),
        _ => Err(Exceeded { limit, what }),
    }
}

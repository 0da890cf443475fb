//! The size of a machine's memory: what it needs to run a command of an image.

use minivm_vmm::MEMORY_MAX;

use super::Error;

/// Memory that a guest has by default beside what its image takes.
const MEMORY: u64 = 256 << 20;
/// Memory that the kernel and the command need at least.
const KERNEL: u64 = 64 << 20;
/// How often an image's size is needed: in the archive, in the file system, and as much again, for a file system in memory
/// takes at most half of it.
const COPIES: u64 = 3;
/// Memory that each file takes beside its bytes: its last page isn't full, and that too counts twice. It is also the memory that
/// Linux has for each file that a file system in memory may hold.
const FILE: u64 = 2 * 4096;
/// A number of files that fits into any machine's memory beside the kernel.
const FEW: u64 = 1024;

/// Returns the size of a guest's memory, in bytes, for an archive of `image` bytes that holds this many `files`. The memory has to
/// hold the image, or files of it would be missing.
///
/// # Errors
///
/// [`Error::NoRoom`] where less is `wanted`.
pub fn memory_for(image: u64, files: u64, wanted: Option<u64>) -> Result<u64, Error> {
    let needed = (KERNEL + COPIES * image).next_multiple_of(1 << 20);
    let of_files = (FILE * files).next_multiple_of(1 << 20);
    match wanted {
        None => Ok((needed + of_files + MEMORY - KERNEL).min(MEMORY_MAX)),
        Some(wanted) if wanted < needed => Err(Error::NoRoom(format!(
            "{} of memory are too little: with this image it takes {} MiB, {COPIES} times the image's {} and {} for the kernel",
            told(wanted),
            needed >> 20,
            image.div_ceil(1 << 20),
            KERNEL >> 20
        ))),
        // Most files leave less of their last page than all of it; but there can't be more of them. What the kernel keeps for itself
        // doesn't count.
        Some(wanted) if wanted < of_files + KERNEL && files > FEW => Err(Error::NoRoom(format!(
            "{} of memory are too little: this image's {files} files take {} MiB, {} KiB each, and the kernel {}",
            told(wanted),
            (of_files + KERNEL) >> 20,
            FILE >> 10,
            KERNEL >> 20
        ))),
        Some(wanted) => Ok(wanted),
    }
}

/// Returns a size as text. Less than a MiB was hardly meant, and is shown as it was understood.
fn told(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{bytes} bytes"),
        mib => format!("{mib} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_to_hold_the_image_and_the_kernel() {
        let mib = 1 << 20;
        assert_eq!(memory_for(10 * mib, 0, None).unwrap(), (256 + 30) * mib);
        assert_eq!(memory_for(10 * mib, 0, Some(94 * mib)).unwrap(), 94 * mib);
        let error = memory_for(10 * mib, 0, Some(93 * mib))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("93 MiB") && error.contains("94 MiB"),
            "{error}"
        );
        assert_eq!(memory_for(MEMORY_MAX, 0, None).unwrap(), MEMORY_MAX);
    }

    #[test]
    fn memory_has_to_hold_the_files_however_small_they_are() {
        let mib = 1 << 20;
        let default = memory_for(9 * mib, 45_000, None).unwrap();
        assert_eq!(default, (256 + 27 + 352) * mib);
        assert_eq!(
            memory_for(9 * mib, 45_000, Some(416 * mib)).unwrap(),
            416 * mib
        );
        let error = memory_for(9 * mib, 45_000, Some(415 * mib))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("45000 files") && error.contains("416 MiB"),
            "{error}"
        );
    }
}

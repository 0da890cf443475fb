//! The size of a machine's memory: what it needs to run a command of an image.

use minivm_vmm::MEMORY_MAX;

use super::Error;

/// Memory that a guest has by default beside what its image takes.
pub(crate) const MEMORY: u64 = 256 << 20;
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
/// The part of a mapped file that its page structures take: Linux has 64 bytes (`struct page`) for each page of 4 KiB.
const PER_PAGE: u64 = 4096 / 64;
/// Bytes before an image that are mapped with it, and what all of them are a multiple of.
const HEADER: u64 = 2 << 20;

/// Returns the default size of a guest's memory, in bytes, for an archive of `image` bytes that holds this many `files`.
pub(crate) fn default_memory(image: u64, files: u64) -> u64 {
    (for_image(image) + for_files(files) + MEMORY - KERNEL).min(MEMORY_MAX)
}

/// Returns the memory that a guest's kernel takes for the page structures of a mapped image of so many bytes.
pub(crate) fn page_structures(image: u64) -> u64 {
    let mapped = (HEADER.saturating_add(image)).div_ceil(HEADER) * (HEADER / PER_PAGE);
    mapped.next_multiple_of(1 << 20)
}

/// Checks that `memory` bytes hold a kernel and a command.
///
/// # Errors
///
/// [`Error::NoRoom`] where they don't.
pub(crate) fn check_least(memory: u64) -> Result<(), Error> {
    if memory < KERNEL {
        return Err(Error::NoRoom(format!(
            "{} of memory are too little: the kernel and a command take {} MiB",
            told(memory),
            KERNEL >> 20
        )));
    }
    Ok(())
}

/// Checks that a guest with `memory` bytes of memory holds an archive of `image` bytes and this many `files`. Otherwise files of the
/// image would be missing.
///
/// # Errors
///
/// [`Error::NoRoom`] where it doesn't.
pub(crate) fn check_memory(image: u64, files: u64, memory: u64) -> Result<(), Error> {
    let (needed, of_files) = (for_image(image), for_files(files));
    if memory < needed {
        return Err(Error::NoRoom(format!(
            "{} of memory are too little: with this image it takes {} MiB, {COPIES} times the image's {} and {} for the kernel",
            told(memory),
            needed >> 20,
            image.div_ceil(1 << 20),
            KERNEL >> 20
        )));
    }
    // Most files leave less of their last page than all of it; but there can't be more of them. What the kernel keeps for itself
    // doesn't count.
    if memory < of_files + KERNEL && files > FEW {
        return Err(Error::NoRoom(format!(
            "{} of memory are too little: this image's {files} files take {} MiB, {} KiB each, and the kernel {}",
            told(memory),
            (of_files + KERNEL) >> 20,
            FILE >> 10,
            KERNEL >> 20
        )));
    }
    Ok(())
}

/// Returns the memory that the kernel and the image's bytes take.
fn for_image(image: u64) -> u64 {
    (KERNEL + COPIES * image).next_multiple_of(1 << 20)
}

/// Returns the memory that this many files take beside their bytes.
fn for_files(files: u64) -> u64 {
    (FILE * files).next_multiple_of(1 << 20)
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
        assert_eq!(default_memory(10 * mib, 0), (256 + 30) * mib);
        check_memory(10 * mib, 0, 94 * mib).unwrap();
        let error = check_memory(10 * mib, 0, 93 * mib).unwrap_err().to_string();
        assert!(
            error.contains("93 MiB") && error.contains("94 MiB"),
            "{error}"
        );
        assert_eq!(default_memory(MEMORY_MAX, 0), MEMORY_MAX);
    }

    #[test]
    fn a_mapped_image_takes_a_sixty_fourth_of_its_size() {
        let mib = 1 << 20;
        assert_eq!(page_structures(0), mib);
        assert_eq!(page_structures(62 * mib), mib);
        assert_eq!(page_structures(62 * mib + 1), 2 * mib);
        assert_eq!(page_structures(6 << 30), 97 * mib);
        // No file is as large, and none makes this overflow.
        assert!(page_structures(u64::MAX) > 1 << 57);
    }

    #[test]
    fn a_command_has_at_least_what_its_kernel_needs() {
        check_least(64 << 20).unwrap();
        let error = check_least((64 << 20) - 1).unwrap_err().to_string();
        assert!(error.contains("63 MiB of memory"), "{error}");
    }

    #[test]
    fn memory_has_to_hold_the_files_however_small_they_are() {
        let mib = 1 << 20;
        assert_eq!(default_memory(9 * mib, 45_000), (256 + 27 + 352) * mib);
        check_memory(9 * mib, 45_000, 416 * mib).unwrap();
        let error = check_memory(9 * mib, 45_000, 415 * mib)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("45000 files") && error.contains("416 MiB"),
            "{error}"
        );
    }
}

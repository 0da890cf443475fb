//! Code that has done its work, let go before a machine runs.
//!
//! Far more code starts a machine than runs it: the command line, images, files of kernels, and an interpreter that other
//! sandboxes need lie all around. Linux maps a program's pages as they are used, and with each one those next to it that it
//! has in its cache; so by the time that a machine runs, most of what counts as minivm's memory is code that won't run again.

#![allow(unsafe_code, reason = "code is unmapped, to be mapped again")]

/// The largest page that Linux has on the processors we run on, so that whole pages are told.
const PAGE: usize = 64 << 10;

unsafe extern "C" {
    /// Where the program begins, and where its code ends: between the two is nothing that is ever written, and the linker puts
    /// nothing else there. Both are the linker's, in every static program.
    static __executable_start: u8;
    static etext: u8;
}

/// Unmaps the program's code and constants. What is used from now on is mapped again, from the kernel's cache.
pub fn let_go() {
    let start = (&raw const __executable_start).addr();
    let len = ((&raw const etext).addr() - start) / PAGE * PAGE;
    let start = (&raw const __executable_start).cast_mut().cast();
    // SAFETY: the range is the file's mapping that this program runs from, of which no page differs from the file: it is not
    // writable, and in a program that the linker made position-independent all that is relocated lies behind it. So each byte
    // is the same when it is looked at next.
    let advised = unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) };
    // Where that fails, the memory stays.
    log::trace!(
        "code and constants of {len} bytes were let go: {}",
        advised == 0
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of the program's file that are mapped for execution now.
    fn resident() -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let code = smaps.split_once(" r-xp ").unwrap().1;
        let line = code.lines().find(|line| line.starts_with("Rss:"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    #[test]
    fn code_is_let_go_and_still_there() {
        let before = resident();
        let_go();
        let after = resident();
        // Other tests run meanwhile.
        assert!(
            after < before.max(2000),
            "{before} KiB before, {after} KiB after"
        );
        assert_eq!(format!("{:?}", [1, 2]), "[1, 2]");
    }
}

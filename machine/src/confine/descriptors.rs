//! Descriptors of a confined process: those that it was given, and few more.

#![allow(
    unsafe_code,
    reason = "closing descriptors that no object owns has no safe interface"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::Resource;

use super::{DESCRIPTORS, LIMITS, Missing};
use crate::jail::lower_limit;

/// Forbids core dumps, and more than so many descriptors.
///
/// # Errors
///
/// The missing wall.
pub(super) fn limit(descriptors: u64) -> Result<(), Missing> {
    lower_limit(Resource::Core, 0)
        .and(lower_limit(Resource::Nofile, descriptors))
        .map_err(Missing::of(LIMITS, "setrlimit"))
}

/// Closes all descriptors but 0, 1, 2 and those of `keep`.
///
/// # Errors
///
/// The missing wall, where the kernel can't close ranges.
pub(super) fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<(), Missing> {
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|file| file.as_raw_fd().cast_unsigned())
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for number in kept.into_iter().filter(|number| *number > 2) {
        close(first..number)?;
        first = number + 1;
    }
    close(first..u32::MAX)
}

fn close(range: std::ops::Range<u32>) -> Result<(), Missing> {
    if range.is_empty() {
        return Ok(());
    }
    // SAFETY: no object of this process owns a descriptor in the range, as `confine` demands of its caller.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, range.start, range.end - 1, 0) };
    match closed {
        0 => Ok(()),
        _ => Err(Missing::of(DESCRIPTORS, "close_range")(
            io::Error::last_os_error(),
        )),
    }
}

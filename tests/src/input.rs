//! Inputs that are there from the start.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

/// The reading end of a pipe that has these bytes, and then ends.
///
/// # Panics
///
/// If there is no pipe, or the bytes are more than one holds.
pub fn input(bytes: &[u8]) -> File {
    assert!(bytes.len() <= 64 << 10, "a pipe holds no more");
    let (ours, mut theirs) = io::pipe().expect("there is a pipe");
    theirs.write_all(bytes).expect("a new pipe takes them");
    File::from(OwnedFd::from(ours))
}

//! What entries of a cache have in common, however they are made: locks, and how they are removed.

pub mod tree;

use std::fs::File;
use std::io;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Locks an open file.
///
/// # Errors
///
/// Where it can't be locked, or another process has locked it and the operation is one that doesn't wait.
pub fn lock(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            locked => return Ok(locked?),
        }
    }
}

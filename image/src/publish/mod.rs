//! Publication of a cache's entries: each is made once, appears whole, and stays as long as it is used.
//!
//! | | a file ([`Partial`]) | a folder ([`Folder`]) |
//! |---|---|---|
//! | what is filled | `NAME.partial`, or a file of another name | `NAME.partial` |
//! | what its maker locks, alone | that file | `NAME.lock` |
//! | what its users lock, together ([`hold`], [`Folder::hold`]) | the file itself | `NAME.lock` |
//! | whose modification time is that of the last use | the file's | the lock's |
//!
//! A maker locks, looks whether another process has made the entry meanwhile, fills, brings all to the disk, and renames. So
//! under its own name an entry is whole or absent, whatever was killed and when. The locks are `flock(2)`'s, which the kernel
//! drops when a process ends: a kill leaves at most a partial entry, which the next maker removes or goes on from.
//!
//! A lock's file may be removed with its entry, or renamed to it. So a process that waits for a lock, or gets it, looks whether
//! the file still has that name, and opens the name anew where it doesn't. It never waits for a maker that uses what it made.
//!
//! What stands in the place of an entry, its lock or its partial form, and is not what belongs there (a folder, a link, a pipe,
//! another user's file), is removed and made anew. Nothing is followed.

mod file;
mod folder;
mod lock;
#[cfg(test)]
mod tests;
pub mod tree;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::SystemTime;

pub(crate) use file::keep_there;
pub use file::{Found, Partial, find, hold, hold_open, is_in_use, open};
pub use folder::{Folder, Unfinished};
pub use lock::Lock;

use crate::io_error::{FileError, failed};

/// Makes a folder, and those it is in, for its owner only.
///
/// # Errors
///
/// Where it can't be made.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Makes the folder that a file is in.
fn make_folder_of(path: &Path) -> Result<(), FileError> {
    let folder = folder_of(path);
    make_folder(folder).map_err(failed("create", folder))
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent();
    folder
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Notes that an entry is used now. Where that can't be noted, it is removed earlier than it should be.
fn touch(file: &File) {
    let now = fs::FileTimes::new().set_modified(SystemTime::now());
    let _ = file.set_times(now);
}

/// Gives what is whole its name, in place of whatever is there and is not.
fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    make_folder_of(to)?;
    match fs::rename(from, to) {
        // A folder doesn't give way to a file, nor anything but an empty folder to a folder.
        Err(error) if in_the_way(&error) => {
            tree::remove(to).whole()?;
            fs::rename(from, to).map_err(failed("create", to))
        }
        renamed => renamed.map_err(failed("create", to)),
    }
}

fn in_the_way(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory};
    matches!(
        error.kind(),
        AlreadyExists | DirectoryNotEmpty | IsADirectory | NotADirectory
    )
}

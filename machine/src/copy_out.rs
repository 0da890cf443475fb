//! Files out of a guest, unpacked as they come.
//!
//! A guest can send anything. Its archive is unpacked while it comes, so that nothing but the files themselves takes room here,
//! and a limit or a stop between two pieces ends it. A file is written under another name until it is
//! whole. A folder is unpacked as `unpack_into` describes; links that may lead out of it are left out. A single file goes
//! to what the user names, see [`crate::output_path`].
//!
//! This process opens that place, and gives a new file its name when it is whole. All that is between is done by an unpacker: a process
//! of its own, behind walls ([`crate::confine`]), which gets the open place and the archive's bytes.
//!
//! ```text
//!  minivm run                                       minivm unpack
//!  ──────────                                       ─────────────
//!  looks whether it is a file or a folder
//!  opens the place
//!  job: the open place, what may come ────────────▶ walls
//!  archive ───────────────────────────────────────▶ reads it, writes files
//!  stop: the socket's end ────────────────────────▶ ends between two pieces
//!  ◀──────────────────── report: what was left out  ends
//!  gives the file its name
//! ```
//!
//! - `fill`: the archive's way into the open place, in either process;
//! - `unpacker`: the process as its parent has it; `serve`: its own side; `protocol`: their messages.
//!
//! A program whose `main` doesn't begin with [`answer`] has no unpackers, and unpacks in its own process.

mod fill;
mod protocol;
mod serve;
mod unpacker;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use minivm_guest::unpack::{Entry, Kind};
use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::copies::Files;
use crate::child::Role;
use crate::output_path::Output;
use crate::unpack_into::open_own;

/// The argument with which this program is an unpacker.
pub const COMMAND: &str = "unpack";
/// The unpacker as a child of this program.
const ROLE: Role = Role {
    command: c"unpack",
    duty: "unpacks the files of a guest",
    variables: &[],
    is_apart: true,
    has_stderr: false,
};

/// Whether this program answers as an unpacker.
static ANSWERS: AtomicBool = AtomicBool::new(false);

/// The bytes of an archive by which its first entry's kind is known: a magic number, an inode's number, and the mode.
const HEAD: usize = MODE + 8;
const MODE: usize = 6 + 8;

/// Runs this process as an unpacker, if its command line is that of one, and returns its exit code then. Otherwise lets what this
/// program's guests send be unpacked by unpackers. A program's `main` calls it first, while it has one thread.
pub fn answer(command_line: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    if ROLE.is_named_by(command_line) {
        return Some(serve::serve());
    }
    ANSWERS.store(true, Ordering::Relaxed);
    None
}

/// The rest of what may be taken out of a guest, in all its copies together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Budget {
    /// Files, folders and links.
    pub(super) entries: usize,
    /// Bytes of their names, which have all the folders above them, and of what links lead to.
    pub(super) names: usize,
    /// Number of them that were taken, and are whole.
    pub(super) whole: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            entries: 200_000,
            names: 64 << 20,
            whole: 0,
        }
    }
}

impl Budget {
    /// Takes an entry from the budget.
    fn take(&mut self, entry: &Entry) -> io::Result<()> {
        let mut names = entry.name.as_os_str().len();
        if let Kind::Symlink(to) = &entry.kind {
            names += to.as_os_str().len();
        }
        let left = (self.entries.checked_sub(1), self.names.checked_sub(names));
        let (Some(entries), Some(names)) = left else {
            let most = Budget::default();
            return Err(io::Error::other(format!(
                "there are more than {} files, or their names have more than {} MiB: make an archive of them in the guest",
                most.entries,
                most.names >> 20
            )));
        };
        (self.entries, self.names) = (entries, names);
        Ok(())
    }
}

/// Unpacks what comes from a guest to where the user wants it, until `is_over`. Returns what was left out, and why.
///
/// # Errors
///
/// Where something can't be written, or must not come; what is whole by then stays.
pub(super) fn unpack(
    mut from: impl Read,
    files: &Files,
    budget: &mut Budget,
    is_over: &dyn Fn() -> bool,
) -> io::Result<Vec<String>> {
    let target = target(files);
    if target.file_name().is_none() {
        return Err(io::Error::other("it is no place for a file"));
    }
    let mut head = [0; HEAD];
    from.read_exact(&mut head).map_err(fill::early)?;
    let mut place = Place::open(&target, first_kind(&head)?)?;
    let archive = head.as_slice().chain(from);
    let left_out = match ANSWERS.load(Ordering::Relaxed) {
        true => unpacker::fill(archive, &place, &target, budget, is_over),
        false => fill::fill(archive, &mut place, &target, budget, is_over),
    }?;
    place.finish()?;
    Ok(left_out)
}

/// Returns the kind of an archive's first entry. All else about it is the unpacker's to read.
fn first_kind(head: &[u8; HEAD]) -> io::Result<FileType> {
    let mode = str::from_utf8(&head[MODE..]).ok();
    let mode = mode.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let mode = mode.ok_or_else(|| io::Error::other("it is not an archive"))?;
    Ok(FileType::from_raw_mode(mode))
}

/// The open place that files are unpacked to.
enum Place {
    File(Output),
    Folder(OwnedFd),
}

impl Place {
    fn open(target: &Path, kind: FileType) -> io::Result<Place> {
        match kind {
            FileType::RegularFile => {
                fs::create_dir_all(parent(target))?;
                Ok(Place::File(Output::open(target, 0o600)?))
            }
            FileType::Directory => Ok(Place::Folder(open_target(target)?)),
            _ => Err(io::Error::other("it is neither a file nor a folder")),
        }
    }

    /// Gives a file its name: all is in it.
    fn finish(self) -> io::Result<()> {
        match self {
            Place::File(output) => output.finish(),
            Place::Folder(_) => Ok(()),
        }
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Place::File(output) => output.file().as_fd(),
            Place::Folder(folder) => folder.as_fd(),
        }
    }
}

/// Returns the path to write to, as `cp` does: in the folder that was given, if there is one, or the path that was given.
fn target(files: &Files) -> PathBuf {
    match files.from.file_name() {
        Some(name) if files.to.is_dir() => files.to.join(name),
        _ => files.to.clone(),
    }
}

fn parent(target: &Path) -> &Path {
    let parent = target.parent();
    parent
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn name(target: &Path) -> &OsStr {
    target.file_name().expect("it was checked")
}

/// Opens the folder that the target is in, made where it isn't there. The user has named it, so links in its path are followed.
fn open_parent(target: &Path) -> io::Result<OwnedFd> {
    let path = parent(target);
    fs::create_dir_all(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// Creates the target folder, or opens the one that is there; a link in its place is not followed.
fn open_target(target: &Path) -> io::Result<OwnedFd> {
    let above = open_parent(target)?;
    match mkdirat(&above, name(target), Mode::RWXU) {
        Err(errno) if errno != Errno::EXIST => return Err(errno.into()),
        _ => {}
    }
    open_own(above.as_fd(), name(target))
}

#[cfg(test)]
mod tests;

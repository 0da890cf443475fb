//! The way of a guest's archive into an open place. The archive is hostile; what it may do is bounded here.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use minivm_guest::channel::COPIED;
use minivm_guest::unpack::{Entry, Kind, Unpack};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{Budget, Place};
use crate::output_path::Output;
use crate::unpack_into::{Added, CHUNK, Links, Policy, Target, There, check, copy};

/// How many folders may be in one another.
pub(super) const DEPTH_MAX: usize = 128;
/// The most entries that are listed as left out.
pub(super) const LEFT_OUT_MAX: usize = 10;
/// Characters that are shown of a long path's beginning, and as many of its end.
const SHOWN: usize = 100;
/// How often `is_over` is asked while a pipe takes nothing.
const LOOK: Duration = Duration::from_millis(20);

/// Unpacks an archive into the place, whose path messages show, until `is_over`. Returns what was left out, and why.
///
/// # Errors
///
/// Where something can't be written, or must not come; what is whole by then stays.
pub(super) fn fill(
    from: impl Read,
    place: &mut Place,
    path: &Path,
    budget: &mut Budget,
    is_over: &dyn Fn() -> bool,
) -> io::Result<Vec<String>> {
    let mut unpack = Unpack::new(from);
    let first = next(&mut unpack)?.filter(|entry| entry.name == Path::new(COPIED));
    let first = first.ok_or_else(unasked)?;
    budget.take(&first)?;
    match (place, &first.kind) {
        (Place::File(output), Kind::File { .. }) => {
            fill_file(&mut unpack, &first, output, is_over)?;
            budget.whole += 1;
            match next(&mut unpack)? {
                None => Ok(Vec::new()),
                Some(_) => Err(unasked()),
            }
        }
        (Place::Folder(folder), Kind::Folder) => {
            let unfinished = unfinished_name()?;
            let mut tree = Tree::new(folder.as_fd(), path, &first, &unfinished, is_over)?;
            let filled = tree.fill(&mut unpack, budget);
            // Whatever has come: folders are closed to others while they are filled.
            let finished = tree.target.finish();
            filled.and(finished)?;
            Ok(tree.left_out())
        }
        _ => Err(unasked()),
    }
}

fn fill_file(
    unpack: &mut Unpack<impl Read>,
    entry: &Entry,
    output: &mut Output,
    is_over: &dyn Fn() -> bool,
) -> io::Result<()> {
    let mut patient = Patient { output, is_over };
    copy(unpack, &mut patient, &mut vec![0; CHUNK], is_over).map_err(early)?;
    output.set_permissions(entry.permissions & 0o777)?;
    output.set_modified(UNIX_EPOCH + Duration::from_secs(entry.mtime.into()))
}

/// Returns the next entry of an archive that may end early.
fn next(unpack: &mut Unpack<impl Read>) -> io::Result<Option<Entry>> {
    unpack.next().map_err(early)
}

/// Names the cause of an archive's early end.
pub(super) fn early(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("the guest did not send all of it"),
        _ => error,
    }
}

fn unasked() -> io::Error {
    io::Error::other("the guest sends files that were not asked for")
}

/// Returns a name for files that aren't whole yet. A guest that knew it could send a file of this name.
fn unfinished_name() -> io::Result<String> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(format!(".minivm-{:016x}", u64::from_le_bytes(random)))
}

/// A writer that asks `is_over` while the output takes nothing, so that a pipe with a slow reader doesn't keep the session alive.
struct Patient<'a> {
    output: &'a mut Output,
    is_over: &'a dyn Fn() -> bool,
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            if let Some(len) = self.output.write_soon(bytes, LOOK)? {
                return Ok(len);
            }
            check(self.is_over)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// A folder that is filled with what a guest sends.
struct Tree<'a> {
    /// Path of the folder, for messages.
    path: &'a Path,
    target: Target<'a>,
    is_over: &'a dyn Fn() -> bool,
    left_out: Vec<String>,
    more_left_out: usize,
}

impl<'a> Tree<'a> {
    fn new(
        folder: BorrowedFd<'_>,
        path: &'a Path,
        entry: &Entry,
        unfinished: &'a str,
        is_over: &'a dyn Fn() -> bool,
    ) -> io::Result<Self> {
        let policy = Policy {
            there: There::Replaced(unfinished),
            links: Links::Inside,
            hard_links: false,
            permissions: 0o777,
            // Their owner can always clean them up.
            folders: 0o700,
            in_order: true,
            is_over,
        };
        let mut target = Target::new(folder.try_clone_to_owned()?, policy)?;
        target.be(entry)?;
        Ok(Tree {
            path,
            target,
            is_over,
            left_out: Vec::new(),
            more_left_out: 0,
        })
    }

    fn fill(&mut self, unpack: &mut Unpack<impl Read>, budget: &mut Budget) -> io::Result<()> {
        while let Some(entry) = next(unpack)? {
            check(self.is_over)?;
            budget.take(&entry)?;
            let path = match entry.name.strip_prefix(COPIED) {
                Ok(path) if !path.as_os_str().is_empty() => path,
                _ => return Err(unasked()),
            };
            match self.add(path, &entry, unpack) {
                Ok(Added::Whole) => {}
                Ok(Added::LeftOut(why)) => self.leave_out(path, &why),
                Err(error) => {
                    let text = format!("{}: {}", self.shown(path), early(error));
                    return Err(io::Error::other(text));
                }
            }
            budget.whole += 1;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, entry: &Entry, data: &mut impl Read) -> io::Result<Added> {
        if path.components().count() > DEPTH_MAX {
            let text = format!(
                "more than {DEPTH_MAX} folders are in one another: make an archive of them in the guest"
            );
            return Err(io::Error::other(text));
        }
        self.target.add(path, entry, data)
    }

    /// Returns a path as it is shown: only its beginning and its end, where it is so long that nothing else would be seen.
    fn shown(&self, path: &Path) -> String {
        let text = self.path.join(path).display().to_string();
        let end = text.char_indices().rev().nth(SHOWN).map(|(at, _)| at);
        match (text.char_indices().nth(SHOWN), end) {
            (Some((begin, _)), Some(end)) if begin < end => {
                format!("{}…{}", &text[..begin], &text[end..])
            }
            _ => text,
        }
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        if self.left_out.len() < LEFT_OUT_MAX {
            let path = self.shown(path);
            self.left_out.push(format!("{path}: {why}"));
        } else {
            self.more_left_out += 1;
        }
    }

    fn left_out(mut self) -> Vec<String> {
        if self.more_left_out > 0 {
            self.left_out.push(format!("{} more", self.more_left_out));
        }
        self.left_out
    }
}

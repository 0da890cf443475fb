//! The place where a user wants a result: a path, and what is there already.
//!
//! A regular file, and one that isn't there yet, appears whole: it is written beside its name and gets that when all is in it.
//! A link is followed to where it leads, and stays. A device, a pipe or an open file of this process's (`/dev/stdout`) is written
//! to as it is, or refused: it is never replaced.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, PROC_SUPER_MAGIC, fcntl_getfl, fcntl_setfl, linkat, statfs,
};
use rustix::io::{Errno, FdFlags};
use tempfile::TempPath;

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;
/// How long a FIFO may be without a reader.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether it has one.
const LOOK: Duration = Duration::from_millis(10);
/// How long output that is not taken, though it is said to be, waits until it is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// So much a pipe takes at once, if it takes anything (pipe(7)).
const PIPE_BUF: usize = 4096;
/// Everybody may write to a folder, and names in it are their owners'.
const SHARED: u32 = 0o1002;

/// An output at such a place. A file that is dropped before it is finished was never there.
#[derive(Debug)]
pub struct Output {
    file: File,
    sink: Sink,
    /// The error number of the last write that failed.
    failure: Option<i32>,
}

#[derive(Debug)]
enum Sink {
    /// A file that gets its name when it is whole.
    Whole {
        place: PathBuf,
        /// It has another one until then, where files without names are unknown.
        named: Option<TempPath>,
    },
    /// A file that another process gives its name to.
    Lent,
    /// What was there.
    There,
}

impl Output {
    /// Opens the place; a new file gets the mode, as far as the umask lets it.
    ///
    /// # Errors
    ///
    /// Where what is there can't be written to, or is a folder, a socket or another user's link, or its folder isn't there.
    pub fn open(path: &Path, mode: u32) -> io::Result<Output> {
        let place = follow(path)?;
        let there = match fs::metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            metadata => Some(metadata?),
        };
        if let Some(number) = own_file(&place) {
            return Ok(Output {
                file: copy_of(number)?,
                sink: Sink::There,
                failure: None,
            });
        }
        let is_file = there.as_ref().is_none_or(Metadata::is_file);
        match there {
            Some(there) if !is_file || is_of_a_process(&place) => Ok(Output {
                file: open_there(&place, &there)?,
                sink: Sink::There,
                failure: None,
            }),
            _ => Output::whole(place, mode),
        }
    }

    /// Returns the file that takes the output until it is finished.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Returns whether the output is a new file.
    pub(crate) fn is_new(&self) -> bool {
        !matches!(self.sink, Sink::There)
    }

    /// Returns an output of a file that another process has opened, and finishes. A new one may get permissions and times.
    pub(crate) fn lent(file: File, is_new: bool) -> Output {
        Output {
            file,
            sink: match is_new {
                true => Sink::Lent,
                false => Sink::There,
            },
            failure: None,
        }
    }

    fn whole(place: PathBuf, mode: u32) -> io::Result<Output> {
        let folder = folder_of(&place);
        fs::metadata(folder)?;
        // A file without a name is gone if we are killed. A network's file system may not know such a thing.
        if let Ok(file) = unnamed(folder, mode) {
            let sink = Sink::Whole { place, named: None };
            return Ok(Output {
                file,
                sink,
                failure: None,
            });
        }
        let named = tempfile::Builder::new()
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder)
            // Without the name that it would have had.
            .map_err(|error| io::Error::from(error.kind()))?;
        let (file, named) = named.into_parts();
        let named = Some(named);
        Ok(Output {
            file,
            sink: Sink::Whole { place, named },
            failure: None,
        })
    }

    /// Returns the file that takes the output, where it is an empty one that can be read and be written at any place.
    pub(crate) fn random_access(&self) -> Option<&File> {
        let flags = fcntl_getfl(&self.file).ok()?;
        let anywhere = flags & OFlags::RWMODE == OFlags::RDWR && !flags.contains(OFlags::APPEND);
        let metadata = self.file.metadata().ok()?;
        (anywhere && metadata.is_file() && metadata.len() == 0).then_some(&self.file)
    }

    /// Returns the error of the last write that failed.
    pub fn failure(&self) -> Option<io::Error> {
        self.failure.map(io::Error::from_raw_os_error)
    }

    /// Writes what the output takes now, and waits for `wait` at most until it takes a byte; returns `None` where it takes none. A
    /// file takes all.
    ///
    /// # Errors
    ///
    /// Where it can't be written to.
    pub(crate) fn write_soon(&mut self, bytes: &[u8], wait: Duration) -> io::Result<Option<usize>> {
        let room = match self.sink {
            Sink::Whole { .. } | Sink::Lent => usize::MAX,
            Sink::There => {
                let mut polled = [PollFd::new(&self.file, PollFlags::OUT)];
                let timeout = wait.try_into().map_err(io::Error::other)?;
                match poll(&mut polled, Some(&timeout)) {
                    // A pipe that is said to have room has it for so much. A terminal may have less, and is asked not to wait.
                    Ok(1..) => PIPE_BUF,
                    Ok(0) | Err(Errno::INTR) => return Ok(None),
                    Err(errno) => return Err(errno.into()),
                }
            }
        };
        match self.file.write(&bytes[..bytes.len().min(room)]) {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(wait);
                Ok(None)
            }
            Err(error) => {
                self.failure = error.raw_os_error();
                Err(error)
            }
        }
    }

    /// Opens the place for output that is read while it grows: a regular file is emptied now, or made.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open)'s.
    pub fn growing(path: &Path) -> io::Result<Output> {
        let place = follow(path)?;
        let is_file = match fs::metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            metadata => metadata?.is_file(),
        };
        if own_file(&place).is_some() || !is_file || is_of_a_process(&place) {
            return Output::open(&place, 0o666);
        }
        Ok(Output {
            file: File::create(place)?,
            sink: Sink::There,
            failure: None,
        })
    }

    /// Gives a new file these permissions. What was there keeps its own.
    ///
    /// # Errors
    ///
    /// Where its file system doesn't let it.
    pub fn set_permissions(&self, mode: u32) -> io::Result<()> {
        match self.sink {
            Sink::Whole { .. } | Sink::Lent => {
                self.file.set_permissions(Permissions::from_mode(mode))
            }
            Sink::There => Ok(()),
        }
    }

    /// Gives a new file this time of its last change.
    ///
    /// # Errors
    ///
    /// Where its file system doesn't let it.
    pub fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        match self.sink {
            Sink::Whole { .. } | Sink::Lent => self.file.set_modified(time),
            Sink::There => Ok(()),
        }
    }

    /// Writes all to the disk, where there is one.
    ///
    /// # Errors
    ///
    /// Where the disk has no room, or fails.
    pub fn sync(&self) -> io::Result<()> {
        match self.file.sync_data() {
            // A pipe or a terminal has none.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }

    /// Gives a file its name.
    ///
    /// # Errors
    ///
    /// Where its name can't be given to it.
    pub fn finish(self) -> io::Result<()> {
        let Sink::Whole { place, named } = self.sink else {
            return Ok(());
        };
        let named = match named {
            Some(named) => named,
            None => name(&self.file, folder_of(&place))?,
        };
        named.persist(&place).map_err(|error| error.error)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                // Another process that has the same pipe or terminal may have made it so.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None) {
                        // A terminal is said to be ready that has less room than an end of a line takes.
                        Ok(_) | Err(Errno::INTR) => thread::sleep(RETRY),
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => {
                    self.failure = error.raw_os_error();
                    return Err(error);
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Keeps the open file that the path names, if it is one of this process's, open for the program that the process becomes.
pub fn pass_on(path: &Path) {
    if let Some(number) = follow(path).ok().and_then(|place| own_file(&place)) {
        // A write to one that isn't open is an error, which names it.
        let _ = rustix::io::fcntl_setfd(borrowed(number), FdFlags::empty());
    }
}

/// Returns where the links at the path's end lead to; nothing need be there.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if path.file_name().is_none() || path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(io::Error::other("it names a folder, and not a file"));
        }
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            metadata => metadata?,
        };
        // The text of a process's own links is no path.
        if !metadata.is_symlink() || is_of_a_process(&path) {
            return Ok(path);
        }
        check_link(&path, &metadata)?;
        let to = fs::read_link(&path)?;
        path = folder_of(&path).join(to);
    }
    Err(Errno::LOOP.into())
}

/// As the kernel does where `fs.protected_symlinks` is set.
fn check_link(path: &Path, link: &Metadata) -> io::Result<()> {
    let folder = fs::metadata(folder_of(path))?;
    let us = rustix::process::geteuid().as_raw();
    let shared = folder.mode() & SHARED == SHARED;
    if shared && link.uid() != us && link.uid() != folder.uid() {
        let text = format!("{} is another user's link", path.display());
        return Err(io::Error::other(text));
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Whether it is in `/proc`.
fn is_of_a_process(path: &Path) -> bool {
    statfs(folder_of(path)).is_ok_and(|system| system.f_type == PROC_SUPER_MAGIC)
}

/// Returns the open file of this process that the path names by its number, open or not.
pub(crate) fn own_descriptor(path: &Path) -> Option<BorrowedFd<'static>> {
    own_file(path).map(borrowed)
}

/// The number of an open file of this process, if that is what the path names.
fn own_file(path: &Path) -> Option<RawFd> {
    let number = path.file_name().and_then(OsStr::to_str)?.parse().ok()?;
    let ours = fs::canonicalize("/proc/self/fd").ok()?;
    (fs::canonicalize(folder_of(path)).ok()? == ours).then_some(number)
}

fn copy_of(number: RawFd) -> io::Result<File> {
    let copy = File::from(rustix::io::fcntl_dupfd_cloexec(borrowed(number), 3)?);
    let flags = fcntl_getfl(&copy)?;
    if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE == OFlags::RDONLY {
        return Err(io::Error::other("it is not open for writing"));
    }
    // A terminal is opened once more: others have the same open file, and may want to wait.
    if copy.is_terminal() {
        let path = format!("/proc/self/fd/{number}");
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        return Ok(rustix::fs::open(path, flags, Mode::empty()).map_or(copy, File::from));
    }
    Ok(copy)
}

#[allow(
    unsafe_code,
    reason = "a user names an open file by its number, and it may not be open"
)]
fn borrowed(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: it is handed to one system call, which fails where nothing is open under that number. A negative number names no descriptor.
    unsafe { BorrowedFd::borrow_raw(number.max(0)) }
}

/// Opens what is no regular file.
fn open_there(place: &Path, there: &Metadata) -> io::Result<File> {
    let kind = there.file_type();
    if kind.is_dir() {
        return Err(io::Error::other("it is a folder"));
    }
    if kind.is_socket() {
        return Err(io::Error::other("it is a socket"));
    }
    // A line's carrier is not waited for, and a FIFO's reader not for ever.
    let mut flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if kind.is_block_device() {
        // One that is mounted is refused.
        flags |= OFlags::EXCL;
    }
    if kind.is_file() {
        flags |= OFlags::TRUNC;
    }
    let began = Instant::now();
    let file = loop {
        match rustix::fs::open(place, flags, Mode::empty()) {
            // Its reader may be about to start.
            Err(Errno::NXIO) if kind.is_fifo() && began.elapsed() < PATIENCE => thread::sleep(LOOK),
            Err(Errno::NXIO) if kind.is_fifo() => {
                let text = "it is a FIFO that nothing reads: start its reader first";
                return Err(io::Error::other(text));
            }
            opened => break File::from(opened?),
        }
    };
    if file.metadata()?.file_type() != kind {
        return Err(io::Error::other("it became something else meanwhile"));
    }
    if !file.is_terminal() {
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    }
    Ok(file)
}

/// A file that is gone with its last descriptor, unless it gets a name. The umask has the last word on its mode.
fn unnamed(folder: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::from_raw_mode(mode))?.into())
}

/// Only a name that is free can be given to it: this one is there for a moment.
fn name(file: &File, folder: &Path) -> io::Result<TempPath> {
    let named = tempfile::Builder::new().make_in(folder, |free| {
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(linkat(CWD, own, CWD, free, AtFlags::SYMLINK_FOLLOW)?)
    });
    Ok(named?.into_temp_path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    #[test]
    fn a_terminal_that_nothing_reads_is_not_waited_for() {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let path = Path::new(OsStr::from_bytes(name.to_bytes()));
        let mut output = Output::open(path, 0o600).unwrap();
        let mut sent = 0;
        // Each of these takes two places.
        let wait = Duration::from_millis(1);
        while let Some(len) = output.write_soon(&[b'\n'; 300], wait).unwrap() {
            sent += len;
            assert!(sent < 1 << 20, "it takes all");
        }
        assert!(sent > 0);
    }
}

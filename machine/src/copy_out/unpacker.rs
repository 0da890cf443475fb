//! An unpacker as the process that started it has it. Nothing that it sends is believed: it may have been taken over by what it reads.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::fill::LEFT_OUT_MAX;
use super::protocol::{Job, Kind, Report};
use super::{Budget, Place, ROLE};
use crate::child::{Child, Stream, is_of_the_end, read};
use crate::confine;
use crate::unpack_into::CHUNK;

/// How often `is_over` is asked while the unpacker takes or sends nothing.
const LOOK: Duration = Duration::from_millis(20);
/// How long an unpacker may take to end once it is over. Then it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Has an unpacker unpack `archive` into the place until `is_over`. It ends with this call.
///
/// # Errors
///
/// As [`fill`](super::fill::fill)'s, and where there can't be an unpacker, or it ends before it has reported.
pub(super) fn fill(
    archive: impl Read,
    place: &Place,
    path: &Path,
    budget: &mut Budget,
    is_over: &dyn Fn() -> bool,
) -> io::Result<Vec<String>> {
    let job = Job {
        place: match place {
            Place::File(output) => Kind::File {
                is_new: output.is_new(),
            },
            Place::Folder(_) => Kind::Folder,
        },
        path: path.as_os_str().as_bytes().to_vec(),
        budget: *budget,
        confined: confine::is_wanted(),
    };
    let mut unpacker = Unpacker::start(&job, place).map_err(|error| {
        io::Error::other(format!("cannot start the process that unpacks it: {error}"))
    })?;
    unpacker.feed(archive, is_over)?;
    let report = unpacker.report(is_over)?;
    budget.lower(&report.budget);
    let mut left_out = report.filled.map_err(io::Error::other)?;
    left_out.truncate(LEFT_OUT_MAX + 1);
    Ok(left_out)
}

impl Budget {
    /// Takes from the budget what an unpacker reports to have taken.
    fn lower(&mut self, reported: &Budget) {
        let entries = reported.entries.min(self.entries);
        let taken = self.entries - entries;
        let most = self.whole.saturating_add(taken);
        self.whole = reported.whole.clamp(self.whole, most);
        self.names = reported.names.min(self.names);
        self.entries = entries;
    }
}

/// The process of an unpacker. It is killed, and waited for, when this value is dropped; and it ends with the thread that started it.
struct Unpacker {
    /// The process, until it has been waited for.
    child: Option<Child>,
    socket: Stream,
    archive: UnixStream,
}

impl Unpacker {
    fn start(job: &Job, place: &Place) -> io::Result<Unpacker> {
        let (socket, theirs) = Stream::pair()?;
        let (archive, from_archive) = UnixStream::pair()?;
        archive.set_write_timeout(Some(LOOK))?;
        socket.socket().set_read_timeout(Some(LOOK))?;
        let unpacker = Unpacker {
            child: Some(Child::start(&ROLE, theirs.as_fd())?),
            socket,
            archive,
        };
        drop(theirs);
        let files = [place.as_fd(), from_archive.as_fd()];
        match unpacker.socket.send(job, &files) {
            // It has ended, and the wait for its report finds out how.
            Err(error) if is_of_the_end(&error) => {}
            sent => sent?,
        }
        Ok(unpacker)
    }

    /// Passes the archive on, as far as the unpacker takes it.
    fn feed(&self, mut archive: impl Read, is_over: &dyn Fn() -> bool) -> io::Result<()> {
        let mut piece = vec![0; CHUNK];
        loop {
            let len = archive.read(&mut piece)?;
            if len == 0 || !self.send(&piece[..len], is_over)? {
                return match self.archive.shutdown(Shutdown::Write) {
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                    ended => ended,
                };
            }
        }
    }

    /// Sends a piece; returns false where it is over, or the unpacker takes no more of it.
    fn send(&self, mut piece: &[u8], is_over: &dyn Fn() -> bool) -> io::Result<bool> {
        while !piece.is_empty() {
            if is_over() {
                return Ok(false);
            }
            match (&self.archive).write(piece) {
                Ok(len) => piece = &piece[len..],
                Err(error) if is_patience(&error) => {}
                Err(error) if is_of_the_end(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Waits for the report, and for the unpacker's end.
    fn report(&mut self, is_over: &dyn Fn() -> bool) -> io::Result<Report> {
        let report = read(Answer {
            socket: self.socket.socket(),
            is_over,
            stopped: None,
        });
        let how = self.end().unwrap_or_default();
        report.map_err(|error| {
            let how = match error.kind() {
                io::ErrorKind::UnexpectedEof => how,
                _ => error.to_string(),
            };
            io::Error::other(format!("the process that unpacks it ended: {how}"))
        })
    }

    /// Ends the process, if it hasn't ended by itself, and describes its end: that of one that has ended is what it was.
    fn end(&mut self) -> Option<String> {
        let child = self.child.take()?;
        // It ends with the socket, if it can't be killed.
        self.socket.end();
        child.kill();
        Some(child.wait())
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The unpacker's answer, for which no thread waits for ever.
struct Answer<'a> {
    socket: &'a UnixStream,
    is_over: &'a dyn Fn() -> bool,
    /// When the unpacker was told to stop.
    stopped: Option<Instant>,
}

impl Read for Answer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(error) if is_patience(&error) => self.look()?,
                Err(error) if is_of_the_end(&error) => return Ok(0),
                read => return read,
            }
        }
    }
}

impl Answer<'_> {
    /// Stops the unpacker once it is over.
    fn look(&mut self) -> io::Result<()> {
        match self.stopped {
            None if (self.is_over)() => {
                // It fails where the unpacker has ended.
                let _ = self.socket.shutdown(Shutdown::Write);
                self.stopped = Some(Instant::now());
            }
            Some(at) if at.elapsed() > GRACE => {
                return Err(io::Error::other("it did not stop in time"));
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_patience(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
    kinds.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_lowered_whatever_an_unpacker_reports() {
        let budget = |entries, names, whole| Budget {
            entries,
            names,
            whole,
        };
        for (reported, left) in [
            (budget(7, 60, 5), budget(7, 60, 5)),
            (
                budget(usize::MAX, usize::MAX, usize::MAX),
                budget(10, 100, 2),
            ),
            (budget(0, 0, 0), budget(0, 0, 2)),
            (budget(9, 0, usize::MAX), budget(9, 0, 3)),
        ] {
            let mut rest = budget(10, 100, 2);
            rest.lower(&reported);
            assert_eq!(rest, left);
        }
    }
}

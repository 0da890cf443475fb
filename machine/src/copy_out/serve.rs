//! The unpacker's own side: it gets an open place, puts walls around itself, and only then reads the archive.

use std::ffi::OsString;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{Job, Kind, Report};
use super::{Budget, Place, ROLE, fill};
use crate::child::{Received, Stream};
use crate::confine;
use crate::output_path::Output;
use crate::unpack_into::CHUNK;

/// Runs this process as an unpacker, whose socket is its stdin.
pub(super) fn serve() -> ExitCode {
    let (socket, Received { message, files }) = match ROLE.job::<Job>() {
        Ok(job) => job,
        Err(code) => return code,
    };
    let mut budget = message.budget;
    let filled = unpack(&socket, message, files, &mut budget);
    let report = Report {
        filled: filled.map_err(|error| error.to_string()),
        budget,
    };
    // Where it can't be sent, the other process has ended.
    let sent = socket.send(&report, &[]);
    ExitCode::from(u8::from(sent.is_err()))
}

fn unpack(
    socket: &Stream,
    job: Job,
    files: Vec<OwnedFd>,
    budget: &mut Budget,
) -> io::Result<Vec<String>> {
    let mut opened = Opened::of(&job, files)?;
    if job.confined {
        opened.confine(socket)?;
    }
    let archive = BufReader::with_capacity(CHUNK, &opened.archive);
    let path = PathBuf::from(OsString::from_vec(job.path));
    fill::fill(archive, &mut opened.place, &path, budget, &|| {
        has_ended(socket)
    })
}

/// What came with the job.
struct Opened {
    place: Place,
    archive: UnixStream,
}

impl Opened {
    fn of(job: &Job, files: Vec<OwnedFd>) -> io::Result<Opened> {
        let files = <[OwnedFd; 2]>::try_from(files);
        let [place, archive] =
            files.map_err(|_| io::Error::other("a job for the unpacker lacks a descriptor"))?;
        Ok(Opened {
            place: match job.place {
                Kind::File { is_new } => Place::File(Output::lent(place.into(), is_new)),
                Kind::Folder => Place::Folder(place),
            },
            archive: archive.into(),
        })
    }

    /// Puts this process behind its walls. Those that this host lacks are reported with a monitor's.
    fn confine(&self, socket: &Stream) -> io::Result<()> {
        let folder = match &self.place {
            Place::File(_) => None,
            Place::Folder(folder) => Some(folder.as_fd()),
        };
        let keep = [socket.as_fd(), self.place.as_fd(), self.archive.as_fd()];
        let walls = confine::unpacker(&keep, folder);
        let walled = walls.map(drop);
        walled.map_err(|error| io::Error::other(format!("cannot put walls around it: {error}")))
    }
}

/// Returns whether the other process has ended its side of the socket, which it does to stop this one, or by its own end.
fn has_ended(socket: &Stream) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())) != Ok(0)
}

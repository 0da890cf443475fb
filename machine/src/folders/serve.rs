//! The own side of a process that serves folders: it opens them, puts walls around itself, and only then reads what is in them and what
//! a guest asks.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::protocol::{Job, News, bytes};
use super::{Access, Folder, ROLE, Server, Sources, service};
use crate::child::{Received, Stream};
use crate::confine;

/// Descriptors besides the files that a guest has open: the folders' own, and those that are open while requests are answered.
const SPARE: u64 = 2048;
/// Bytes of a repository's path that are reported.
const PATH_MAX: usize = 4096;

/// Runs this process as one that serves folders, whose socket is its stdin.
pub(super) fn serve() -> ExitCode {
    let (socket, Received { message, files }) = match ROLE.job::<Job>() {
        Ok(job) => job,
        Err(code) => return code,
    };
    let Ok([stream]) = <[_; 1]>::try_from(files) else {
        return ExitCode::FAILURE;
    };
    let (socket, stream) = (Arc::new(socket), Arc::new(UnixStream::from(stream)));
    let sent = match start(&message, &socket, &stream) {
        Ok((server, files)) => run(&server, files, &socket, &stream),
        Err(error) => socket.send(&News::Failed(error), &[]),
    };
    // Where it can't be sent, the other process has ended.
    ExitCode::from(u8::from(sent.is_err()))
}

/// Opens the folders, and goes behind the walls. Returns of each folder whether it is a file.
fn start(job: &Job, socket: &Stream, stream: &UnixStream) -> Result<(Server, Vec<bool>), String> {
    let folders = job.folders();
    let descriptors = descriptors(&folders);
    raise_limit(descriptors);
    let mut sources;
    if job.confined {
        let walls = confine::Folders::begin(descriptors);
        sources = Sources::open(&folders).map_err(|error| error.to_string())?;
        let keep = [socket.as_fd(), stream.as_fd(), sources.descriptors.as_fd()];
        let served = sources.sources.iter_mut().zip(&folders);
        let mut served: Vec<_> = served
            .map(|(source, folder)| confine::Served {
                root: &mut source.root,
                is_file: source.is_file,
                is_writable: folder.access == Access::ReadWrite,
            })
            .collect();
        // Those that this host lacks are reported with a monitor's.
        let walled = walls.finish(&mut served, &keep, job.as_root).map(drop);
        walled.map_err(|error| {
            format!("cannot put walls around the process that serves folders: {error}")
        })?;
    } else {
        sources = Sources::open(&folders).map_err(|error| error.to_string())?;
    }
    let files = sources.sources.iter().map(|source| source.is_file);
    let files = files.collect();
    let server = Server::of(sources, &folders).map_err(|error| error.to_string())?;
    Ok((server, files))
}

/// Serves until the machine or the other process ends that, and reports what is to be known of it.
fn run(
    server: &Server,
    files: Vec<bool>,
    socket: &Arc<Stream>,
    stream: &Arc<UnixStream>,
) -> io::Result<()> {
    let folders = files.len();
    let (listened, ended) = (Arc::clone(socket), Arc::clone(stream));
    thread::Builder::new().name("end".into()).spawn(move || {
        // The other process sends nothing more: it ends the socket.
        let _ = listened.receive::<()>();
        let _ = ended.shutdown(std::net::Shutdown::Both);
    })?;
    socket.send(&News::Ready(files), &[])?;
    let fault = service::serve(server, stream);
    for folder in 0..folders {
        let folder = u16::try_from(folder).unwrap_or(u16::MAX);
        let repositories = server.repositories(folder);
        let paths = repositories.iter().map(|path| {
            let mut path = bytes(path);
            path.truncate(PATH_MAX);
            path
        });
        socket.send(&News::Repositories(paths.collect()), &[])?;
    }
    socket.send(&News::Ended(fault), &[])
}

/// Returns the most descriptors that are open at a time.
fn descriptors(folders: &[Folder]) -> u64 {
    let open = folders.iter().map(|folder| folder.limits.open as u64 + 1);
    open.fold(SPARE, u64::saturating_add)
}

/// Lets this process open so many files, if its user may: programs of today start with fewer, for the sake of `select`.
fn raise_limit(descriptors: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum.map_or(descriptors, |most| most.min(descriptors));
    let raised = Rlimit {
        current: Some(current),
        maximum,
    };
    // What can't be raised stays, and the guest gets EMFILE.
    let _ = setrlimit(Resource::Nofile, raised);
}

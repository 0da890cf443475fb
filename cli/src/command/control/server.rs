//! The machine's end of the socket: a thread that takes one client after the other.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use minivm_machine::monitor::Monitor;
use minivm_vmm::Error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::socket::{Socket, SocketFile};
use super::{Answer, LINE_MAX, Request, Saved};

/// How long a client may take for its request, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait until the host may have what it takes to accept a client.
const RETRY: Duration = Duration::from_millis(100);

/// The thread. Dropping this ends it, after the work that it has begun.
pub(in super::super) struct Server {
    file: Option<SocketFile>,
    end: Option<PipeWriter>,
    thread: Option<JoinHandle<Option<UnixStream>>>,
}

impl Server {
    /// Starts the thread, which serves requests at the socket until this is dropped.
    pub(in super::super) fn start(socket: Socket, machine: Monitor) -> io::Result<Self> {
        let Socket { file, listener } = socket;
        // A client that leaves while it waits for its turn must not make us wait for the next one.
        listener.set_nonblocking(true)?;
        let (ended, end) = io::pipe()?;
        let work = Work { machine, ended };
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || work.serve(&listener))?;
        Ok(Server {
            file: Some(file),
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // While it still listens: a file without a listener would be taken for a leftover.
        self.file.take();
        self.end.take();
        // A client that has asked for the machine's end waits for its connection to be closed, which is here.
        let _waiting = self.thread.take().map(JoinHandle::join);
    }
}

struct Work {
    machine: Monitor,
    /// Has an end when there is to be one.
    ended: PipeReader,
}

impl Work {
    /// Serves clients until the machine ends. Returns the connection of a client that asked for the end, which waits for it.
    fn serve(self, listener: &UnixListener) -> Option<UnixStream> {
        while self.wait_for(listener, None) {
            match listener.accept() {
                Ok((client, _)) => {
                    if let Some(waiting) = self.attend(client) {
                        return Some(waiting);
                    }
                }
                Err(error) => {
                    log::debug!("cannot accept a client at the control socket: {error}");
                    let _ = self.wait_for(&self.ended, Some(Instant::now() + RETRY));
                }
            }
        }
        None
    }

    /// Serves one client. Returns its connection if it asked for the machine's end.
    fn attend(&self, mut client: UnixStream) -> Option<UnixStream> {
        let request = match self.request(&client) {
            Ok(request) => request,
            Err(error) => {
                log::debug!("a client of the control socket: {error}");
                let _ = answer(&mut client, &Answer::Failed(error.to_string()));
                return None;
            }
        };
        let start = Instant::now();
        let saved = self.save(&request.snapshot);
        let stop = request.stop && saved.is_ok();
        if !stop {
            self.machine.resume();
        }
        let told = answer(
            &mut client,
            &match saved {
                Ok(bytes) => Answer::Saved(Saved::new(bytes, start.elapsed())),
                Err(why) => Answer::Failed(why),
            },
        );
        match (stop, told) {
            (false, _) => None,
            (true, Ok(())) => {
                self.machine.stop();
                Some(client)
            }
            // The client is gone: a machine that runs on can still be ended, an ended one can't be resumed.
            (true, Err(_)) => {
                self.machine.resume();
                None
            }
        }
    }

    /// Reads a request.
    fn request(&self, client: &UnixStream) -> io::Result<Request> {
        let line = self.line(client)?;
        let request: Request = serde_json::from_slice(&line)
            .map_err(|error| io::Error::other(format!("not a request: {error}")))?;
        if !request.snapshot.is_absolute() {
            return Err(io::Error::other(
                "not a request: the snapshot's path is not absolute",
            ));
        }
        let mut gone = [PollFd::new(client, PollFlags::empty())];
        poll(&mut gone, Some(&Timespec::default()))?;
        if gone[0].revents().contains(PollFlags::HUP) {
            return Err(io::Error::other("it has left"));
        }
        Ok(request)
    }

    /// Reads up to a line's end.
    fn line(&self, client: &UnixStream) -> io::Result<Vec<u8>> {
        client.set_nonblocking(true)?;
        let deadline = Instant::now() + PATIENCE;
        let mut line = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
                line.truncate(end);
                return Ok(line);
            }
            if line.len() as u64 > LINE_MAX {
                return Err(io::Error::other("not a request: it is too long"));
            }
            if !self.wait_for(client, Some(deadline)) {
                return Err(io::Error::other("no request came in time"));
            }
            match rustix::io::read(client, &mut buffer) {
                Ok(0) => return Err(io::Error::other("not a request: it has no end")),
                Ok(len) => line.extend(&buffer[..len]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Saves the machine, and leaves it paused: how many bytes it took.
    fn save(&self, folder: &Path) -> Result<u64, String> {
        use minivm_machine::Error::Monitor;
        self.machine.save(folder).map_err(|error| match error {
            Monitor(Error::NotPaused) => "the machine has ended".into(),
            error => format!("{:#}", anyhow::Error::from(error)),
        })
    }

    /// Waits until there is something to read: false where the end or the deadline comes first.
    fn wait_for(&self, source: impl AsFd, deadline: Option<Instant>) -> bool {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut polled = [
                PollFd::new(&source, PollFlags::IN),
                PollFd::new(&self.ended, PollFlags::IN),
            ];
            match poll(&mut polled, timeout.as_ref()) {
                Ok(0) => return false,
                Ok(_) => return polled[1].revents().is_empty(),
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

fn answer(client: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_string(answer).map_err(io::Error::other)?;
    line.push('\n');
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    client.write_all(line.as_bytes())
}

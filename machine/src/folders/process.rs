//! A process that serves folders as the one that started it has it. Nothing that it sends is believed: what a guest asks, and what the
//! folders have in them, may have taken it over.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::geteuid;

use super::protocol::{Job, News};
use super::{ANSWERS, Error, Folder, REPOSITORIES_MAX, ROLE, Server, Sources, Volume, service};
use crate::child::{Child, Stream, is_of_the_end, read};
use crate::confine;
use crate::printable::printable;

/// How often `is_over` is asked while the process opens the folders.
const LOOK: Duration = Duration::from_millis(20);
/// How long the process may take to end. Then it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// Characters of a line or a path that it sends.
const LINE_MAX: usize = 4096;

/// Folders that are served. This ends when the value is dropped.
pub struct Running {
    files: Vec<bool>,
    serving: Serving,
}

enum Serving {
    /// By a process of their own.
    Apart(Process),
    /// By threads of this process.
    Here(Threads),
}

/// What a guest has done that the user is to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Where the guest has made repositories: of each folder, paths from its top, without control characters. The top itself is an empty
    /// path.
    pub repositories: Vec<Vec<PathBuf>>,
    /// Why the folders were gone before the machine was: one line.
    pub ended: Option<String>,
}

impl Running {
    /// Opens folders and serves them over a stream, at whose other end a machine is
    /// ([`minivm_guest::channel::folders`]). That ends when the machine closes its end, at the latest with this process; a thread calls
    /// `ended` then. A folder whose file system doesn't answer is waited for until `is_over`.
    ///
    /// # Errors
    ///
    /// If a folder can't be opened, a pattern isn't valid, or there can't be a process.
    pub fn start(
        volumes: &[Volume],
        stream: UnixStream,
        is_over: &dyn Fn() -> bool,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Running, Error> {
        let (files, serving) = match ANSWERS.load(Ordering::Relaxed) {
            true => {
                let (process, files) = Process::start(volumes, stream, is_over, ended)?;
                (files, Serving::Apart(process))
            }
            false => {
                let (threads, files) = Threads::start(volumes, stream, ended)?;
                (files, Serving::Here(threads))
            }
        };
        Ok(Running { files, serving })
    }

    /// Returns whether a volume is a single file, by its index.
    pub fn is_file(&self, index: usize) -> bool {
        self.files.get(index).copied().unwrap_or(false)
    }

    /// Ends it, and returns what the user is to know.
    pub fn end(mut self) -> Report {
        let folders = self.files.len();
        let mut report = match &mut self.serving {
            Serving::Apart(process) => process.report(folders),
            Serving::Here(threads) => threads.report(),
        };
        report.repositories.resize(folders, Vec::new());
        report
    }
}

/// The process. It is killed, and waited for, when this value is dropped.
struct Process {
    socket: Stream,
    /// The process, until it has been waited for, and the thread that has started it, with which it ends.
    child: Option<(Child, JoinHandle<()>)>,
}

impl Process {
    /// Starts the process, and waits until it serves. Returns of each volume whether it is a file.
    fn start(
        volumes: &[Volume],
        stream: UnixStream,
        is_over: &dyn Fn() -> bool,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<(Process, Vec<bool>), Error> {
        let (socket, theirs) = Stream::pair().map_err(Error::Process)?;
        let (started, is_started) = mpsc::channel();
        // A process ends with the thread that has started it, and the caller's may end before.
        let starter = thread::Builder::new()
            .name("folders".into())
            .spawn(move || {
                let child = Child::start(&ROLE, theirs.as_fd());
                drop(theirs);
                let born = child.as_ref().ok().copied();
                let _ = started.send(child);
                if let Some(child) = born {
                    child.until_ended();
                    ended();
                }
            })
            .map_err(Error::Process)?;
        let child = is_started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")))
            .map_err(Error::Process)?;
        let mut process = Process {
            socket,
            child: Some((child, starter)),
        };
        let job = Job::new(volumes, confine::is_wanted(), geteuid().is_root());
        let sent = process.socket.send(&job, &[stream.as_fd()]);
        drop(stream);
        match sent {
            // It has ended, and the wait for its news finds out how.
            Err(error) if is_of_the_end(&error) => {}
            sent => sent.map_err(Error::Process)?,
        }
        let first = read::<News>(&mut Until {
            socket: process.socket.socket(),
            is_over,
        });
        match first {
            Ok(News::Ready(files)) if files.len() == volumes.len() => Ok((process, files)),
            Ok(News::Failed(line)) => Err(Error::Reported(printable(&line, LINE_MAX))),
            other => {
                let how = match other {
                    Err(error) if is_of_the_end(&error) => None,
                    Err(error) => Some(error.to_string()),
                    Ok(_) => Some(UNEXPECTED.into()),
                };
                let ended = process.kill();
                Err(Error::Process(io::Error::other(how.unwrap_or(ended))))
            }
        }
    }

    /// Ends the process's work, and takes its report.
    fn report(&mut self, folders: usize) -> Report {
        // It fails where the process has ended.
        let _ = self.socket.socket().shutdown(Shutdown::Write);
        let mut report = Report::default();
        let mut from = InTime {
            socket: self.socket.socket(),
            until: Instant::now() + GRACE,
        };
        let why = loop {
            match read::<News>(&mut from) {
                Ok(News::Repositories(paths)) if report.repositories.len() < folders => {
                    report.repositories.push(shown(&paths));
                }
                Ok(News::Ended(fault)) => {
                    report.ended = fault.map(|fault| ended(&fault));
                    self.kill();
                    return report;
                }
                Ok(_) => break Some(UNEXPECTED.into()),
                Err(error) if is_of_the_end(&error) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        let how = self.kill();
        report.ended = Some(ended(&why.unwrap_or(how)));
        report
    }

    /// Ends the process, if it hasn't ended by itself, and describes its end: that of one that has ended is what it was.
    fn kill(&mut self) -> String {
        let Some((child, starter)) = self.child.take() else {
            return String::new();
        };
        self.socket.end();
        child.kill();
        let _ = starter.join();
        child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

const UNEXPECTED: &str = "it sent an unexpected message";

/// Returns the line for an early end.
fn ended(why: &str) -> String {
    printable(
        &format!("the process that serves folders ended: {why}"),
        LINE_MAX,
    )
}

/// Returns paths without what a terminal takes for a command.
fn shown(paths: &[Vec<u8>]) -> Vec<PathBuf> {
    let paths = paths.iter().take(REPOSITORIES_MAX);
    let shown = paths.map(|path| printable(&String::from_utf8_lossy(path), LINE_MAX).into());
    shown.collect()
}

/// What the process sends, until it is over.
struct Until<'a> {
    socket: &'a UnixStream,
    is_over: &'a dyn Fn() -> bool,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(LOOK))?;
        loop {
            match self.socket.read(buffer) {
                Err(error) if is_patience(&error) => {
                    if (self.is_over)() {
                        return Err(io::Error::other("it was stopped before it had opened them"));
                    }
                }
                read => return read,
            }
        }
    }
}

/// What the process sends, up to a time.
struct InTime<'a> {
    socket: &'a UnixStream,
    until: Instant,
}

impl Read for InTime<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::other("it did not stop in time"));
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(buffer) {
                Err(error) if is_patience(&error) => {}
                read => return read,
            }
        }
    }
}

fn is_patience(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
    kinds.contains(&error.kind())
}

/// Threads of this process that serve. They end when this value is dropped.
struct Threads {
    server: Arc<Server>,
    folders: usize,
    stream: Arc<UnixStream>,
    serving: Option<JoinHandle<Option<String>>>,
}

impl Threads {
    fn start(
        volumes: &[Volume],
        stream: UnixStream,
        is_over: impl FnOnce() + Send + 'static,
    ) -> Result<(Threads, Vec<bool>), Error> {
        let folders: Vec<Folder> = volumes.iter().map(|volume| volume.folder.clone()).collect();
        let sources = Sources::open(&folders)?;
        let files: Vec<bool> = sources
            .sources
            .iter()
            .map(|source| source.is_file)
            .collect();
        let server = Arc::new(Server::of(sources, &folders)?);
        let stream = Arc::new(stream);
        let (served, end) = (Arc::clone(&server), Arc::clone(&stream));
        let serving = thread::Builder::new()
            .name("folders".into())
            .spawn(move || {
                let fault = service::serve(&served, &end);
                let _ = end.shutdown(Shutdown::Both);
                is_over();
                fault
            })
            .map_err(Error::Process)?;
        let threads = Threads {
            server,
            folders: folders.len(),
            stream,
            serving: Some(serving),
        };
        Ok((threads, files))
    }

    fn report(&mut self) -> Report {
        let fault = self.stop();
        let folders = (0..self.folders).filter_map(|folder| u16::try_from(folder).ok());
        let repositories = folders.map(|folder| {
            let paths = self.server.repositories(folder);
            let shown = paths
                .iter()
                .map(|path| printable(&path.to_string_lossy(), LINE_MAX).into());
            shown.collect()
        });
        Report {
            repositories: repositories.collect(),
            ended: fault.map(|fault| ended(&fault)),
        }
    }

    fn stop(&mut self) -> Option<String> {
        let _ = self.stream.shutdown(Shutdown::Both);
        let ended = self.serving.take()?.join();
        ended.unwrap_or_else(|_| Some("one of its threads panicked".into()))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use minivm_guest::channel::folders::{HEADER, Header, Kind};

    use super::*;
    use crate::folders::Access;

    fn volume(source: &std::path::Path) -> Volume {
        Volume {
            folder: Folder::new(source, Access::ReadWrite),
            at: "/work".into(),
        }
    }

    /// Starts, and returns the machine's end of the stream.
    fn start(volumes: &[Volume]) -> (Running, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            Running::start(volumes, theirs, &|| false, || {}).unwrap(),
            ours,
        )
    }

    /// A request of a guest's, without arguments.
    fn request(opcode: u32) -> Vec<u8> {
        let len = 40;
        let header = Header {
            len,
            folder: 0,
            kind: Kind::Fuse,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend(u32::try_from(len).unwrap().to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.resize(HEADER + len, 0);
        bytes
    }

    #[test]
    fn without_processes_threads_serve() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        let volumes = [volume(place.path()), volume(&file)];
        let (running, mut stream) = start(&volumes);
        assert_eq!([0, 1].map(|at| running.is_file(at)), [false, true]);
        stream.write_all(&request(3)).unwrap();
        let mut reply = [0; HEADER + 16];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[HEADER..][..4], [16, 0, 0, 0]);
        let none = Report {
            repositories: vec![Vec::new(); 2],
            ended: None,
        };
        assert_eq!(running.end(), none);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn threads_end_with_a_guest_that_takes_no_replies_and_report_a_broken_one() {
        let place = tempfile::tempdir().unwrap();
        let (running, mut stream) = start(&[volume(place.path())]);
        stream.set_nonblocking(true).unwrap();
        let fills = loop {
            if let Err(error) = stream.write_all(&request(3)) {
                break error.kind();
            }
        };
        assert_eq!(fills, io::ErrorKind::WouldBlock);
        drop(running);
        let (running, mut stream) = start(&[volume(place.path())]);
        stream.write_all(&[0xff; HEADER]).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        let ended = running.end().ended.unwrap();
        assert!(
            ended.contains("a folder's message of 4294967295 bytes"),
            "{ended}"
        );
    }

    #[test]
    fn what_a_process_sends_is_made_fit_for_a_terminal() {
        let paths = vec![b"a\x1b[2J\nb\xff".to_vec(); REPOSITORIES_MAX + 1];
        let shown = shown(&paths);
        assert_eq!(shown.len(), REPOSITORIES_MAX);
        assert_eq!(shown[0], PathBuf::from("a[2Jb\u{fffd}"));
        let line = ended(&"\n\u{1b}x".repeat(LINE_MAX));
        assert!(line.len() <= LINE_MAX && !line.contains(char::is_control));
    }

    /// Plays a process that was taken over: sends these messages, and then nothing.
    fn report_of(messages: &[News], folders: usize) -> Report {
        let (socket, theirs) = Stream::pair().unwrap();
        for news in messages {
            theirs.send(news, &[]).unwrap();
        }
        drop(theirs);
        let child = None;
        Process { socket, child }.report(folders)
    }

    #[test]
    fn reports_are_taken_as_far_as_they_make_sense() {
        let some = || News::Repositories(vec![b"x".to_vec()]);
        let report = report_of(&[some(), News::Ended(None)], 1);
        assert_eq!((report.repositories.len(), report.ended), (1, None));
        for messages in [&[some(), some()][..], &[News::Ready(vec![true])]] {
            let ended = report_of(messages, 1).ended.unwrap();
            assert!(ended.ends_with(UNEXPECTED), "{ended}");
        }
        assert!(report_of(&[some()], 1).ended.is_some());
    }
}

//! One command in one machine: the request, the streams, the signals, the limits, the report.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use minivm_guest::channel::frame::BodyTooLong;
use minivm_guest::channel::{Exit, KernelLog, Request, SharedFolder, ToGuest, Window};
use minivm_image::io_error::{HostError, cannot};
use rustix::rand::{GetRandomFlags, getrandom};

use super::conversation::{Conversation, Notes, Phase};
use super::copies::Files;
use super::copy_out::Budget;
use super::files::CopyIn;
use super::limits::{Grace, Stopper, Watchdog, Why};
use super::outgoing::{CHUNK, FileWriter, Outgoing, Stage};
use super::{End, Ended, Error, Input, Link};
use crate::Walls;
use crate::Warning;
use crate::folders::{self, Access, Running, Volume};
use crate::output::{Capped, Pending};
use crate::signal::{ENDING, KILL, TERM};

/// The time limit until a machine's command starts, where the caller sets no other. In the lab, and with a large image, a start takes a
/// few seconds.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// A command to run, with its streams, files, limits and events.
pub struct Session {
    /// The command and its environment. [`run`](Session::run) sets `stdin`, `folders`, `copy_in`, `copy_out`, `now` and `entropy`.
    pub request: Request,
    /// The command's stdin; `None` is an empty one.
    pub stdin: Option<OwnedFd>,
    /// The command's stdout.
    pub stdout: Box<dyn Write + Send>,
    /// The command's stderr.
    pub stderr: Box<dyn Write + Send>,
    /// A mark that is set while an output is being written, and so for long while its reader takes nothing.
    pub pending: Pending,
    /// The time limit until the command starts.
    pub boot_limit: Duration,
    /// The time limit of the command, from its start until its files have been copied out.
    pub timeout: Option<Duration>,
    /// The most bytes of each output that are written. What comes after them is dropped.
    pub max_output: Option<u64>,
    /// Folders of the host's, which the guest mounts before files are copied in.
    pub volumes: Vec<Volume>,
    /// Files to copy into the guest before the command starts.
    pub copy_in: CopyIn,
    /// Files to copy out of the guest when the command has ended.
    pub copy_out: Vec<Files>,
    /// The most bytes that are copied out.
    pub max_copy_out: u64,
    /// The time limit of copying files out once `timeout` is reached. The command is killed then, and its files are copied as they are.
    /// With `None`, nothing is copied after `timeout`.
    pub copy_out_grace: Option<Duration>,
    /// The signal that the command gets for SIGTERM.
    pub stop_signal: u8,
    /// Events for the command while it runs. A thread receives them until the sender is dropped.
    pub events: Receiver<Event>,
    /// Called where the session isn't over a second after the command's time limit because an output's reader takes nothing.
    pub overdue: Option<Box<dyn FnOnce() + Send>>,
}

/// An event from outside for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The command gets this signal. Once it has ended and its files are being copied out, a signal that asks for an end counts as
    /// [`Event::Stop`].
    Signal(u8),
    /// The command's terminal has another size.
    Window(Window),
    /// The machine is stopped; the command ends as if by this signal.
    Stop(u8),
}

/// The result of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The command's end.
    pub end: End,
    /// The exit that the guest reports; `None` where the command ended in another way.
    pub exit: Option<Exit>,
    /// Whether output was dropped, at `max_output` or because its reader took nothing.
    pub truncated: bool,
    /// Warnings for the user.
    pub warnings: Vec<Warning>,
    /// Whether some files could not be copied out. The warnings name them.
    pub copy_failed: bool,
    /// The guest's part of a timeline, where [`Request::timeline`] asked for it.
    pub log: Option<KernelLog>,
    /// See [`Link::walls`].
    pub walls: Option<Walls>,
    /// See [`Ended::host_memory`].
    pub host_memory: Option<u64>,
    /// The session's start.
    pub begun: Instant,
    /// Time from there to the hello of the guest's init.
    pub boot: Duration,
    /// Time from there to the command's start.
    pub setup: Duration,
    /// Time from there to the session's end.
    pub run: Duration,
}

impl Session {
    /// Makes a session that runs the request with an empty stdin and drops its output: no files, no events, and no limit once the
    /// command has started.
    pub fn new(request: Request) -> Self {
        Session {
            request,
            stdin: None,
            stdout: Box::new(io::sink()),
            stderr: Box::new(io::sink()),
            pending: Pending::default(),
            boot_limit: BOOT_LIMIT,
            timeout: None,
            max_output: None,
            volumes: Vec::new(),
            copy_in: CopyIn::default(),
            copy_out: Vec::new(),
            max_copy_out: 0,
            copy_out_grace: None,
            stop_signal: TERM,
            // Its sender is dropped at once: no event comes.
            events: mpsc::channel().1,
            overdue: None,
        }
    }

    /// Runs the command on `link` to its end, and stops the machine.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] where the request doesn't fit a message; [`Error::NoInit`] at the boot limit; [`Error::Died`] where the machine
    /// ends before the command; [`Error::Protocol`] and [`Error::Version`] where the guest's init isn't ours; [`Error::Refused`] where
    /// the guest can't do as requested; [`Error::Host`] where a file, an output, a thread or a pipe fails on the host.
    pub fn run(mut self, link: Link) -> Result<Report, Error> {
        let Link {
            greeted,
            walls,
            mut from_guest,
            to_guest,
            folders,
            stop,
            end,
        } = link;
        let outgoing = Arc::new(Outgoing::new(to_guest));
        let pending = self.pending.clone();
        let stopper = Arc::new(Stopper::new(stop, &pending));
        let _machine = Guard(&stopper, &outgoing);
        let (to_command, for_command) = mpsc::channel();
        let grace = self.grace(&to_command);
        let watchdog =
            Watchdog::start(stopper.clone(), self.boot_limit, grace, self.overdue.take())?;
        let forwarder = EventForwarder {
            events: std::mem::replace(&mut self.events, mpsc::channel().1),
            stop_signal: self.stop_signal,
            to_command,
            for_command,
        };
        forwarder.start(outgoing.clone(), Arc::downgrade(&stopper))?;
        // A file system that doesn't answer may be waited for: the limits and signals hold by now.
        let serving = match (serve(&self.volumes, folders, &stopper), stopper.why()) {
            (Err(_), Some(Why::Asked(signal))) => {
                let end = End::Stopped(signal);
                return Ok(Report::new(end, false, Notes::new(), Instant::now()));
            }
            (serving, _) => serving?,
        };
        self.request.folders = shared(&self.volumes, serving.as_ref());
        self.complete_request()?;
        let timeline = self.request.timeline;
        let asking = ask(
            self.request,
            self.copy_in,
            outgoing.clone(),
            stopper.clone(),
        )?;
        let feeder = self.stdin.map(|stdin| Feeder::start(stdin, &outgoing));
        let feeder = feeder.transpose()?;
        let mut conversation = Conversation {
            copy_out: &self.copy_out,
            max_copy_out: self.max_copy_out,
            stdout: Capped::new(self.stdout, self.max_output, &pending),
            stderr: Capped::new(self.stderr, self.max_output, &pending),
            timeout: self.timeout,
            timeline,
            outgoing: &outgoing,
            watchdog: &watchdog,
            stopper: &stopper,
            budget: Budget::default(),
            phase: Phase::Booting,
            notes: Notes::new(),
        };
        if greeted {
            conversation.greet();
        }
        let talked = conversation.listen(&mut from_guest);
        let mut truncated = conversation.stdout.truncated || conversation.stderr.truncated;
        let mut notes = conversation.notes;
        notes.walls = walls;
        let dropped = conversation.stderr.failed.as_ref();
        notes.warnings.extend(dropped.map(Warning::not_written));
        let over = Instant::now();
        watchdog.end();
        // A machine that has ended by itself is not stopped: `end` still has to return why it did.
        if !matches!(talked, Ok(None)) {
            stopper.stop();
        }
        outgoing.close();
        // Read to the machine's end, so that the guest never waits for room.
        let _ = io::copy(&mut from_guest, &mut io::sink());
        // Where reading ended early, at an error, the guest must not wait for a reader.
        drop(from_guest);
        let asked = asking.join().unwrap_or(Ok(Vec::new()));
        feeder.into_iter().for_each(Feeder::end);
        let ended = end();
        let served = serving.map(Running::end).unwrap_or_default();
        notes.host_memory = ended.as_ref().ok().and_then(|ended| ended.host_memory);
        notes.warnings.splice(0..0, asked?);
        let end = match (
            conclude(talked, stopper.why(), self.boot_limit, ended),
            served.ended,
        ) {
            (Err(_), Some(why)) => return Err(Error::Folders(folders::Error::Ended(why))),
            (end, _) => end?,
        };
        notes
            .warnings
            .extend(made_repositories(&self.volumes, &served.repositories));
        if let Some(why) = why_nothing_more(&end, self.copy_out_grace.is_some()) {
            notes.miss_copies(&self.copy_out, why);
        }
        let ended_early = matches!(end, End::TimedOut | End::Stopped(_));
        if ended_early && stopper.has_stalled() {
            truncated = true;
            notes.warnings.push(Warning::NotTaken);
        }
        notes.count_warnings();
        Ok(Report::new(end, truncated, notes, over))
    }

    /// Returns what the watchdog does at the time limit, where files are to be copied out after it.
    fn grace(&self, to_command: &Sender<ToGuest<'static>>) -> Option<Grace> {
        let to_command = to_command.clone();
        let time = self.copy_out_grace.filter(|_| !self.copy_out.is_empty())?;
        Some(Grace {
            time,
            end_command: Box::new(move || {
                // It fails where the session is over.
                let _ = to_command.send(ToGuest::Signal(KILL));
            }),
        })
    }

    /// Sets the request's fields that follow from the session's, and checks that it fits a message.
    fn complete_request(&mut self) -> Result<(), Error> {
        self.request.stdin = self.stdin.is_some();
        self.request.copy_in = !self.copy_in.is_empty();
        let wanted = self.copy_out.iter().map(|files| files.from.as_os_str());
        self.request.copy_out = wanted
            .map(|from| from.as_encoded_bytes().to_vec())
            .collect();
        let checked = self.request.check();
        checked.map_err(|BodyTooLong(bytes)| Error::TooLong(bytes))
    }
}

/// Starts to serve the volumes, if there are some, to the machine at the other end of the stream. Where that ends early, so does the machine.
fn serve(
    volumes: &[Volume],
    stream: Option<UnixStream>,
    stopper: &Arc<Stopper>,
) -> Result<Option<Running>, Error> {
    if volumes.is_empty() {
        return Ok(None);
    }
    let stream = stream.ok_or_else(|| {
        cannot("share folders")(io::Error::other("this machine has no channel for them"))
    })?;
    let is_over = || stopper.has_stopped();
    let stopper = Arc::downgrade(stopper);
    let ended = move || {
        if let Some(stopper) = stopper.upgrade() {
            stopper.stop();
        }
    };
    Ok(Some(Running::start(volumes, stream, &is_over, ended)?))
}

/// Returns the volumes as a request has them.
fn shared(volumes: &[Volume], serving: Option<&Running>) -> Vec<SharedFolder> {
    let volumes = volumes.iter().enumerate();
    volumes
        .map(|(index, volume)| SharedFolder {
            at: volume.at.as_os_str().as_bytes().to_vec(),
            read_only: volume.folder.access == Access::ReadOnly,
            is_file: serving.is_some_and(|serving| serving.is_file(index)),
        })
        .collect()
}

/// Returns a warning for each repository that the guest has made: a program that the user runs there later may run its hooks.
fn made_repositories(volumes: &[Volume], made: &[Vec<PathBuf>]) -> Vec<Warning> {
    let made = volumes
        .iter()
        .zip(made)
        .flat_map(|(volume, made)| made.iter().map(|path| volume.folder.source.join(path)));
    let warn = |path: PathBuf| {
        let path = path.display();
        Warning::Other(format!(
            "the guest has made a git repository, {path}: git runs its hooks when you use it there"
        ))
    };
    made.map(warn).collect()
}

/// Returns how the command ended, from what the guest sent and from why the machine was stopped.
fn conclude(
    talked: Result<Option<End>, Error>,
    why: Option<Why>,
    boot_limit: Duration,
    ended: Result<Ended, Error>,
) -> Result<End, Error> {
    match (talked, why) {
        (Ok(Some(end)), _) => Ok(end),
        (_, Some(Why::TimedOut)) => Ok(End::TimedOut),
        (_, Some(Why::Asked(signal))) => Ok(End::Stopped(signal)),
        (_, Some(Why::NoInit)) => Err(Error::NoInit(boot_limit)),
        (Err(error), None) => Err(error),
        (Ok(None), None) => Err(Error::Died(ended?.how)),
    }
}

/// Returns why no more was copied out where the command ended so.
fn why_nothing_more(end: &End, graced: bool) -> Option<&'static str> {
    match end {
        End::TimedOut if graced => Some("the time limit was reached, and --copy-out-grace is over"),
        End::TimedOut => Some(
            "the time limit was reached first; with --copy-out-on-timeout, what is there then is copied",
        ),
        End::Stopped(_) => Some("the machine was stopped"),
        End::OutputClosed => Some("the output was closed, which ended the command"),
        End::Exited(_)
        | End::Signal(_)
        | End::OutOfMemory
        | End::NotFound(_)
        | End::NotExecutable(_)
        | End::Suspended { .. } => None,
    }
}

/// A guard that stops the machine and ends the session's threads, whatever ends the session.
struct Guard<'a>(&'a Stopper, &'a Outgoing);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Guard(stopper, outgoing) = self;
        stopper.stop();
        outgoing.close();
        // No thread sends by now: either all have ended, or the guest was never greeted.
        outgoing.hang_up();
    }
}

/// Starts the thread `request`: as soon as the guest has said hello, it sends the request and the files, and answers what time it is.
/// It returns warnings about what was left out of the files.
fn ask(
    mut request: Request,
    copy_in: CopyIn,
    outgoing: Arc<Outgoing>,
    stopper: Arc<Stopper>,
) -> Result<JoinHandle<Result<Vec<Warning>, Error>>, HostError> {
    let ask = move || {
        let mut left_out = Vec::new();
        if !outgoing.wait_for(Stage::Greeted) {
            return Ok(left_out);
        }
        if getrandom(&mut request.entropy, GetRandomFlags::empty()) != Ok(request.entropy.len()) {
            stopper.stop();
            return Err(cannot("draw random bytes")(io::Error::last_os_error()).into());
        }
        request.now = now();
        // It fails where the guest has ended, which `Conversation::listen` finds out.
        if outgoing.send(&ToGuest::Request(request)).is_err() {
            return Ok(left_out);
        }
        if !copy_in.is_empty() {
            let mut writer = FileWriter::new(&outgoing);
            let packed = copy_in.pack(io::BufWriter::with_capacity(CHUNK, &mut writer));
            match packed {
                Ok(warnings) => left_out = warnings,
                Err(_) if writer.broken => {}
                Err(error) => {
                    stopper.stop();
                    return Err(error);
                }
            }
            let _ = outgoing.send(&ToGuest::Files(&[]));
        }
        while outgoing.wait_for_question() {
            let _ = outgoing.send(&ToGuest::Time(now()));
        }
        Ok(left_out)
    };
    thread::Builder::new()
        .name("request".into())
        .spawn(ask)
        .map_err(cannot("start a thread"))
}

/// Returns the wall clock in nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

/// The two threads that turn events into messages for the command.
struct EventForwarder {
    events: Receiver<Event>,
    stop_signal: u8,
    to_command: Sender<ToGuest<'static>>,
    for_command: Receiver<ToGuest<'static>>,
}

impl EventForwarder {
    /// Starts both threads, which end with the session or with the events' sender. Signals and window sizes wait until the command
    /// has started; a stop doesn't.
    fn start(self, outgoing: Arc<Outgoing>, stopper: Weak<Stopper>) -> Result<(), HostError> {
        let EventForwarder {
            events,
            stop_signal,
            to_command,
            for_command,
        } = self;
        let sending = outgoing.clone();
        let send = move || {
            if !sending.wait_for(Stage::Started) {
                return;
            }
            for message in for_command {
                // It fails where the guest has ended.
                let _ = sending.send(&message);
            }
        };
        let pass = move || {
            for event in events {
                let event = match event {
                    Event::Signal(number) if ENDING.contains(&number) && outgoing.has_ended() => {
                        Event::Stop(number)
                    }
                    event => event,
                };
                let sent = match event {
                    Event::Signal(TERM) => to_command.send(ToGuest::Signal(stop_signal)),
                    Event::Signal(number) => to_command.send(ToGuest::Signal(number)),
                    Event::Window(window) => to_command.send(ToGuest::Window(window)),
                    Event::Stop(signal) => {
                        let Some(stopper) = stopper.upgrade() else {
                            return;
                        };
                        stopper.stop_because(Why::Asked(signal));
                        Ok(())
                    }
                };
                // The session was over before there was a command.
                if sent.is_err() {
                    return;
                }
            }
        };
        for (name, work) in [
            ("signals", Box::new(send) as Box<dyn FnOnce() + Send>),
            ("events", Box::new(pass)),
        ] {
            let started = thread::Builder::new().name(name.into()).spawn(work);
            started.map_err(cannot("start a thread"))?;
        }
        Ok(())
    }
}

/// The thread that sends the command's input.
struct Feeder {
    feeding: JoinHandle<()>,
    running: io::PipeWriter,
}

impl Feeder {
    fn start(stdin: OwnedFd, outgoing: &Arc<Outgoing>) -> Result<Self, HostError> {
        let (quit, running) = io::pipe().map_err(cannot("create a pipe"))?;
        let outgoing = outgoing.clone();
        let feeding = thread::Builder::new()
            .name("stdin".into())
            .spawn(move || outgoing.feed(&Input::from(stdin), &quit))
            .map_err(cannot("start a thread"))?;
        Ok(Feeder { feeding, running })
    }

    /// Makes the thread end, without waiting for more input.
    fn end(self) {
        drop(self.running);
        let _ = self.feeding.join();
    }
}

impl Report {
    fn new(end: End, truncated: bool, notes: Notes, over: Instant) -> Self {
        let hello = notes.hello.unwrap_or(over);
        let exec = notes.exec.unwrap_or(over);
        let since_hello = over - hello;
        // The message that a quick command has started may be read when the command has ended. So the guest's own measure counts,
        // up to the time since its hello.
        let run = match &notes.exit {
            Some(exit) => {
                let nanos = exit.times.exit.saturating_sub(exit.times.exec);
                (over - exec)
                    .max(Duration::from_nanos(nanos))
                    .min(since_hello)
            }
            None => over - exec,
        };
        Report {
            end,
            exit: notes.exit,
            truncated,
            warnings: notes.warnings,
            copy_failed: notes.copy_failed,
            log: notes.log,
            walls: notes.walls,
            host_memory: notes.host_memory,
            begun: notes.begun,
            boot: hello - notes.begun,
            setup: since_hello - run,
            run,
        }
    }
}

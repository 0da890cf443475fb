//! One command in one machine: the request, the streams, the signals, the limits, the report.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use minivm_guest::channel::frame::BodyTooLong;
use minivm_guest::channel::{Exit, Request, ToGuest, Window};
use rustix::rand::{GetRandomFlags, getrandom};

use super::conversation::{Conversation, Notes, Phase};
use super::copies::Files;
use super::copy_out::Budget;
use super::limits::{Grace, Stopper, Watchdog, Why};
use super::outgoing::{CHUNK, FileWriter, Outgoing, Stage};
use super::{End, Ended, Error, Link, cannot, files};
use crate::output::{self, Capped, Pending};

/// How long a machine may take until its command starts, if nobody has a better idea. In the lab, and with a large image,
/// it takes a few seconds.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// SIGTERM's number.
pub const TERM: u8 = 15;
/// SIGKILL's.
const KILL: u8 = 9;
/// Those that ask programs to end: SIGHUP, SIGINT, SIGQUIT and SIGTERM.
const ENDING: [u8; 4] = [1, 2, 3, TERM];

/// What a command is run with.
pub struct Session {
    /// What to run, and in what surroundings. `stdin`, `copy_in`, `copy_out` and `now` are set from the rest.
    pub request: Request,
    /// Its input, if it gets any.
    pub stdin: Option<OwnedFd>,
    /// Its output.
    pub stdout: Box<dyn Write + Send>,
    /// The command's stderr.
    pub stderr: Box<dyn Write + Send>,
    /// Is set while an output is being written, and so for long while its reader takes nothing.
    pub pending: Pending,
    /// How long the machine may take until the command starts.
    pub boot_limit: Duration,
    /// How long it may run, from its start until its files have been copied out. The boot before that has a limit of its
    /// own.
    pub timeout: Option<Duration>,
    /// How many bytes of each output are passed on. What comes after them is dropped.
    pub max_output: Option<u64>,
    /// Files to copy into the guest before it starts.
    pub copy_in: Vec<Files>,
    /// Files to copy out of the guest when it has ended.
    pub copy_out: Vec<Files>,
    /// How many bytes of these are taken.
    pub max_copy_out: u64,
    /// How long this may take once the time limit has been reached. The command is killed then, and its files are copied as
    /// they are. Without it, nothing is copied after the limit.
    pub copy_out_grace: Option<Duration>,
    /// The signal that the command gets in place of SIGTERM.
    pub stop_signal: u8,
    /// What happens to it while it runs. A thread waits for that until the sender is dropped.
    pub events: Receiver<Event>,
    /// Called where the session isn't over a second after the command's time limit, because nobody takes the output.
    pub overdue: Option<Box<dyn FnOnce() + Send>>,
}

/// What can happen to a command from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It gets this signal. Where it has ended, and its files are being copied out, one that asks for an end is
    /// [`Event::Stop`].
    Signal(u8),
    /// Its terminal has another size.
    Window(Window),
    /// Its machine ends, as if by this signal.
    Stop(u8),
}

/// What came of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// How the command ended.
    pub end: End,
    /// The guest's account of it, where the command's own exit is its end.
    pub exit: Option<Exit>,
    /// Whether output was dropped for being too much.
    pub truncated: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Whether some files could not be copied out; the warnings say which.
    pub copy_failed: bool,
    /// From the machine's start to its init's first word.
    pub boot: Duration,
    /// From there to the command's start.
    pub setup: Duration,
    /// From there to its end.
    pub run: Duration,
}

impl Session {
    /// Runs what is requested without input, and drops its output: nothing is copied, nothing happens to it, and it may take
    /// as long as it likes once it has started.
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
            copy_in: Vec::new(),
            copy_out: Vec::new(),
            max_copy_out: 0,
            copy_out_grace: None,
            stop_signal: TERM,
            // Nobody has the other end.
            events: mpsc::channel().1,
            overdue: None,
        }
    }

    /// Runs the command on `link` to its end, and the machine to its end.
    ///
    /// # Errors
    ///
    /// Where there is no way to tell how the command ended.
    pub fn run(mut self, link: Link) -> Result<Report, Error> {
        let Link {
            greeted,
            mut from_guest,
            to_guest,
            stop,
            end,
        } = link;
        let outgoing = Arc::new(Outgoing::new(to_guest));
        let pending = self.pending.clone();
        let stopper = Arc::new(Stopper::new(stop, &pending));
        let _machine = Guard(&stopper, &outgoing);
        self.complete_request()?;
        let (to_command, for_command) = mpsc::channel();
        let grace = self.grace(&to_command);
        let watchdog =
            Watchdog::start(stopper.clone(), self.boot_limit, grace, self.overdue.take())?;
        let forwarder = EventForwarder {
            events: self.events,
            stop_signal: self.stop_signal,
            to_command,
            for_command,
        };
        forwarder.start(outgoing.clone(), Arc::downgrade(&stopper))?;
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
        let dropped = conversation.stderr.failed.as_ref();
        notes.warnings.extend(dropped.map(output::not_written));
        let over = Instant::now();
        watchdog.end();
        // One that has ended by itself is left alone: why it did is still to be heard.
        if !matches!(talked, Ok(None)) {
            stopper.stop();
        }
        outgoing.close();
        // To the machine's end, so that nobody waits for it to take something.
        let _ = io::copy(&mut from_guest, &mut io::sink());
        // If that ended early, because of what the guest sends, it must not wait for anybody who reads it.
        drop(from_guest);
        let asked = asking.join().unwrap_or(Ok(Vec::new()));
        feeder.into_iter().for_each(Feeder::end);
        let ended = end();
        notes.warnings.splice(0..0, asked?);
        let end = conclude(talked, stopper.why(), self.boot_limit, ended)?;
        if let Some(why) = why_nothing_more(&end, self.copy_out_grace.is_some()) {
            notes.miss_copies(&self.copy_out, why);
        }
        let ended_early = matches!(end, End::TimedOut | End::Stopped(_));
        if ended_early && stopper.has_stalled() {
            truncated = true;
            notes.warnings.push(output::NOT_TAKEN.into());
        }
        notes.count_warnings();
        Ok(Report::new(end, truncated, notes, over))
    }

    /// What is done at the time limit.
    fn grace(&self, to_command: &Sender<ToGuest<'static>>) -> Option<Grace> {
        let to_command = to_command.clone();
        let time = self.copy_out_grace.filter(|_| !self.copy_out.is_empty())?;
        Some(Grace {
            time,
            end_command: Box::new(move || {
                // Nobody passes it on where the session is over.
                let _ = to_command.send(ToGuest::Signal(KILL));
            }),
        })
    }

    /// Sets what follows from the rest, and looks whether the whole can be sent.
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

/// How it ended, from what the guest said and from why the machine was stopped.
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

/// Why no more was copied out of a machine that ended so.
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

/// Sees to it that neither the machine nor a thread outlives the session, whatever ends it.
struct Guard<'a>(&'a Stopper, &'a Outgoing);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Guard(stopper, outgoing) = self;
        stopper.stop();
        outgoing.close();
        // Nobody sends by now: either all have ended, or the guest was never greeted.
        outgoing.hang_up();
    }
}

/// Asks the guest, as soon as it listens, to run the command, sends it its files, and tells it the time whenever it asks. Returns
/// what the user should know of the files.
fn ask(
    mut request: Request,
    copy_in: Vec<Files>,
    outgoing: Arc<Outgoing>,
    stopper: Arc<Stopper>,
) -> Result<JoinHandle<Result<Vec<String>, Error>>, Error> {
    let ask = move || {
        let mut left_out = Vec::new();
        if !outgoing.wait_for(Stage::Greeted) {
            return Ok(left_out);
        }
        if getrandom(&mut request.entropy, GetRandomFlags::empty()) != Ok(request.entropy.len()) {
            stopper.stop();
            return Err(cannot("draw random bytes")(io::Error::last_os_error()));
        }
        request.now = now();
        // A guest that has ended meanwhile says so by the end of its frames.
        if outgoing.send(&ToGuest::Request(request)).is_err() {
            return Ok(left_out);
        }
        if !copy_in.is_empty() {
            let mut writer = FileWriter::new(&outgoing);
            let packed = files::pack(&copy_in, io::BufWriter::with_capacity(CHUNK, &mut writer));
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

/// The wall clock in nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

/// What happens to a command, and what it is told.
struct EventForwarder {
    events: Receiver<Event>,
    stop_signal: u8,
    to_command: Sender<ToGuest<'static>>,
    for_command: Receiver<ToGuest<'static>>,
}

impl EventForwarder {
    /// Passes on what happens, until nobody is left to whom something could happen. What happens before there is a command
    /// waits for it; the machine's end doesn't.
    fn start(self, outgoing: Arc<Outgoing>, stopper: Weak<Stopper>) -> Result<(), Error> {
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
                // A guest that has ended hears nothing.
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
                // Over before there was a command.
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

/// The thread that passes input on.
struct Feeder {
    feeding: JoinHandle<()>,
    running: io::PipeWriter,
}

impl Feeder {
    fn start(stdin: OwnedFd, outgoing: &Arc<Outgoing>) -> Result<Self, Error> {
        let (quit, running) = io::pipe().map_err(cannot("create a pipe"))?;
        let outgoing = outgoing.clone();
        let feeding = thread::Builder::new()
            .name("stdin".into())
            .spawn(move || outgoing.feed(&minivm_vmm::Input::from(stdin), &quit))
            .map_err(cannot("start a thread"))?;
        Ok(Feeder { feeding, running })
    }

    /// Waits for its end, but for no more input.
    fn end(self) {
        drop(self.running);
        let _ = self.feeding.join();
    }
}

impl Report {
    fn new(end: End, truncated: bool, notes: Notes, over: Instant) -> Self {
        let hello = notes.hello.unwrap_or(over);
        let exec = notes.exec.unwrap_or(over);
        let heard_of = over - hello;
        // That a quick command has started may be heard when it has ended. The guest knows how long it took, and can't have it
        // longer than what was heard of it.
        let run = match &notes.exit {
            Some(exit) => {
                let nanos = exit.times.exit.saturating_sub(exit.times.exec);
                (over - exec).max(Duration::from_nanos(nanos)).min(heard_of)
            }
            None => over - exec,
        };
        Report {
            end,
            exit: notes.exit,
            truncated,
            warnings: notes.warnings,
            copy_failed: notes.copy_failed,
            boot: hello - notes.begun,
            setup: heard_of - run,
            run,
        }
    }
}

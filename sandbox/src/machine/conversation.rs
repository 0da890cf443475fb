//! What the guest says, message by message.
//!
//! It says hello, gets its request, starts the command or refuses to, sends output and asks for input, sends files, and
//! tells how the command ended. Whatever comes out of order, or is no message, ends the conversation.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Hello, Refusal, ToHost, VERSION};

use super::files::Incoming;
use super::limits::Watchdog;
use super::outgoing::{CHUNK, Outgoing, Stage};
use super::session::{End, Files};
use super::{Error, cannot};
use crate::output::Capped;
use crate::printable::printable;

/// The most warnings that a guest may give.
const WARNINGS_MAX: usize = 20;
/// The most characters of a text of its that are shown.
const TEXT_MAX: usize = 500;

/// A conversation with a guest.
pub(super) struct Conversation<'a> {
    pub(super) copy_out: &'a [Files],
    pub(super) max_copy_out: u64,
    pub(super) stdout: Capped,
    pub(super) stderr: Capped,
    pub(super) timeout: Option<Duration>,
    pub(super) outgoing: &'a Outgoing,
    pub(super) watchdog: &'a Watchdog,
    pub(super) phase: Phase,
    pub(super) notes: Notes,
}

/// How far it has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// Hello is to come.
    Booting,
    /// The request is on its way.
    Requested,
    /// The command runs, or has run.
    Started,
    /// Files come: those with this number.
    Files(usize, Incoming),
}

impl Notes {
    /// Of a session that begins now.
    pub(super) fn new() -> Self {
        Notes {
            warnings: Vec::new(),
            copy_failed: false,
            copies: 0,
            begun: Instant::now(),
            hello: None,
            exec: None,
        }
    }
}

impl Phase {
    fn when(&self) -> &'static str {
        match self {
            Phase::Booting => "before its hello",
            Phase::Requested => "before the command's start",
            Phase::Started => "after the command's start",
            Phase::Files(..) => "among the files that it sends",
        }
    }
}

/// A message's kind in words.
fn kind(message: &ToHost) -> &'static str {
    match message {
        ToHost::Hello(_) => "a hello",
        ToHost::Ready => "that it is ready",
        ToHost::Time => "a question for the time",
        ToHost::Started => "a command's start",
        ToHost::Refused(_) => "a refusal",
        ToHost::Room(_) => "a wish for input",
        ToHost::Stdout(_) | ToHost::Stderr(_) => "output",
        ToHost::FilesOf(..) => "the announcement of files",
        ToHost::Files(_) => "a piece of a file",
        ToHost::Warning(_) => "a warning",
        ToHost::Exit(_) => "an exit",
    }
}

/// What is remembered of it.
#[derive(Debug)]
pub(super) struct Notes {
    pub(super) warnings: Vec<String>,
    pub(super) copy_failed: bool,
    /// How many of the files that were asked for have come, or have been excused. They come in order, each once.
    pub(super) copies: usize,
    pub(super) begun: Instant,
    pub(super) hello: Option<Instant>,
    pub(super) exec: Option<Instant>,
}

impl Conversation<'_> {
    /// Listens to the guest until it has said how the command ended; `None` where it never does.
    pub(super) fn listen(&mut self, from_guest: &mut dyn Read) -> Result<Option<End>, Error> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; CHUNK];
        loop {
            let len = from_guest.read(&mut buffer).map_err(Error::Protocol)?;
            if len == 0 {
                return Ok(None);
            }
            decoder.extend(&buffer[..len]);
            while let Some((tag, body)) = decoder.next().map_err(broken)? {
                let message = ToHost::decode(tag, body).map_err(broken)?;
                if let Some(end) = self.take(message)? {
                    return Ok(Some(end));
                }
            }
        }
    }

    fn take(&mut self, message: ToHost) -> Result<Option<End>, Error> {
        match (&mut self.phase, message) {
            (Phase::Booting, ToHost::Hello(hello)) => self.greet(&hello)?,
            (Phase::Requested, ToHost::Started) => {
                self.notes.exec = Some(Instant::now());
                self.phase = Phase::Started;
                self.watchdog.set(self.timeout);
                self.outgoing.reach(Stage::Started);
            }
            (Phase::Requested, ToHost::Time) => self.outgoing.ask_time(),
            (Phase::Requested, ToHost::Refused(refusal)) => return refused(refusal).map(Some),
            (Phase::Started, ToHost::Stdout(bytes)) => {
                let written = self.stdout.write(bytes);
                return closed(written);
            }
            (Phase::Started, ToHost::Stderr(bytes)) => {
                let written = self.stderr.write_or_drop(bytes);
                return closed(written);
            }
            (Phase::Started, ToHost::Room(bytes)) => self.outgoing.allow(bytes),
            (Phase::Started, ToHost::FilesOf(number, why)) => self.begin_files(number, why)?,
            (Phase::Files(_, incoming), ToHost::Files(bytes)) if !bytes.is_empty() => {
                incoming.push(bytes).map_err(cannot("take files out"))?;
            }
            (Phase::Files(..), ToHost::Files(_)) => self.end_files(),
            (Phase::Booting, _) => return Err(broken("its first message is no hello")),
            (_, ToHost::Warning(text)) => self.warn(text),
            (Phase::Started, ToHost::Exit(exit)) => {
                self.miss_files();
                return Ok(Some(End::Exited(exit)));
            }
            (phase, message) => {
                let (kind, when) = (kind(&message), phase.when());
                return Err(broken(format!("a message out of order: {kind} {when}")));
            }
        }
        Ok(None)
    }

    /// From now on the guest listens.
    fn greet(&mut self, hello: &Hello) -> Result<(), Error> {
        if hello.version != VERSION {
            return Err(Error::Version {
                theirs: hello.version,
                ours: VERSION,
            });
        }
        self.notes.hello = Some(Instant::now());
        self.phase = Phase::Requested;
        self.outgoing.reach(Stage::Greeted);
        Ok(())
    }

    fn begin_files(&mut self, number: u32, why: Option<String>) -> Result<(), Error> {
        let number = number as usize;
        let next = self.copy_out.get(number);
        let Some(files) = next.filter(|_| number == self.notes.copies) else {
            return Err(broken("it sends files that were not asked for"));
        };
        self.notes.copies += 1;
        match why {
            Some(why) => self.fail_copy(files.from.clone(), &why),
            None => {
                let incoming =
                    Incoming::new(self.max_copy_out).map_err(cannot("create a temporary file"))?;
                self.phase = Phase::Files(number, incoming);
            }
        }
        Ok(())
    }

    fn end_files(&mut self) {
        let Phase::Files(number, incoming) = std::mem::replace(&mut self.phase, Phase::Started)
        else {
            return;
        };
        self.max_copy_out = self.max_copy_out.saturating_sub(incoming.size());
        let files = &self.copy_out[number];
        match incoming.unpack(files) {
            Ok(left_out) => left_out
                .into_iter()
                .for_each(|what| self.warn(format!("left out {what}"))),
            Err(error) => {
                let to = format!("to {}: {error}", files.to.display());
                self.fail_copy(files.from.clone(), &to);
            }
        }
    }

    /// Whatever has not come by the end.
    fn miss_files(&mut self) {
        for files in &self.copy_out[self.notes.copies..] {
            self.fail_copy(files.from.clone(), "the guest did not send it");
        }
    }

    fn fail_copy(&mut self, from: PathBuf, why: &str) {
        self.notes.copy_failed = true;
        // Always told: it is why the run counts as failed. There are as many as the user asked for copies.
        let text = format!("cannot copy {} out: {why}", from.display());
        self.notes.warnings.push(printable(&text, TEXT_MAX));
    }

    /// Keeps a line for the user, without what a terminal would take for a command.
    fn warn(&mut self, text: impl AsRef<str>) {
        if self.notes.warnings.len() < WARNINGS_MAX {
            self.notes.warnings.push(printable(text.as_ref(), TEXT_MAX));
        }
    }
}

fn refused(refusal: Refusal) -> Result<End, Error> {
    let shown = |text: String| printable(&text, TEXT_MAX);
    match refusal {
        Refusal::NotFound(what) => Ok(End::NotFound(shown(what))),
        Refusal::NotExecutable(what) => Ok(End::NotExecutable(shown(what))),
        Refusal::Failed(why) => Err(Error::Refused(shown(why))),
    }
}

/// Output that nobody takes any more ends the command, as it ends other programs.
fn closed(written: io::Result<()>) -> Result<Option<End>, Error> {
    match written {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(End::OutputClosed)),
        Err(error) => Err(cannot("write the command's output")(error)),
    }
}

fn broken(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Protocol(io::Error::new(io::ErrorKind::InvalidData, what))
}

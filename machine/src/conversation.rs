//! The guest's messages, taken one by one.
//!
//! The guest sends its hello, gets the request, starts the command or refuses to, sends output and asks for input, sends files, and
//! reports how the command ended. A message out of order, or bytes that are not a message, end the conversation with an error.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Exit, Hello, KernelLog, Refusal, ToHost, VERSION};
use minivm_image::io_error::cannot;

use super::copies::Files;
use super::copy_out::{self, Budget};
use super::limits::{Stopper, Watchdog, Why};
use super::outgoing::{CHUNK, Outgoing, Stage};
use super::{End, Error, Walls, Warning};
use crate::output::Capped;
use crate::printable::printable;

/// The most warnings from a guest that are kept.
const WARNINGS_MAX: usize = 19;
/// The most characters of a guest's text that are shown.
const TEXT_MAX: usize = 500;

/// The state of a session as the thread has it that reads from the guest.
pub(super) struct Conversation<'a> {
    pub(super) copy_out: &'a [Files],
    pub(super) max_copy_out: u64,
    pub(super) stdout: Capped,
    pub(super) stderr: Capped,
    pub(super) timeout: Option<Duration>,
    /// Whether the request asks for the kernel's log.
    pub(super) timeline: bool,
    pub(super) outgoing: &'a Outgoing,
    pub(super) watchdog: &'a Watchdog,
    pub(super) stopper: &'a Stopper,
    /// How much may still be copied out.
    pub(super) budget: Budget,
    pub(super) phase: Phase,
    pub(super) notes: Notes,
}

/// The messages that may come next.
#[derive(Debug)]
pub(super) enum Phase {
    /// The guest's hello is to come.
    Booting,
    /// The guest has the request, or will have it, and may start the command.
    Requested,
    /// The command runs, or has run.
    Started,
}

impl Notes {
    /// Makes the notes of a session that begins now.
    pub(super) fn new() -> Self {
        Notes {
            warnings: Vec::new(),
            more_warnings: 0,
            copy_failed: false,
            copies: 0,
            cut: None,
            begun: Instant::now(),
            hello: None,
            exec: None,
            log: None,
            walls: None,
            host_memory: None,
            exit: None,
        }
    }
}

impl Phase {
    fn when(&self) -> &'static str {
        match self {
            Phase::Booting => "before its hello",
            Phase::Requested => "before the command's start",
            Phase::Started => "after the command's start",
        }
    }
}

/// Names a message's kind in an error.
fn kind(message: &ToHost) -> &'static str {
    match message {
        ToHost::Hello(_) => "a hello",
        ToHost::Ready => "readiness",
        ToHost::Time => "a question for the time",
        ToHost::Started => "a command's start",
        ToHost::Refused(_) => "a refusal",
        ToHost::Room(_) => "a request for input",
        ToHost::Stdout(_) | ToHost::Stderr(_) => "output",
        ToHost::FilesOf(..) => "the announcement of files",
        ToHost::Files(_) => "a piece of a file",
        ToHost::Warning(_) => "a warning",
        ToHost::Log(_) => "a log",
        ToHost::Exit(_) => "an exit",
    }
}

/// Notes on a session, of which its report is made.
#[derive(Debug)]
pub(super) struct Notes {
    pub(super) warnings: Vec<Warning>,
    more_warnings: u64,
    pub(super) copy_failed: bool,
    /// How many of the requested copies have begun or failed. They come in order, each once.
    pub(super) copies: usize,
    /// How many files and folders of the last copy were whole when the machine was stopped; `None` where it wasn't cut short.
    pub(super) cut: Option<usize>,
    pub(super) begun: Instant,
    pub(super) hello: Option<Instant>,
    pub(super) exec: Option<Instant>,
    /// The guest's part of a timeline.
    pub(super) log: Option<KernelLog>,
    /// The most memory of the process that had the machine, and the walls around it.
    pub(super) host_memory: Option<u64>,
    pub(super) walls: Option<Walls>,
    /// The exit that the guest reported, where that is the command's end.
    pub(super) exit: Option<Exit>,
}

/// A reader of the guest's messages.
struct Messages<'a> {
    from_guest: &'a mut dyn Read,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Messages<'_> {
    /// Waits for the next message and calls `take` with it. Returns `None` at the machine's end.
    fn next<T>(
        &mut self,
        take: impl FnOnce(ToHost) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        loop {
            if let Some((tag, body)) = self.decoder.next().map_err(broken)? {
                let message = ToHost::decode(tag, body).map_err(broken)?;
                return take(message).map(Some);
            }
            let len = self
                .from_guest
                .read(&mut self.buffer)
                .map_err(Error::Protocol)?;
            if len == 0 {
                return Ok(None);
            }
            self.decoder.extend(&self.buffer[..len]);
        }
    }
}

/// What to do after a message.
enum Next {
    /// Read the next message.
    Message,
    /// Unpack the files of the copy with this number.
    Files(usize),
    /// Return: the command has ended.
    End(End),
}

impl Conversation<'_> {
    /// Reads from the guest until it reports how the command ended; returns `None` where the machine ends before.
    pub(super) fn listen(&mut self, from_guest: &mut dyn Read) -> Result<Option<End>, Error> {
        let mut messages = Messages {
            from_guest,
            decoder: Decoder::default(),
            buffer: vec![0; CHUNK],
        };
        while let Some(next) = messages.next(|message| self.take(message))? {
            match next {
                Next::Message => {}
                Next::Files(number) => self.take_files(number, &mut messages)?,
                Next::End(end) => return Ok(Some(end)),
            }
        }
        Ok(None)
    }

    fn take(&mut self, message: ToHost) -> Result<Next, Error> {
        match (&mut self.phase, message) {
            (Phase::Booting, ToHost::Hello(hello)) => {
                check_version(&hello)?;
                self.greet();
            }
            (Phase::Requested, ToHost::Started) => {
                self.notes.exec = Some(Instant::now());
                self.phase = Phase::Started;
                self.watchdog.set(self.timeout);
                self.outgoing.reach(Stage::Started);
            }
            (Phase::Requested, ToHost::Time) => self.outgoing.ask_time(),
            (Phase::Requested, ToHost::Refused(refusal)) => {
                return refused(refusal).map(Next::End);
            }
            (Phase::Started, ToHost::Stdout(bytes)) => {
                let written = self.stdout.write(bytes);
                return closed(written);
            }
            (Phase::Started, ToHost::Stderr(bytes)) => {
                let written = self.stderr.write_or_drop(bytes);
                return closed(written);
            }
            (Phase::Started, ToHost::Room(bytes)) => self.outgoing.allow(bytes),
            (Phase::Started, ToHost::FilesOf(number, why)) => return self.begin_files(number, why),
            (Phase::Booting, _) => return Err(broken("its first message is not a hello")),
            (_, ToHost::Warning(text)) => self.notes.warn(text),
            (Phase::Started, ToHost::Log(log)) if self.timeline && self.notes.log.is_none() => {
                self.notes.log = Some(log);
            }
            (Phase::Started, ToHost::Exit(exit)) => return Ok(Next::End(self.end(exit))),
            (phase, message) => return Err(out_of_order(&message, phase.when())),
        }
        Ok(Next::Message)
    }

    /// Returns how the command ended, at its exit: after all copies, or after one was cut short.
    fn end(&mut self, exit: Exit) -> End {
        match self.stopper.why() {
            Some(Why::TimedOut) => End::TimedOut,
            Some(Why::Asked(signal)) if self.notes.cut.is_some() => End::Stopped(signal),
            _ => {
                for files in &self.copy_out[self.notes.copies..] {
                    self.notes.fail_copy(files, "the guest did not send it");
                }
                let end = End::from(&exit);
                self.notes.exit = Some(exit);
                end
            }
        }
    }

    /// Notes that the guest's hello was read, and lets the thread `request` send: the guest reads from now on.
    pub(super) fn greet(&mut self) {
        self.notes.hello = Some(Instant::now());
        self.phase = Phase::Requested;
        self.outgoing.reach(Stage::Greeted);
    }

    fn begin_files(&mut self, number: u32, why: Option<String>) -> Result<Next, Error> {
        let number = number as usize;
        let next = self.copy_out.get(number);
        let Some(files) = next.filter(|_| number == self.notes.copies) else {
            return Err(broken("it sends files that were not asked for"));
        };
        self.notes.copies += 1;
        self.outgoing.reach(Stage::Ended);
        Ok(match why {
            Some(why) => {
                self.notes.fail_copy(files, &why);
                Next::Message
            }
            None => Next::Files(number),
        })
    }

    /// Unpacks files while they come, until the machine is stopped.
    fn take_files(&mut self, number: usize, messages: &mut Messages) -> Result<(), Error> {
        let files = &self.copy_out[number];
        let before = self.budget.whole;
        let mut incoming = Incoming {
            messages,
            notes: &mut self.notes,
            piece: Vec::new(),
            taken: 0,
            limit: self.max_copy_out,
            size: 0,
            ended: false,
            failed: None,
        };
        let is_over = || self.stopper.has_stopped();
        let unpacked = copy_out::unpack(&mut incoming, files, &mut self.budget, &is_over);
        if !is_over() {
            // Skips what follows a file that failed, or the archive.
            let _ = io::copy(&mut incoming, &mut io::sink());
        }
        let (size, failed) = (incoming.size, incoming.failed);
        if let Some(error) = failed {
            return Err(error);
        }
        self.max_copy_out = self.max_copy_out.saturating_sub(size);
        match unpacked {
            Ok(left_out) => left_out
                .into_iter()
                .for_each(|what| self.notes.warn(format!("left out {what}"))),
            Err(_) if is_over() => {
                self.notes.cut = Some(self.budget.whole - before);
            }
            Err(error) => {
                let why = format!("to {}: {error}", files.to.display());
                self.notes.fail_copy(files, &why);
            }
        }
        Ok(())
    }
}

/// A reader of one copy's archive, while the guest sends it.
struct Incoming<'a, 'b> {
    messages: &'a mut Messages<'b>,
    notes: &'a mut Notes,
    /// The last piece, and how many of its bytes were read.
    piece: Vec<u8>,
    taken: usize,
    /// The most bytes that may come, and how many have.
    limit: u64,
    size: u64,
    /// Whether all has come.
    ended: bool,
    /// An error that ends the session.
    failed: Option<Error>,
}

impl Incoming<'_, '_> {
    /// Waits for the next piece.
    fn next_piece(&mut self) -> Result<(), Error> {
        self.taken = 0;
        self.piece.clear();
        let (piece, notes) = (&mut self.piece, &mut *self.notes);
        let taken = self.messages.next(|message| {
            match message {
                ToHost::Files([]) => return Ok(true),
                ToHost::Files(bytes) => piece.extend_from_slice(bytes),
                ToHost::Warning(text) => notes.warn(text),
                message => return Err(out_of_order(&message, "among the files that it sends")),
            }
            Ok(false)
        })?;
        // The machine's end also ends the archive.
        self.ended = taken.unwrap_or(true);
        self.size += self.piece.len() as u64;
        match self.size > self.limit {
            false => Ok(()),
            true => {
                let text = format!("the guest sends more than {} bytes", self.limit);
                Err(cannot("take files out")(io::Error::other(text)).into())
            }
        }
    }
}

impl Read for Incoming<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.piece.len() && !self.ended {
            if let Err(error) = self.next_piece() {
                self.ended = true;
                self.piece.clear();
                self.failed = Some(error);
            }
        }
        let len = (&self.piece[self.taken..]).read(buffer)?;
        self.taken += len;
        Ok(len)
    }
}

impl Notes {
    /// Adds a warning about the files that a stopped machine did not send. `of` are the requested copies.
    pub(super) fn miss_copies(&mut self, of: &[Files], why: &str) {
        let under_way = self
            .cut
            .and_then(|whole| Some((whole, of.get(self.copies.checked_sub(1)?)?)));
        let missing = of.len() - self.copies.min(of.len());
        let text = match (under_way, missing) {
            (None, 0) => return,
            (None, _) if self.copies == 0 => format!("nothing was copied out: {why}"),
            (None, missing) => format!("{missing} of {} were not copied out: {why}", of.len()),
            (Some((whole, files)), missing) => {
                let rest = match missing {
                    0 => String::new(),
                    missing => format!(", nor anything of {missing} more"),
                };
                format!(
                    "{} was not copied out as a whole, but {whole} of its files and folders{rest}: {why}",
                    files.from.display()
                )
            }
        };
        self.copy_failed = true;
        self.add(&text);
    }

    fn fail_copy(&mut self, files: &Files, why: &str) {
        self.copy_failed = true;
        // Not counted against WARNINGS_MAX: this is why the run counts as failed, and there is at most one for each copy.
        let text = format!("cannot copy {} out: {why}", files.from.display());
        self.add(&text);
    }

    /// Keeps a guest's warning, without control characters. Counts it where there are too many.
    fn warn(&mut self, text: impl AsRef<str>) {
        if self.warnings.len() < WARNINGS_MAX {
            self.add(text.as_ref());
        } else {
            self.more_warnings += 1;
        }
    }

    /// Adds a line with the number of warnings that were not kept.
    pub(super) fn count_warnings(&mut self) {
        if self.more_warnings > 0 {
            let text = format!("there were {} more warnings", self.more_warnings);
            self.add(&text);
        }
    }

    fn add(&mut self, text: &str) {
        let line = printable(text, TEXT_MAX);
        self.warnings.push(Warning::Other(line));
    }
}

/// Checks that the guest's init speaks this version of the protocol.
///
/// # Errors
///
/// [`Error::Version`] where it speaks another one.
pub(super) fn check_version(hello: &Hello) -> Result<(), Error> {
    match hello.version {
        VERSION => Ok(()),
        theirs => Err(Error::Version {
            theirs,
            ours: VERSION,
        }),
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

/// Ends the command where its output has lost its reader, as SIGPIPE ends other programs.
fn closed(written: io::Result<()>) -> Result<Next, Error> {
    match written {
        Ok(()) => Ok(Next::Message),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Next::End(End::OutputClosed)),
        Err(error) => Err(cannot("write the command's output")(error).into()),
    }
}

fn out_of_order(message: &ToHost, when: &str) -> Error {
    broken(format!("a message out of order: {} {when}", kind(message)))
}

fn broken(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Protocol(io::Error::new(io::ErrorKind::InvalidData, what))
}

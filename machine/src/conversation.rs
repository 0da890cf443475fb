//! What the guest says, message by message.
//!
//! It says hello, gets its request, starts the command or refuses to, sends output and asks for input, sends files, and
//! tells how the command ended. Whatever comes out of order, or is no message, ends the conversation.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{Exit, Hello, Refusal, ToHost, VERSION};

use super::copies::Files;
use super::copy_out::{self, Budget};
use super::limits::{Stopper, Watchdog, Why};
use super::outgoing::{CHUNK, Outgoing, Stage};
use super::{End, Error, cannot};
use crate::output::Capped;
use crate::printable::printable;

/// The most warnings of a guest that are kept.
const WARNINGS_MAX: usize = 19;
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
    pub(super) stopper: &'a Stopper,
    /// What may still be copied out.
    pub(super) budget: Budget,
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
}

impl Notes {
    /// Of a session that begins now.
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
    more_warnings: u64,
    pub(super) copy_failed: bool,
    /// How many of the files that were asked for have come, or have been excused. They come in order, each once.
    pub(super) copies: usize,
    /// How much of the last one of them was whole when the machine was stopped, in files and folders.
    pub(super) cut: Option<usize>,
    pub(super) begun: Instant,
    pub(super) hello: Option<Instant>,
    pub(super) exec: Option<Instant>,
    /// The command's own exit, where that is its end.
    pub(super) exit: Option<Exit>,
}

/// What a guest sends, message by message.
struct Messages<'a> {
    from_guest: &'a mut dyn Read,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Messages<'_> {
    /// Waits for the next one, and hands it on; none at the machine's end.
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

/// What comes of a message.
enum Next {
    /// Another one.
    Message,
    /// Files of the path with this number.
    Files(usize),
    End(End),
}

impl Conversation<'_> {
    /// Listens to the guest until it has said how the command ended; `None` where it never does.
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
            (Phase::Booting, _) => return Err(broken("its first message is no hello")),
            (_, ToHost::Warning(text)) => self.notes.warn(text),
            (Phase::Started, ToHost::Exit(exit)) => return Ok(Next::End(self.end(exit))),
            (phase, message) => return Err(out_of_order(&message, phase.when())),
        }
        Ok(Next::Message)
    }

    /// How it ended, now that all that was to be done by then is done, or has been cut off.
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

    /// Notes that the guest has said hello, and lets the request be sent: the guest listens from now on.
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
            // What comes behind a file that failed, or behind the archive.
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

/// The files of one path, while the guest sends them.
struct Incoming<'a, 'b> {
    messages: &'a mut Messages<'b>,
    notes: &'a mut Notes,
    /// What came last, and how much of it was taken.
    piece: Vec<u8>,
    taken: usize,
    /// How many bytes may come, and how many have.
    limit: u64,
    size: u64,
    /// No more will come.
    ended: bool,
    /// What ends the session.
    failed: Option<Error>,
}

impl Incoming<'_, '_> {
    /// Waits for another piece.
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
        // The machine's end is an end, too.
        self.ended = taken.unwrap_or(true);
        self.size += self.piece.len() as u64;
        match self.size > self.limit {
            false => Ok(()),
            true => {
                let text = format!("the guest sends more than {} bytes", self.limit);
                Err(cannot("take files out")(io::Error::other(text)))
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
    /// Says of a machine that was stopped what of the files was not copied out. `of` are those that were asked for.
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
        self.warnings.push(printable(&text, TEXT_MAX));
    }

    fn fail_copy(&mut self, files: &Files, why: &str) {
        self.copy_failed = true;
        // Always told: it is why the run counts as failed. There are as many as the user asked for copies.
        let text = format!("cannot copy {} out: {why}", files.from.display());
        self.warnings.push(printable(&text, TEXT_MAX));
    }

    /// Keeps a line for the user, without what a terminal would take for a command.
    fn warn(&mut self, text: impl AsRef<str>) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(printable(text.as_ref(), TEXT_MAX));
        } else {
            self.more_warnings += 1;
        }
    }

    /// Says how many warnings were not kept.
    pub(super) fn count_warnings(&mut self) {
        if self.more_warnings > 0 {
            let text = format!("there were {} more warnings", self.more_warnings);
            self.warnings.push(text);
        }
    }
}

/// Checks that the guest's init speaks this version of the protocol.
///
/// # Errors
///
/// [`Error::Version`] where it doesn't.
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

/// Output that nobody takes any more ends the command, as it ends other programs.
fn closed(written: io::Result<()>) -> Result<Next, Error> {
    match written {
        Ok(()) => Ok(Next::Message),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Next::End(End::OutputClosed)),
        Err(error) => Err(cannot("write the command's output")(error)),
    }
}

fn out_of_order(message: &ToHost, when: &str) -> Error {
    broken(format!("a message out of order: {} {when}", kind(message)))
}

fn broken(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Protocol(io::Error::new(io::ErrorKind::InvalidData, what))
}

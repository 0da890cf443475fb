//! The session with the host: one command, from the hello to its exit.

use std::io::{self, PipeReader, Write};
use std::os::fd::AsFd;
use std::thread;

use minivm_guest::channel::{
    Exit, Preparation, Refusal, Request, STDIN_WINDOW, Status, Times, ToGuest, ToHost,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group};

use crate::command::{self, Running, Streams};
use crate::interpreter::Waiting;
use crate::user::{self, User};
use crate::wire::Wire;
use crate::{Error, blank, clock, files, folders, identity, log, mounts, surroundings};

/// The most bytes that are read of an output at once.
const CHUNK: usize = 64 << 10;
/// The error of the wall clock that is good enough, in nanoseconds.
const CLOCK_ERROR: u64 = 5_000_000;
/// The most questions for the time, if the host takes long to answer.
const QUESTIONS: usize = 4;
/// Ctrl-D, which ends the input of a terminal's programs.
const END_OF_INPUT: &[u8] = b"\x04";

/// The host's first message.
enum First {
    Prepare(Preparation),
    Request(Request),
}

/// The work that was done before the request came.
struct Prepared {
    interpreter: Option<Waiting>,
    /// Where the kernel can mount folders.
    folders: Option<folders::Line>,
    /// A line for each step that failed and is no reason to stop.
    lost: Vec<String>,
}

/// Serves one request.
pub(crate) fn run(with_rings: bool, init: u64) -> Result<(), Error> {
    let mut wire = Wire::open(with_rings)?;
    let mut times = Times {
        init,
        hello: clock(),
        ..Times::default()
    };
    let first = wire.receive_one(|message| match message {
        ToGuest::Prepare(preparation) => Ok(First::Prepare(preparation)),
        ToGuest::Request(request) => Ok(First::Request(request)),
        _ => Err("the host sent something before its request".into()),
    })?;
    let served = match first {
        First::Request(request) => {
            times.request = clock();
            serve(&mut wire, &request, None, times)
        }
        First::Prepare(preparation) => prepare(preparation, &wire).and_then(|prepared| {
            wire.send(&ToHost::Ready)?;
            // Here the machine is saved, and from here its clones continue.
            let request = wire.receive_one(|message| match message {
                ToGuest::Request(request) => Ok(request),
                _ => Err("the host sent something before its request".into()),
            })?;
            // Their boot took no time.
            times.request = clock();
            (times.init, times.hello) = (times.request, times.request);
            serve(&mut wire, &request, Some(prepared), times)
        }),
    };
    if let Err(error) = served {
        wire.send(&ToHost::Refused(Refusal::Failed(error.to_string())))?;
        wire.flush_all()?;
    }
    Ok(())
}

/// Does all that doesn't depend on the request.
fn prepare(preparation: Preparation, wire: &Wire) -> Result<Prepared, Error> {
    identity::set_clock(preparation.now)?;
    let (_, lost) = surroundings::make()?;
    let interpreter = preparation.interpreter.map(Waiting::start).transpose()?;
    // If it fails, `mount_all` tries it again, and a request with folders is refused with its error.
    let folders = folders::lay_out(wire).ok();
    blank::fill();
    Ok(Prepared {
        interpreter,
        folders,
        lost,
    })
}

fn serve(
    wire: &mut Wire,
    request: &Request,
    prepared: Option<Prepared>,
    mut times: Times,
) -> Result<(), Error> {
    let request_mark = request.timeline.then(|| wire.mark()).flatten();
    let booted = prepared.is_none();
    identity::assume(request)?;
    let Prepared {
        interpreter,
        folders,
        lost,
    } = match prepared {
        Some(prepared) => prepared,
        None => Prepared {
            interpreter: None,
            folders: None,
            lost: surroundings::make()?.1,
        },
    };
    identity::write_down(&request.hostname);
    for lost in lost {
        wire.send(&ToHost::Warning(lost))?;
    }
    let user = user::find(&request.user)?;
    mounts::asked_for(request)?;
    let folders = folders::mount_all(wire, folders, &request.folders, &user)?;
    if request.copy_in {
        files::copy_in(wire, &user)?;
    }
    if request.read_only {
        mounts::make_root_read_only()?;
    }
    adjust_clock(wire)?;
    // Before the command can have done anything.
    times.exec = clock();
    let (status, earlier) = match start(request, &user, interpreter) {
        Ok((session, earlier)) => {
            let (status, left) = session.run(wire)?;
            folders.wait_for(left)?;
            (status, earlier)
        }
        Err(refusal) => {
            wire.send(&ToHost::Refused(refusal))?;
            return wire.flush_all();
        }
    };
    times.exit = clock();
    if request.timeline {
        let marks = request_mark.and_then(|first| Some([first, wire.mark()?]));
        wire.send(&ToHost::Log(log::gather(marks, booted)))?;
    }
    files::copy_out(wire, &request.copy_out)?;
    folders.unmount();
    let (user_time, system_time, largest) = command::usage();
    wire.send(&ToHost::Exit(Exit {
        status,
        out_of_memory: command::out_of_memory(),
        user_time: user_time.saturating_sub(earlier.0),
        system_time: system_time.saturating_sub(earlier.1),
        peak_memory: command::peak_memory().unwrap_or(largest),
        times,
    }))?;
    wire.flush_all()
}

/// Asks the host for the time, and sets the clock. As in NTP (RFC 5905, section 8, "On-Wire Protocol"), the answer is taken to
/// have been right in the middle between question and answer, so that it is off by at most half of the time that both took.
fn adjust_clock(wire: &mut Wire) -> Result<(), Error> {
    let mut best = u64::MAX;
    for _ in 0..QUESTIONS {
        let asked = clock();
        wire.send(&ToHost::Time)?;
        let now = wire.receive_one(|message| match message {
            ToGuest::Time(now) => Ok(now),
            _ => Err("the host sent something else than the time".into()),
        })?;
        let took = clock().saturating_sub(asked);
        if took < best {
            identity::set_clock(now.saturating_add(took / 2))?;
            best = took;
        }
        if best / 2 <= CLOCK_ERROR {
            break;
        }
    }
    Ok(())
}

/// Starts the command. Also returns the processor time of processes that ended before it: of the Python that waited, if there
/// was one.
fn start(
    request: &Request,
    user: &User,
    interpreter: Option<Waiting>,
) -> Result<(Session, (u64, u64)), Refusal> {
    let streams = match request.terminal {
        Some(size) => Streams::Terminal(size),
        None => Streams::Pipes,
    };
    let running = match interpreter.and_then(|waiting| waiting.run(request, user)) {
        Some(running) => running?,
        None => command::start(request, user, streams, None)?,
    };
    let failed = |error: io::Error| Refusal::Failed(error.to_string());
    // Before a thread waits for the command.
    let (user_time, system_time, _) = command::usage();
    let session = Session {
        ended: wait_elsewhere(running.pid).map_err(failed)?,
        running,
        status: None,
        input: Input::default(),
    };
    Ok((session, (user_time, system_time)))
}

/// A command while it runs.
struct Session {
    running: Running,
    /// The pipe by which the thread that waits for processes reports the command's end.
    ended: PipeReader,
    status: Option<Status>,
    input: Input,
}

/// Input that has come and the command has not read yet.
#[derive(Default)]
struct Input {
    bytes: Vec<u8>,
    /// Whether no more will come.
    ended: bool,
    /// The bytes that the command has read since the last [`ToHost::Room`].
    read: u32,
}

/// A source of work to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Wire,
    End,
    Stdin,
    Stdout,
    Stderr,
}

impl Session {
    /// Moves bytes and signals until the command has ended and all its output is sent. The returned pipe ends when no process is left.
    fn run(mut self, wire: &mut Wire) -> Result<(Status, PipeReader), Error> {
        wire.send(&ToHost::Started)?;
        if self.running.stdin.is_some() {
            wire.send(&ToHost::Room(STDIN_WINDOW))?;
        }
        // Messages that have come by now ring no bell any more.
        wire.receive(|message| self.take(message))?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let outputs = self.running.stdout.is_some() || self.running.stderr.is_some();
            if let (Some(status), false) = (self.status, outputs) {
                return Ok((status, self.ended));
            }
            for source in self.wait(wire)? {
                match source {
                    Source::Wire => wire.receive(|message| self.take(message))?,
                    Source::End => self.note_end()?,
                    Source::Stdin => self.feed(wire)?,
                    Source::Stdout | Source::Stderr => self.forward(source, wire, &mut buffer)?,
                }
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, wire: &Wire) -> Result<Vec<Source>, Error> {
        let running = &self.running;
        let mut sources = vec![(Source::Wire, wire.descriptor(), PollFlags::IN)];
        if self.status.is_none() {
            sources.push((Source::End, self.ended.as_fd(), PollFlags::IN));
        }
        if let Some(stdin) = running.stdin.as_ref().filter(|_| self.input.is_pending()) {
            sources.push((Source::Stdin, stdin.as_fd(), PollFlags::OUT));
        }
        // While the host takes nothing, no output is taken from the command, which then has to wait as well.
        if !wire.is_full() {
            let outputs = [
                (Source::Stdout, &running.stdout),
                (Source::Stderr, &running.stderr),
            ];
            for (source, output) in outputs {
                sources.extend(output.iter().map(|fd| (source, fd.as_fd(), PollFlags::IN)));
            }
        }
        let mut polled: Vec<_> = sources
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = sources
            .iter()
            .zip(&polled)
            .filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    /// Handles a message of the host's.
    fn take(&mut self, message: ToGuest) -> Result<(), Error> {
        match message {
            ToGuest::Stdin([]) => self.input.ended = true,
            ToGuest::Stdin(bytes) if self.running.stdin.is_some() => {
                self.input.bytes.extend_from_slice(bytes);
            }
            // The command's stdin is closed.
            ToGuest::Stdin(_) => {}
            ToGuest::Signal(number) => {
                if let (Some(signal), None) = (Signal::from_named_raw(number.into()), self.status) {
                    // The command may just have ended.
                    let _ = kill_process_group(self.running.pid, signal);
                }
            }
            ToGuest::Window(size) => {
                if let Some(terminal) = &self.running.terminal {
                    command::set_size(terminal, size);
                }
            }
            ToGuest::Prepare(_) | ToGuest::Request(_) | ToGuest::Files(_) | ToGuest::Time(_) => {
                return Err("the host sent a message out of order".into());
            }
        }
        Ok(())
    }

    /// Gives input to the command.
    fn feed(&mut self, wire: &mut Wire) -> Result<(), Error> {
        let Some(stdin) = &self.running.stdin else {
            return Ok(());
        };
        let input = &mut self.input;
        match rustix::io::write(stdin, &input.bytes) {
            Ok(len) => {
                input.bytes.drain(..len);
                input.read += u32::try_from(len)?;
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            // The command has closed its stdin: input is dropped from now on.
            Err(_) => self.running.stdin = None,
        }
        if input.read >= STDIN_WINDOW / 2 {
            wire.send(&ToHost::Room(std::mem::take(&mut input.read)))?;
        }
        if input.bytes.is_empty() && input.ended {
            if let Some(terminal) = &self.running.terminal {
                let _ = rustix::io::write(terminal, END_OF_INPUT);
            }
            self.running.stdin = None;
        }
        Ok(())
    }

    /// Sends output of the command's to the host.
    fn forward(&mut self, source: Source, wire: &mut Wire, buffer: &mut [u8]) -> Result<(), Error> {
        let output = match source {
            Source::Stdout => &mut self.running.stdout,
            _ => &mut self.running.stderr,
        };
        let Some(open) = output else { return Ok(()) };
        match rustix::io::read(&*open, &mut *buffer) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            // A terminal that no program has open any more can't be read: EIO.
            Ok(0) | Err(_) => {
                *output = None;
                Ok(())
            }
            Ok(len) => {
                let bytes = &buffer[..len];
                wire.send(&match source {
                    Source::Stdout => ToHost::Stdout(bytes),
                    _ => ToHost::Stderr(bytes),
                })
            }
        }
    }

    /// Takes the command's status from the pipe, and kills the processes that the command has left.
    fn note_end(&mut self) -> Result<(), Error> {
        let mut status = [0; 2];
        io::Read::read_exact(&mut self.ended, &mut status)?;
        let [kind, number] = status;
        self.status = Some(match kind {
            0 => Status::Code(number),
            _ => Status::Signal(number),
        });
        self.running.stdin = None;
        kill_all();
        Ok(())
    }
}

impl Input {
    /// Returns whether there is input to write, or an end to pass on.
    fn is_pending(&self) -> bool {
        !self.bytes.is_empty() || self.ended
    }
}

/// Kills every process but this one.
pub(crate) fn kill_all() {
    // `kill(-1, …)`: process group 1 is written so. It fails where there is no other process.
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
}

/// Starts a thread that waits for processes: the command, and all that lose their parents. The returned pipe gets the command's
/// end, in two bytes: 0 and its code, or 1 and its signal.
fn wait_elsewhere(command: Pid) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    thread::Builder::new().stack_size(64 << 10).spawn(move || {
        // `wait` fails when there is no process left, or for an interruption.
        loop {
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) if pid == command => {
                    let how = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => [0, code],
                        (_, signal) => [1, signal.unwrap_or(0)],
                    };
                    let how = how.map(|number| u8::try_from(number & 0xff).unwrap_or(0));
                    // The reader is there as long as this process.
                    let _ = writer.write_all(&how);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    })?;
    Ok(reader)
}

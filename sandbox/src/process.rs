//! The run of a jailed program: its streams, its limits, and its end.
//!
//! All of a jail's processes end with the process that is started here, so killing it is enough. The calling thread waits for its
//! end, the time limit and events, and measures memory; it enforces the limit where no control group does. A thread for each output
//! passes bytes on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use minivm_image::io_error::{HostError, cannot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, fchmod};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::exception::Tail;
use super::{End, Error, Finished, Limits, Task, Usage, Warning, watch};
use minivm_machine::jail::{self, Cgroup, Jailed};
use minivm_machine::output::{Capped, Pending};
use minivm_machine::session::Event;

/// The interval between two looks at events and memory.
const TICK: Duration = Duration::from_millis(10);
/// How long [`run`] waits for outputs after a time limit or a stop, once all their writers have ended. What is missing then is due
/// to the task's own reader, which takes nothing. Without a limit or a stop, `run` waits for the reader for ever.
const GRACE: Duration = Duration::from_secs(1);
/// A pipe with less free space than this counts as full.
const CLOGGED: u64 = 8 << 10;

/// The largest number of processes and threads of a sandbox, where no control group counts them.
const PROCESSES: u64 = 1024;

/// The largest number of bytes that are read of a memory file: more than a message has.
const CONTENT_MAX: usize = 2 << 20;

/// A program's streams, and its events.
pub(super) struct Streams {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Box<dyn Write + Send>,
    pub(super) stderr: Box<dyn Write + Send>,
    pub(super) events: Receiver<Event>,
}

impl Streams {
    /// Makes streams of two outputs, without input or events.
    pub(super) fn to(
        stdout: impl Write + Send + 'static,
        stderr: impl Write + Send + 'static,
    ) -> Self {
        Streams {
            stdin: None,
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            events: mpsc::channel().1,
        }
    }
}

impl From<Task> for Streams {
    fn from(task: Task) -> Self {
        Streams {
            stdin: task.stdin,
            stdout: task.stdout,
            stderr: task.stderr,
            events: task.events,
        }
    }
}

/// Reasons why a program was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    TimedOut,
    OutOfMemory,
    Stopped(u8),
    /// An output can't be passed on.
    OutputFailed,
}

impl StopReason {
    /// Returns whether outputs are waited for no longer than [`GRACE`].
    fn hurries(self) -> bool {
        matches!(self, StopReason::TimedOut | StopReason::Stopped(_))
    }
}

/// Runs the program to its end. Bubblewrap reports 128+n where signal n has killed the program, which can't be distinguished from that
/// exit code.
pub(super) fn run(jailed: Jailed, streams: Streams, limits: &Limits) -> Result<Finished, Error> {
    let began = Instant::now();
    let Jailed {
        mut command,
        mut entry,
        status,
    } = jailed;
    let group = Cgroup::create(limits.memory);
    let log = entry.runtime_stderr.as_ref();
    let log = log.map(|runtime| runtime.log.try_clone()).transpose();
    let log = log.map_err(cannot("copy an open file"))?;
    entry.first = Some(Box::new(before_exec(procs_files(group.as_ref())?)));
    entry.processes = Some(processes(entry.descent.is_some()));
    entry.install(&mut command);
    let mut child = spawn(command, streams.stdin)?;
    let mut outputs = Outputs::start(&mut child, streams.stdout, streams.stderr, limits.output)?;
    let mut watch = Watch {
        child: &mut child,
        group: group.as_ref(),
        limits,
        deadline: limits.time.and_then(|time| began.checked_add(time)),
        peak: 0,
        events: streams.events,
    };
    let why = watch.until_end(&mut outputs)?;
    let ended = watch.child.wait().map_err(cannot("wait for a process"))?;
    let why = outputs.finish(why, || watch.stopped().or_else(|| watch.timed_out()));
    let peak = watch.peak;
    let code = jail::exit_code(status);
    // A program that ended before the first look has no sample; its group's peak also counts cached files.
    let peak = match peak {
        0 => group.as_ref().and_then(Cgroup::peak).unwrap_or(0),
        peak => peak,
    };
    let out_of_memory = group.as_ref().is_some_and(Cgroup::out_of_memory);
    if why.is_none() && code.is_none() && !out_of_memory && !ended.success() {
        let runtime = log.map(|log| content(&log.into()));
        let stderr = runtime.map_or_else(
            || outputs.tail.text(),
            |bytes| String::from_utf8_lossy(&bytes).into(),
        );
        return Err(jail::unusable(&stderr).into());
    }
    let end = match (why, outputs.failed.take()) {
        (Some(StopReason::OutputFailed), Some(error)) => output_failed(error)?,
        _ => end(why, out_of_memory, code, ended),
    };
    Ok(Finished {
        exception: outputs.tail.exception_at(&end),
        end,
        truncated: outputs.truncated,
        warnings: outputs.warnings,
        usage: Usage {
            total: began.elapsed(),
            peak_memory: (peak > 0).then_some(peak),
            ..Usage::default()
        },
        machine: None,
    })
}

/// Returns the end of a program whose output can't be passed on: [`End::OutputClosed`] where its reader has closed it.
///
/// # Errors
///
/// [`Error::Host`] where writing failed for another reason.
pub(super) fn output_failed(error: io::Error) -> Result<End, Error> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(End::OutputClosed),
        _ => Err(cannot("write the command's output")(error).into()),
    }
}

fn end(why: Option<StopReason>, out_of_memory: bool, code: Option<u8>, ended: ExitStatus) -> End {
    match (why, out_of_memory, code) {
        (Some(StopReason::TimedOut), ..) => End::TimedOut,
        (Some(StopReason::Stopped(signal)), ..) => End::Stopped(signal),
        (Some(StopReason::OutOfMemory), ..) | (None, true, _) => End::OutOfMemory,
        (Some(StopReason::OutputFailed), ..) => End::OutputClosed,
        (None, false, Some(code @ 129..=192)) => End::Signal(code - 128),
        (None, false, Some(code)) => End::Exited(code),
        (None, false, None) => {
            let signal = ended.signal().and_then(|signal| u8::try_from(signal).ok());
            End::Signal(signal.unwrap_or(9))
        }
    }
}

/// Reads a memory file, up to [`CONTENT_MAX`] bytes.
pub(super) fn content(file: &File) -> Vec<u8> {
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes =
        vec![0; usize::try_from(size).map_or(CONTENT_MAX, |size| size.min(CONTENT_MAX))];
    let len = file.read_at(&mut bytes, 0).unwrap_or_default();
    bytes.truncate(len);
    bytes
}

/// Returns RLIMIT_NPROC for the sandbox's user. With a user of its own (`alone`), it counts the sandbox's processes only. An ordinary
/// user has other processes on the host, so the number of all that exist now is added.
fn processes(alone: bool) -> u64 {
    if alone {
        return PROCESSES;
    }
    // Load averages, runnable/existing threads and the last PID: `0.20 0.18 0.12 1/80 11206`.
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let there = text
        .split(' ')
        .nth(3)
        .and_then(|tasks| tasks.split_once('/'));
    let there = there.and_then(|(_, there)| there.parse::<u64>().ok());
    PROCESSES + there.unwrap_or(PROCESSES)
}

fn procs_files(group: Option<&Cgroup>) -> Result<Vec<File>, HostError> {
    let files = group.map_or_else(|| Ok(Vec::new()), Cgroup::procs_files);
    files.map_err(cannot("enter a control group"))
}

/// Returns the first step of a new process: it enters its control group by these files, and lets other users open its outputs.
fn before_exec(procs_files: Vec<File>) -> impl FnMut() -> io::Result<()> {
    move || {
        for file in &procs_files {
            rustix::io::write(file, b"0")?;
        }
        // The pipes are private to this run. The program may be another user, and open them by a name such as /dev/stdout.
        for output in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
            fchmod(output, Mode::from_raw_mode(0o666))?;
        }
        Ok(())
    }
}

/// Starts the command, and closes this process's copies of the descriptors that it inherits: with them open, a pipe among them
/// would never reach its end.
fn spawn(mut command: Command, stdin: Option<OwnedFd>) -> Result<Child, Error> {
    command
        .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn();
    child.map_err(|error| {
        let program = command.get_program().display();
        jail::Error::Failed(format!("cannot start {program}: {error}")).into()
    })
}

/// A running program, watched until its end.
struct Watch<'a> {
    child: &'a mut Child,
    group: Option<&'a Cgroup>,
    limits: &'a Limits,
    deadline: Option<Instant>,
    peak: u64,
    events: Receiver<Event>,
}

impl Watch<'_> {
    /// Waits for the program's end, and kills it where there is a reason to.
    fn until_end(&mut self, outputs: &mut Outputs) -> Result<Option<StopReason>, Error> {
        let pid = Pid::from_child(self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty());
        let pidfd = pidfd.map_err(|error| cannot("watch a process")(error.into()))?;
        loop {
            if ends_within(&pidfd, self.next_look()).map_err(cannot("wait for a process"))? {
                return Ok(None);
            }
            if let Some(why) = self.reason(outputs) {
                outputs.note_clogged();
                jail::kill(self.child);
                return Ok(Some(why));
            }
        }
    }

    fn next_look(&self) -> Duration {
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        left.map_or(TICK, |left| left.min(TICK))
    }

    /// Samples the memory, and returns the reason to kill the program now, if there is one.
    fn reason(&mut self, outputs: &mut Outputs) -> Option<StopReason> {
        let memory = match self.group {
            Some(group) => group.memory(),
            None => Some(watch::memory_of(self.child.id())),
        };
        self.peak = self.peak.max(memory.unwrap_or_default());
        let over = self.limits.memory.is_some_and(|limit| self.peak > limit);
        self.stopped()
            .or_else(|| outputs.have_failed().then_some(StopReason::OutputFailed))
            .or_else(|| self.timed_out())
            .or_else(|| over.then_some(StopReason::OutOfMemory))
    }

    fn stopped(&self) -> Option<StopReason> {
        self.events.try_iter().find_map(|event| match event {
            Event::Signal(signal) | Event::Stop(signal) => Some(StopReason::Stopped(signal)),
            Event::Window(_) => None,
        })
    }

    fn timed_out(&self) -> Option<StopReason> {
        let deadline = self.deadline?;
        (Instant::now() >= deadline).then_some(StopReason::TimedOut)
    }
}

fn ends_within(pidfd: impl AsFd, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(patience).expect("it is short");
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The threads that pass outputs on, and their results.
struct Outputs {
    passed: Receiver<Passed>,
    /// The number of threads that haven't ended.
    left: usize,
    pipes: Vec<Pipe>,
    /// The error of an output that can't be passed on.
    failed: Option<io::Error>,
    truncated: bool,
    warnings: Vec<Warning>,
    tail: Tail,
}

/// The result of a thread that passed an output on.
struct Passed {
    /// The error for which it stopped.
    failed: Option<io::Error>,
    truncated: bool,
    /// The error for which bytes of stderr were dropped.
    dropped: Option<io::Error>,
}

/// The pipe of a program's output, observed while a thread reads it.
struct Pipe {
    end: OwnedFd,
    /// Whether the thread is blocked by the task's own reader.
    pending: Pending,
}

impl Pipe {
    /// Returns whether the pipe is full because the task's own reader takes nothing, so that the program is probably blocked as well.
    fn is_clogged(&self) -> bool {
        let held = rustix::io::ioctl_fionread(&self.end).unwrap_or_default();
        let room = rustix::pipe::fcntl_getpipe_size(&self.end).map_or(u64::MAX, |size| size as u64);
        self.pending.is_set() && held.saturating_add(CLOGGED) > room
    }
}

impl Outputs {
    fn start(
        child: &mut Child,
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
        limit: Option<u64>,
    ) -> Result<Outputs, Error> {
        let (sender, passed) = mpsc::channel();
        let tail = Tail::default();
        let from_stdout = OwnedFd::from(child.stdout.take().expect("it is piped"));
        let from_stderr = OwnedFd::from(child.stderr.take().expect("it is piped"));
        let mut pipes = Vec::new();
        for (from, to, tail) in [
            (from_stdout, stdout, None),
            (from_stderr, stderr, Some(tail.clone())),
        ] {
            let (sender, pending) = (sender.clone(), Pending::default());
            let mut to = Capped::new(to, limit, &pending);
            let end = from.try_clone().map_err(cannot("copy an open file"))?;
            pipes.push(Pipe { end, pending });
            let pass_on = move || {
                let failed = pass(File::from(from), &mut to, tail.as_ref()).err();
                let _ = sender.send(Passed {
                    failed,
                    truncated: to.truncated,
                    dropped: to.failed.take(),
                });
            };
            let thread = thread::Builder::new().name("output".into());
            thread.spawn(pass_on).map_err(cannot("start a thread"))?;
        }
        Ok(Outputs {
            passed,
            left: pipes.len(),
            pipes,
            failed: None,
            truncated: false,
            warnings: Vec::new(),
            tail,
        })
    }

    /// Returns whether an output can't be passed on.
    fn have_failed(&mut self) -> bool {
        while let Ok(passed) = self.passed.try_recv() {
            self.note(passed);
        }
        self.failed.is_some()
    }

    fn note(&mut self, passed: Passed) {
        self.left -= 1;
        self.truncated |= passed.truncated;
        let warning = passed.dropped.as_ref().map(Warning::not_written);
        self.warnings.extend(warning);
        if self.failed.is_none() {
            self.failed = passed.failed;
        }
    }

    /// Records a loss before the program is killed, if a pipe is full: bytes that the program is writing to it are lost.
    fn note_clogged(&mut self) {
        if self.pipes.iter().any(Pipe::is_clogged) {
            self.note_loss();
        }
    }

    fn note_loss(&mut self) {
        if !self.warnings.contains(&Warning::NotTaken) {
            self.warnings.push(Warning::NotTaken);
        }
        self.truncated = true;
    }

    /// Waits, after the program's end, until the threads have passed on all bytes; after a time limit or a stop, no longer than
    /// [`GRACE`]. Returns the reason for which the program or this wait was ended.
    fn finish(
        &mut self,
        why: Option<StopReason>,
        hurry: impl Fn() -> Option<StopReason>,
    ) -> Option<StopReason> {
        let mut hurries = why.filter(|why| why.hurries());
        let mut until = None;
        while self.left > 0 {
            hurries = hurries.or_else(&hurry);
            if hurries.is_some() {
                until = until.or_else(|| Instant::now().checked_add(GRACE));
            }
            match self.passed.recv_timeout(TICK) {
                Ok(passed) => self.note(passed),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.left > 0 && until.is_some_and(|until| Instant::now() >= until) {
                self.note_loss();
                return why.or(hurries);
            }
        }
        // The program may have ended by itself because of it.
        why.or_else(|| self.failed.is_some().then_some(StopReason::OutputFailed))
    }
}

/// Passes an output on to its end. `tail` is for stderr, whose last bytes are kept, and whose write errors don't end the program.
fn pass(mut from: impl Read, to: &mut Capped, tail: Option<&Tail>) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => &buffer[..len],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Reading a pipe has no other errors.
            Err(_) => return Ok(()),
        };
        match tail {
            Some(tail) => {
                tail.remember(bytes);
                to.write_or_drop(bytes)?;
            }
            None => to.write(bytes)?,
        }
    }
}

#[cfg(test)]
mod tests;

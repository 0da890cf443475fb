//! A jailed program, run to its end: its streams, its limits, and how it ended.
//!
//! All of a jail's processes end with the one that is started here, so killing that one is enough. One thread waits for the
//! end, for the time limit, for what happens from outside and, where no control group does it, watches the memory; one thread
//! an output passes bytes on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, fchmod};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::exception::Tail;
use super::{End, Error, Finished, Limits, Task, Usage, cannot, watch};
use minivm_machine::jail::{self, Cgroup, Jailed};
use minivm_machine::output::{self, Capped, Pending};
use minivm_machine::session::Event;

/// How often it is looked what has happened, and how much memory is used.
const TICK: Duration = Duration::from_millis(10);
/// How long outputs are waited for once a time limit or a stop has been reached and all that could write to them is gone. Then
/// it is our own reader that doesn't take them. Without one of these there is no end to its time.
const GRACE: Duration = Duration::from_secs(1);
/// How near to full a pipe is in which nothing more fits that is worth a write.
const CLOGGED: u64 = 8 << 10;

/// Processes and threads of a sandbox, at the most, where no control group counts them.
const PROCESSES: u64 = 1024;

/// How much of a file in memory is read: more than a message has.
const CONTENT_MAX: usize = 2 << 20;

/// What a program is run with.
pub(super) struct Streams {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Box<dyn Write + Send>,
    pub(super) stderr: Box<dyn Write + Send>,
    pub(super) events: Receiver<Event>,
}

impl Streams {
    /// Outputs alone: no input, and nothing that happens.
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

/// Why a program was ended from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    TimedOut,
    OutOfMemory,
    Stopped(u8),
    /// Its output can't be passed on.
    OutputFailed,
}

impl StopReason {
    /// Whether outputs are not waited for any more.
    fn hurries(self) -> bool {
        matches!(self, StopReason::TimedOut | StopReason::Stopped(_))
    }
}

/// Runs the program to its end. The exit code is the program's own, and 128+n where a signal has killed it: there is nobody
/// who could tell the two apart.
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
    let why = outputs.finish(why, || watch.asked().or_else(|| watch.late()));
    let peak = watch.peak;
    let code = jail::exit_code(status);
    // What ends between two looks is not seen: its group knows the most that it had, with what of files was read for it.
    let peak = match peak {
        0 => group.as_ref().and_then(Cgroup::peak).unwrap_or(0),
        peak => peak,
    };
    let out_of_memory = group.as_ref().is_some_and(Cgroup::out_of_memory);
    if why.is_none() && code.is_none() && !out_of_memory && !ended.success() {
        let said = log.map(|log| content(&log.into()));
        let said = said.map_or_else(
            || outputs.tail.text(),
            |said| String::from_utf8_lossy(&said).into(),
        );
        return Err(jail::unusable(&said).into());
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

/// The end of a program whose output can't be passed on.
///
/// # Errors
///
/// Where that has another reason than that nobody reads it.
pub(super) fn output_failed(error: io::Error) -> Result<End, Error> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(End::OutputClosed),
        _ => Err(cannot("write the command's output")(error)),
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

/// What was written to a file in memory, as far as anybody wants to read it.
pub(super) fn content(file: &File) -> Vec<u8> {
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes =
        vec![0; usize::try_from(size).map_or(CONTENT_MAX, |size| size.min(CONTENT_MAX))];
    let len = file.read_at(&mut bytes, 0).unwrap_or_default();
    bytes.truncate(len);
    bytes
}

/// How many processes and threads the sandbox's user may have. One of its own has those of the sandbox; an ordinary user has
/// others too, on all of the host, and they go on, so all that there are now are added.
fn processes(alone: bool) -> u64 {
    if alone {
        return PROCESSES;
    }
    // Averages, and then how many run and are there: `0.20 0.18 0.12 1/80 11206`.
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let there = text
        .split(' ')
        .nth(3)
        .and_then(|tasks| tasks.split_once('/'));
    let there = there.and_then(|(_, there)| there.parse::<u64>().ok());
    PROCESSES + there.unwrap_or(PROCESSES)
}

fn procs_files(group: Option<&Cgroup>) -> Result<Vec<File>, Error> {
    let files = group.map_or_else(|| Ok(Vec::new()), Cgroup::procs_files);
    files.map_err(cannot("enter a control group"))
}

/// What a new process does before all else: it enters its control group, by these doors, and lets others open its outputs.
fn before_exec(procs_files: Vec<File>) -> impl FnMut() -> io::Result<()> {
    move || {
        for file in &procs_files {
            rustix::io::write(file, b"0")?;
        }
        // The pipes are ours alone; whichever user the program is may open them again by a name such as /dev/stdout.
        for output in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
            fchmod(output, Mode::from_raw_mode(0o666))?;
        }
        Ok(())
    }
}

/// Starts it. Our own copies of what it inherits are closed on return, or the end of a pipe among them would never be seen.
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

/// Waits for a program's end.
struct Watch<'a> {
    child: &'a mut Child,
    group: Option<&'a Cgroup>,
    limits: &'a Limits,
    deadline: Option<Instant>,
    peak: u64,
    events: Receiver<Event>,
}

impl Watch<'_> {
    /// Waits for its end, and brings that about where there is a reason to.
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
                // It may have ended meanwhile, which is just as well.
                let _ = self.child.kill();
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

    /// Why it has to end now.
    fn reason(&mut self, outputs: &mut Outputs) -> Option<StopReason> {
        let memory = match self.group {
            Some(group) => group.memory(),
            None => Some(watch::memory_of(self.child.id())),
        };
        self.peak = self.peak.max(memory.unwrap_or_default());
        let over = self.limits.memory.is_some_and(|limit| self.peak > limit);
        self.asked()
            .or_else(|| outputs.have_failed().then_some(StopReason::OutputFailed))
            .or_else(|| self.late())
            .or_else(|| over.then_some(StopReason::OutOfMemory))
    }

    fn asked(&self) -> Option<StopReason> {
        self.events.try_iter().find_map(|event| match event {
            Event::Signal(signal) | Event::Stop(signal) => Some(StopReason::Stopped(signal)),
            Event::Window(_) => None,
        })
    }

    fn late(&self) -> Option<StopReason> {
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

/// The threads that pass outputs on, and what has come of them.
struct Outputs {
    passed: Receiver<Passed>,
    /// How many of them haven't ended.
    left: usize,
    pipes: Vec<Pipe>,
    /// Why an output can't be passed on.
    failed: Option<io::Error>,
    truncated: bool,
    warnings: Vec<String>,
    tail: Tail,
}

/// What came of an output.
struct Passed {
    /// Why it was passed on no further.
    failed: Option<io::Error>,
    truncated: bool,
    /// Why messages were dropped.
    dropped: Option<io::Error>,
}

/// A program's output, to be looked at while a thread reads it.
struct Pipe {
    end: OwnedFd,
    /// Whether the thread waits for our own reader.
    pending: Pending,
}

impl Pipe {
    /// Whether the program waits for our own reader, too, as far as can be seen.
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

    /// Whether one of them can't be passed on.
    fn have_failed(&mut self) -> bool {
        while let Ok(passed) = self.passed.try_recv() {
            self.note(passed);
        }
        self.failed.is_some()
    }

    fn note(&mut self, passed: Passed) {
        self.left -= 1;
        self.truncated |= passed.truncated;
        let told = passed.dropped.as_ref().map(output::not_written);
        self.warnings.extend(told);
        if self.failed.is_none() {
            self.failed = passed.failed;
        }
    }

    /// The program is about to be killed: what is on its way to a full pipe will never be there.
    fn note_clogged(&mut self) {
        if self.pipes.iter().any(Pipe::is_clogged) {
            self.note_loss();
        }
    }

    fn note_loss(&mut self) {
        if !self.warnings.iter().any(|told| told == output::NOT_TAKEN) {
            self.warnings.push(output::NOT_TAKEN.into());
        }
        self.truncated = true;
    }

    /// Waits until all is passed on that the program has written, which is gone, unless there is a reason to hurry. Returns why
    /// it was ended, or this was.
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
        // It may itself have ended for that, before we saw it.
        why.or_else(|| self.failed.is_some().then_some(StopReason::OutputFailed))
    }
}

/// Passes all on until the end. What is remembered are messages.
fn pass(mut from: impl Read, to: &mut Capped, tail: Option<&Tail>) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => &buffer[..len],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A pipe has no errors of its own.
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

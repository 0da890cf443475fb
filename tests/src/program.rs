//! A program under test: its output as it comes, and its end, each waited for with a limit on its silence.

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::patience::{processes, processor_time};

/// A running program. It is killed when this is dropped.
pub struct Program {
    child: Child,
    /// Its input; `None` ends it.
    pub stdin: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    stdout: Vec<u8>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code, if it was not killed.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// All that it wrote to stdout.
    pub stdout: Vec<u8>,
    /// All that it wrote to stderr.
    pub stderr: String,
}

impl Ended {
    /// Its stdout as text, with the line ends of a terminal made those of a file.
    pub fn text(&self) -> String {
        as_text(&self.stdout)
    }

    /// Asserts that minivm refused: with code 125 and one line of its own on stderr, which has all of these parts in it and
    /// nothing of a panic.
    ///
    /// # Panics
    ///
    /// Where it ended otherwise.
    pub fn assert_refused(&self, what: &str, parts: &[&str]) {
        assert_eq!(self.code, Some(125), "{what}: {self:?}");
        let line = self.stderr.strip_suffix('\n').unwrap_or_default();
        assert!(!line.contains('\n'), "{what}: {self:?}");
        assert_told(what, line, parts);
    }
}

/// Asserts that a line is minivm's own, and has all of these parts in it and nothing of a panic.
///
/// # Panics
///
/// Where it is another.
pub fn assert_told(what: &str, line: &str, parts: &[&str]) {
    assert!(line.starts_with("minivm: "), "{what}: {line}");
    for part in parts {
        assert!(line.contains(part), "{what}: no {part:?} in {line}");
    }
    for trace in ["panicked", "backtrace"] {
        assert!(!line.contains(trace), "{what}: {line}");
    }
}

fn as_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace("\r\n", "\n")
}

impl Program {
    /// Starts `command` with pipes for its three streams.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let (sender, output) = channel();
        let mut stdout = child.stdout.take().expect("a pipe");
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(len @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut stderr = child.stderr.take().expect("a pipe");
        let stderr = thread::spawn(move || {
            let mut bytes = Vec::new();
            // What came before an error is what there is to see.
            let _ = stderr.read_to_end(&mut bytes);
            bytes
        });
        Program {
            stdin: child.stdin.take(),
            child,
            output,
            stdout: Vec::new(),
            stderr: Some(stderr),
        }
    }

    /// Writes to its stdin.
    ///
    /// # Errors
    ///
    /// If it doesn't read any more.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stdin
            .as_mut()
            .expect("stdin is still open")
            .write_all(bytes)
    }

    /// Its process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// If it has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is our child");
    }

    /// Waits until `text` is in what it has written to stdout.
    ///
    /// # Panics
    ///
    /// If it writes nothing for `patience`, or the program closes its stdout before.
    pub fn wait_for(&mut self, text: &str, patience: Duration) {
        self.wait_for_times(text, 1, patience);
    }

    /// Waits until `text` is in what it has written to stdout this many times.
    ///
    /// # Panics
    ///
    /// If it writes nothing for `patience`, or the program closes its stdout before.
    pub fn wait_for_times(&mut self, text: &str, times: usize, patience: Duration) {
        let mut limit = Limit::of(patience);
        while as_text(&self.stdout).matches(text).count() < times {
            if let Err(why) = self.take_output(&mut limit) {
                panic!(
                    "waiting for {text:?}: {why}; so far:\n{}\n{}",
                    as_text(&self.stdout),
                    processes()
                );
            }
        }
    }

    /// Waits until `text` is in what it has written to stdout, or nothing more can come; returns whether it is.
    ///
    /// # Panics
    ///
    /// If it writes nothing for `patience`.
    pub fn has_written(&mut self, text: &str, patience: Duration) -> bool {
        let mut limit = Limit::of(patience);
        while !as_text(&self.stdout).contains(text) {
            match self.take_output(&mut limit) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => panic!(
                    "neither {text:?} nor an end; so far:\n{}\n{}",
                    as_text(&self.stdout),
                    processes()
                ),
            }
        }
        true
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If it writes nothing for `patience` and doesn't end.
    pub fn end(mut self, patience: Duration) -> Ended {
        let mut limit = Limit::of(patience);
        let late = loop {
            match self.take_output(&mut limit) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    while !ends_until(&self.child, limit.deadline())
                        && limit.is_put_off(&self.child)
                    {}
                    break !ends_until(&self.child, Instant::now());
                }
                Err(RecvTimeoutError::Timeout) => break true,
            }
        };
        let processes = late.then(processes);
        if late {
            // Ends the thread that reads stderr.
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("it is our child");
        let stderr = self.stderr.take().expect("taken once").join();
        let stderr = String::from_utf8_lossy(&stderr.expect("reading doesn't panic")).into_owned();
        let stdout = std::mem::take(&mut self.stdout);
        assert!(
            !late,
            "no end, and nothing more within {patience:?}; stdout:\n{}\nstderr:\n{stderr}\n{}",
            as_text(&stdout),
            processes.unwrap_or_default()
        );
        Ended {
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
        }
    }

    fn take_output(&mut self, limit: &mut Limit) -> Result<(), RecvTimeoutError> {
        let more = loop {
            let left = limit.deadline().saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Err(RecvTimeoutError::Timeout) if limit.is_put_off(&self.child) => {}
                more => break more?,
            }
        };
        self.stdout.extend(more);
        limit.silent_since = Instant::now();
        Ok(())
    }
}

/// A limit on a program's silence: one that writes or computes is slow, and doesn't hang. One that never ends doing so is no better than
/// one that hangs, so there is a limit on the whole, too.
struct Limit {
    patience: Duration,
    silent_since: Instant,
    /// The processor time that the program and its descendants had taken when the silence began.
    computed: Duration,
    last: Instant,
}

/// The part of a silence that a program on a busy machine computes, if it doesn't hang. A lab that waits takes less.
const COMPUTING: u32 = 20;

/// How many times its limit on silence a wait may take.
const WHOLE: u32 = 10;

impl Limit {
    fn of(patience: Duration) -> Limit {
        let now = Instant::now();
        Limit {
            patience,
            silent_since: now,
            computed: Duration::ZERO,
            last: now + patience * WHOLE,
        }
    }

    /// Begins a new silence where the program has computed in the one that is over; returns whether it has.
    fn is_put_off(&mut self, program: &Child) -> bool {
        let computed = processor_time(program.id());
        let has_computed = computed >= self.computed + self.patience / COMPUTING;
        (self.silent_since, self.computed) = (Instant::now(), computed);
        has_computed && self.silent_since < self.last
    }

    fn deadline(&self) -> Instant {
        self.last.min(self.silent_since + self.patience)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended, which is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of `child`, which stays to be reaped; returns whether it came before the deadline.
///
/// # Panics
///
/// If the kernel has no pidfd (Linux 5.3 has).
pub fn ends_until(child: &Child, deadline: Instant) -> bool {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("it is our child");
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).expect("a short time");
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    poll(&mut polled, Some(&timeout)).is_ok_and(|ready| ready == 1)
}

/// Starts `command` without input and waits for its end.
///
/// # Panics
///
/// If it can't be started, or writes nothing for `patience` and doesn't end.
pub fn run(command: &mut Command, patience: Duration) -> Ended {
    let mut program = Program::start(command);
    program.stdin = None;
    program.end(patience)
}

#[cfg(test)]
mod tests {
    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    #[test]
    fn a_silence_in_which_a_program_computes_is_no_hang() {
        let mut busy = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("there is sh");
        let second = Duration::from_secs(1);
        let mut limit = Limit::of(second * COMPUTING);
        let computed = || processor_time(busy.id());
        while computed() < second {
            thread::yield_now();
        }
        let id = Pid::from_child(&busy);
        kill_process(id, Signal::STOP).expect("it is our child");
        waitpid(Some(id), WaitOptions::UNTRACED).expect("it is our child");
        let put_off = [limit.is_put_off(&busy), limit.is_put_off(&busy)];
        busy.kill().expect("it is our child");
        busy.wait().expect("it is our child");
        assert_eq!(put_off, [true, false]);
    }
}

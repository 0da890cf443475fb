//! The process `minivm-worker monty`, which interprets code. It has a task file, the code's three streams, and a socket to its host;
//! its jail has no other files of the host than this program.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::process::{Resource, Rlimit, setrlimit};

use super::host::{Host, Stream};
use super::interpreter::{self, Ended, Fault, Start};
use super::memory;
use super::stdio::{BlockWriter, Lines};
use super::task::{Outcome, STATE_FILE, TASK_FILE, WorkerProgram, WorkerTask};
use super::wire::{self, FromWorker, ToWorker};
use crate::Call;

/// The size of the interpreter's stack in bytes. Its recursion is limited, but its compiler recurses over long expressions; unused
/// stack takes no memory.
const STACK: usize = 256 << 20;
/// Bytes beyond the memory limit before the process is ended. The interpreter checks its limit only from time to time, and then
/// needs memory for a traceback.
const HEADROOM: u64 = 2 << 20;

/// Bytes of address space that the process needs beside the code's memory: for the program, its stack, and the allocator's arenas of
/// each thread.
const ADDRESSES: u64 = 1 << 30;

/// The exit code of a process that has panicked.
const PANICKED: u8 = 101;

/// Runs the task, and sends its end through `socket`. Returns the process's exit code.
///
/// # Errors
///
/// The system's error where the task can't be read, or the socket or an output is closed.
pub fn work(socket: OwnedFd) -> io::Result<u8> {
    limit_self();
    let stack = thread::Builder::new().stack_size(STACK);
    let worker = stack.spawn(move || interpret(UnixStream::from(socket)))?;
    // The panic's message is on stderr.
    worker.join().unwrap_or(Ok(PANICKED))
}

/// Forbids this process to write files or to leave a core dump.
fn limit_self() {
    // The jail's `/tmp` is the only place for files; the limit forbids them there too.
    lower_limit(Resource::Core, 0);
    lower_limit(Resource::Fsize, 0);
}

/// Lowers a resource limit for good, where it isn't lower already.
fn lower_limit(resource: Resource, most: u64) {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    let _ = setrlimit(resource, limit);
}

fn interpret(socket: UnixStream) -> io::Result<u8> {
    let task: WorkerTask = serde_json::from_reader(BufReader::new(File::open(TASK_FILE)?))?;
    let start = match task.program {
        WorkerProgram::Code(code) => Start::Code(code),
        WorkerProgram::State(returned) => Start::Resume {
            state: std::fs::read(STATE_FILE)?,
            returned,
        },
    };
    let mut host = Remote::new(socket)?;
    host.flush_at_an_abrupt_end();
    let claim = task.scope.memory.map(|bytes| {
        lower_limit(Resource::As, bytes.saturating_add(ADDRESSES));
        let claim = memory::claim();
        let most = usize::try_from(bytes.saturating_add(HEADROOM)).unwrap_or(usize::MAX);
        memory::end_process_beyond(most);
        claim
    });
    let ended = interpreter::run(start, &task.scope, &mut host);
    // The count may be beyond the ceiling, and sending the end allocates.
    memory::end_process_beyond(usize::MAX >> 1);
    drop(claim);
    host.flush()?;
    host.report(ended)
}

/// The interpreter's host, at the other end of the socket.
struct Remote {
    from: BufReader<UnixStream>,
    to: UnixStream,
    stdin: Lines,
    stdout: BlockWriter,
}

impl Remote {
    fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Remote {
            from: BufReader::new(socket.try_clone()?),
            to: socket,
            stdin: Lines::new(io::stdin().as_fd().try_clone_to_owned()?),
            stdout: BlockWriter::start(io::stdout().as_fd().try_clone_to_owned()?)?,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }

    /// Has buffered output written where the allocator or a panic ends this process.
    fn flush_at_an_abrupt_end(&self) {
        let stdout = self.stdout.clone();
        memory::before_end(move || stdout.flush_last());
        let stdout = self.stdout.clone();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            stdout.flush_last();
            hook(panic);
        }));
    }

    /// Sends how the code ended. Returns the process's exit code.
    fn report(&mut self, ended: Result<Ended, Fault>) -> io::Result<u8> {
        let (message, state, code) = match ended {
            Ok(ended) => match ended.outcome {
                Outcome::Exited(code) => (FromWorker::Exited, None, code),
                Outcome::TimedOut => (FromWorker::TimedOut, None, 1),
                Outcome::OutOfMemory => (FromWorker::OutOfMemory, None, 1),
                Outcome::Suspended { call, state } => {
                    let size = state.len();
                    (FromWorker::Suspended { call, size }, Some(state), 0)
                }
            },
            Err(fault @ Fault::State(_)) => (FromWorker::Unreadable(fault.to_string()), None, 1),
            Err(Fault::Host(error)) => return Err(error),
        };
        wire::send(&mut self.to, &message).map_err(io::Error::other)?;
        self.to.write_all(&state.unwrap_or_default())?;
        Ok(code)
    }
}

impl Host for Remote {
    fn call(&mut self, call: Call) -> io::Result<ToWorker> {
        self.flush()?;
        match wire::send(&mut self.to, &FromWorker::Call(call)) {
            Ok(()) => {}
            Err(fault @ wire::Fault::TooLong) => return Ok(Err(fault.to_string())),
            Err(fault) => return Err(io::Error::other(fault)),
        }
        let answer = wire::receive(&mut self.from).map_err(io::Error::other)?;
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write(&mut self, to: Stream, text: &str) -> io::Result<()> {
        match to {
            Stream::Stdout => self.stdout.push(text),
            Stream::Stderr => {
                self.flush()?;
                io::stderr().write_all(text.as_bytes())
            }
        }
    }

    fn poll(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn read_line(&mut self) -> io::Result<String> {
        self.flush()?;
        self.stdin.next()
    }
}

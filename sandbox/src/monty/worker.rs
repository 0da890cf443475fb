//! `minivm monty-worker`: the process in which code is interpreted. It has a task in a file, the code's three streams, and a
//! socket to us; nothing of the host is in its jail.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::host::{Host, Stream};
use super::interpreter::{self, Ended, Fault, Outcome, Scope, Start};
use super::memory;
use super::stdio::{BlockWriter, Lines};
use super::wire::{self, FromWorker, ToWorker};
use crate::Call;

/// The task's file in the jail.
pub(super) const TASK_FILE: &str = "/task";
/// The file of the state that is to be resumed.
pub(super) const STATE_FILE: &str = "/state";
/// The interpreter's stack. Its recursion is limited, but its compiler walks long expressions, and what isn't used costs
/// nothing.
const STACK: usize = 256 << 20;
/// Memory for a traceback and the like, beyond the limit. The interpreter looks at it now and then, so it is a little over at
/// times; beyond this it is a runaway.
const HEADROOM: u64 = 2 << 20;

/// Addresses that a process takes beside what its code has: its program, its stack, and what its allocator keeps at hand for
/// each thread.
const ADDRESSES: u64 = 1 << 30;

/// The exit code of a process that has panicked.
const PANICKED: u8 = 101;

/// What a worker is to do.
#[derive(Serialize, Deserialize)]
pub(super) struct WorkerTask {
    pub(super) program: WorkerProgram,
    pub(super) scope: Scope,
}

/// What is to be interpreted.
#[derive(Serialize, Deserialize)]
pub(super) enum WorkerProgram {
    Code(String),
    /// The state in [`STATE_FILE`], with what its call returned.
    State(ToWorker),
}

/// Runs the task, and says through `socket` how it ended. Returns the process's exit code.
///
/// # Errors
///
/// Where the task can't be read, or the socket or the output is closed.
pub fn work(socket: OwnedFd) -> io::Result<u8> {
    limit_self();
    let stack = thread::Builder::new().stack_size(STACK);
    let worker = stack.spawn(move || interpret(UnixStream::from(socket)))?;
    // A panic has said all on stderr.
    worker.join().unwrap_or(Ok(PANICKED))
}

/// It needs no files and leaves no core.
fn limit_self() {
    // The jail has no place for files, so this is the second reason why there are none.
    lower_limit(Resource::Core, 0);
    lower_limit(Resource::Fsize, 0);
}

/// Lowers a limit for good, where it isn't lower already.
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
    // What has been counted may be too much already for saying so.
    memory::end_process_beyond(usize::MAX >> 1);
    drop(claim);
    host.flush()?;
    host.report(ended)
}

/// What the interpreter gets of us, through the socket.
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

    /// What is held comes out, too, where this process is ended from within.
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

    /// Says how it ended.
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

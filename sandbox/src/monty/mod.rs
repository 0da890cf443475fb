//! Monty: an interpreter of a part of Python, written in Rust, whose code can use only what its host passes to it.
//!
//! [`InProcess`] interprets code in the calling thread, within microseconds, for code that may be wrong but isn't hostile.
//! [`Monty`] is the sandbox: it interprets code in a process of its own (`worker`) in a jail. Code that breaks out of the
//! interpreter finds nothing there, and a runaway is killed from outside.
//!
//! Monty supports no class inheritance, no generators, no `match`, and few modules. `dialect` and `builtin` add some of what
//! scripts expect: `input`, `exit`, `sys.exit`, `SystemExit`, `EOFError` and `print(file=sys.stderr)`.

mod depth;
#[cfg(feature = "worker")]
mod engine;
mod task;
mod wire;

use std::collections::BTreeMap;
use std::io::BufReader;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use minivm_image::io_error::cannot;

use self::task::{Outcome, Scope, WorkerProgram, WorkerTask};
use self::wire::{Fault, FromWorker, ToWorker};
use super::process::{self, Streams};
use super::{
    Backend, End, Error, Finished, Function, Limits, Program, Sandbox, Task, Warning, check_jail,
    worker_is_there,
};
use minivm_machine::jail::{Calls, Jail};
use minivm_machine::printable::printable;

#[cfg(feature = "worker")]
pub use engine::{Allocator, InProcess, work};

/// The subcommand of `minivm-worker`.
pub const WORKER_COMMAND: &str = "monty";

/// How long the interpreter may take, after the time limit, to report it with a traceback. Then its process is killed.
const GRACE: Duration = Duration::from_millis(200);
/// How long [`Monty`] waits for a function of the host to return when the worker has ended.
const PATIENCE: Duration = Duration::from_secs(1);
/// The part of a memory limit that the worker needs beside its code, in bytes.
const OWN_MEMORY: u64 = 8 << 20;
/// The default memory limit in bytes.
const MEMORY: u64 = 256 << 20;
/// The size of the jail's `/tmp` in bytes. The worker writes nothing to it.
const TMP_SIZE: u64 = 1 << 20;

/// The sandbox that interprets code in a jailed process.
pub struct Monty {
    worker: PathBuf,
}

impl Monty {
    /// Makes the sandbox with this program, `minivm-worker`.
    pub fn new(worker: PathBuf) -> Self {
        Monty { worker }
    }

    fn jail(&self, task: &Task) -> Result<Jail, Error> {
        let program = match &task.program {
            Program::Code(code) => WorkerProgram::Code(code.clone()),
            Program::Resume { returned, .. } => {
                WorkerProgram::State(depth::answer(returned.clone()))
            }
            // Unreachable: the backend doesn't declare commands.
            Program::Command(_) => WorkerProgram::Code(String::new()),
        };
        // The interpreter's limit is lower than the process's: only the interpreter writes a traceback.
        let own = |bytes: u64| bytes - OWN_MEMORY.min(bytes / 2);
        let worker_task = WorkerTask {
            program,
            scope: scope(task, task.limits.memory.map(own))?,
        };
        let worker_task = serde_json::to_vec(&worker_task).expect("all of it is JSON");
        worker_is_there(Backend::Monty, &self.worker)?;
        let jail = Jail::new()?.calls(Calls::Monty).tmp_size(TMP_SIZE);
        let jail = jail.bind_read_only(&self.worker, "/worker")?;
        let jail = jail.add_file(&worker_task, task::TASK_FILE)?;
        match &task.program {
            Program::Resume { state, .. } => Ok(jail.add_file(state, task::STATE_FILE)?),
            _ => Ok(jail),
        }
    }
}

impl Sandbox for Monty {
    fn backend(&self) -> Backend {
        Backend::Monty
    }

    fn boundary(&self) -> &'static str {
        "an interpreter that has nothing of the host, in a process in namespaces"
    }

    fn check(&self) -> Result<(), Error> {
        worker_is_there(Backend::Monty, &self.worker)?;
        check_jail(Backend::Monty)
    }

    fn start(&self, mut task: Task) -> Result<Finished, Error> {
        task.limits = task.limits.with_memory(MEMORY);
        let jail = self.jail(&task)?;
        let (ours, theirs) = UnixStream::pair().map_err(cannot("create a socket"))?;
        let theirs = OwnedFd::from(theirs);
        let args = [WORKER_COMMAND.into(), theirs.as_raw_fd().to_string()];
        let jailed = jail.inherit(theirs).program("/worker", args)?;
        let serving = serve_in_thread(ours, std::mem::take(&mut task.functions))?;
        let limits = Limits {
            time: task.limits.time.map(|time| time.saturating_add(GRACE)),
            ..task.limits
        };
        let streams = Streams::from(task);
        let mut finished = process::run(jailed, streams, &limits)?;
        let last = match serving.recv_timeout(PATIENCE) {
            Ok(last) => last
                .map_err(|fault| failed(&format!("the worker sent an invalid message: {fault}")))?,
            Err(_) => {
                let warning = "a function of the host has not returned";
                finished.warnings.push(Warning::Other(warning.into()));
                None
            }
        };
        finished.end = ended(finished.end, last)?;
        if !matches!(finished.end, End::Exited(1..)) {
            finished.exception = None;
        }
        Ok(finished)
    }
}

/// Returns the part of a task that the interpreter gets.
fn scope(task: &Task, memory: Option<u64>) -> Result<Scope, Error> {
    Ok(Scope {
        functions: task.functions.keys().cloned().collect(),
        suspend_at: task.suspend_at.clone(),
        env: task.texts(Backend::Monty)?.into_iter().collect(),
        time: task.limits.time,
        memory,
    })
}

fn end(outcome: Outcome) -> End {
    match outcome {
        Outcome::Exited(code) => End::Exited(code),
        Outcome::TimedOut => End::TimedOut,
        Outcome::OutOfMemory => End::OutOfMemory,
        Outcome::Suspended { call, state } => End::Suspended { call, state },
    }
}

/// Returns the task's end from that of the worker's process and its last message. The message counts only for a process that
/// exited.
fn ended(process: End, last: Option<LastMessage>) -> Result<End, Error> {
    let End::Exited(code) = process else {
        return Ok(process);
    };
    match last {
        Some(LastMessage::Ended(Outcome::Exited(_))) => Ok(End::Exited(code)),
        Some(LastMessage::Ended(outcome)) => Ok(end(outcome)),
        Some(LastMessage::Unreadable(why)) => Err(failed(&why)),
        None if code == task::OVER => Ok(End::OutOfMemory),
        None => Ok(End::Exited(code)),
    }
}

fn failed(detail: &str) -> Error {
    Error::Failed {
        backend: Backend::Monty,
        detail: printable(detail, 200),
    }
}

/// The last message of a worker.
#[derive(Debug, PartialEq)]
enum LastMessage {
    Ended(Outcome),
    Unreadable(String),
}

/// Starts a thread that serves a worker. The receiver gets the worker's last message when it has ended.
fn serve_in_thread(
    socket: UnixStream,
    mut functions: BTreeMap<String, Function>,
) -> Result<Receiver<Result<Option<LastMessage>, Fault>>, Error> {
    let (sender, receiver) = mpsc::channel();
    let serve = move || {
        let _ = sender.send(serve(socket, &mut functions));
    };
    let thread = thread::Builder::new().name("functions".into());
    thread.spawn(serve).map_err(cannot("start a thread"))?;
    Ok(receiver)
}

/// Answers a worker's calls until its last message.
fn serve(
    socket: UnixStream,
    functions: &mut BTreeMap<String, Function>,
) -> Result<Option<LastMessage>, Fault> {
    let mut to = socket.try_clone()?;
    let mut from = BufReader::new(socket);
    while let Some(message) = unless_closed(wire::receive(&mut from))? {
        let call = match message {
            FromWorker::Call(call) => call,
            FromWorker::Suspended { call, size } => {
                let state = unless_closed(wire::receive_state(&mut from, size))?;
                return Ok(
                    state.map(|state| LastMessage::Ended(Outcome::Suspended { call, state }))
                );
            }
            FromWorker::Exited => return Ok(Some(LastMessage::Ended(Outcome::Exited(0)))),
            FromWorker::TimedOut => return Ok(Some(LastMessage::Ended(Outcome::TimedOut))),
            FromWorker::OutOfMemory => return Ok(Some(LastMessage::Ended(Outcome::OutOfMemory))),
            FromWorker::Unreadable(why) => return Ok(Some(LastMessage::Unreadable(why))),
        };
        let answer: ToWorker = match functions.get_mut(&call.function) {
            Some(function) => depth::answer(function(call)),
            // The interpreter only calls functions that are in its scope.
            None => return Err(Fault::Unexpected(call.function)),
        };
        let sent = match wire::send(&mut to, &answer) {
            Err(fault @ Fault::TooLong) => wire::send(&mut to, &ToWorker::Err(fault.to_string())),
            sent => sent,
        };
        // The worker has ended and doesn't need the answer.
        if let Err(Fault::Io(_)) = sent {
            return Ok(None);
        }
        sent?;
    }
    Ok(None)
}

/// Turns an I/O error into the end of the messages: the socket of a killed process may be reset instead of closed.
fn unless_closed<T>(received: Result<Option<T>, Fault>) -> Result<Option<T>, Fault> {
    match received {
        Err(Fault::Io(_)) => Ok(None),
        other => other,
    }
}

#[cfg(test)]
mod tests;

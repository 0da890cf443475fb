//! Monty in this process: an answer within microseconds, without a jail.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use serde_json::Value;

use super::host::{Host, Stream};
use super::interpreter::{self, Ended, Fault, Start};
use super::memory;
use super::stdio::{Block, Lines};
use super::task::Outcome;
use crate::{
    Backend, Call, End, Error, Exception, Finished, Function, Program, Sandbox, Task, Usage,
    Warning, process,
};
use minivm_machine::output::{Capped, Pending};
use minivm_machine::session::Event;

/// The sandbox that interprets code in the calling thread.
///
/// The code can use nothing of the host but the task's functions; the interpreter itself limits time, memory and recursion. So this
/// is for code that may be wrong but isn't hostile: code that makes the interpreter abort, such as an expression of ten thousand
/// terms, ends this process. [`Monty`](crate::Monty) interprets it in a process of its own.
///
/// A limit on memory needs [`Allocator`](super::Allocator) as the program's global allocator, and counts the allocations of all
/// threads, so tasks with such a limit run one at a time. A signal ends the code within a few hundred instructions, unless the code
/// catches `KeyboardInterrupt`; it doesn't interrupt a function of the host.
///
/// ```
/// use minivm_sandbox::monty::InProcess;
/// use minivm_sandbox::{End, Sandbox, Task};
///
/// let mut task = Task::code("print(double(21))");
/// task.functions.insert(
///     "double".into(),
///     Box::new(|call| match call.args.first().and_then(|arg| arg.as_i64()) {
///         Some(number) => Ok((2 * number).into()),
///         None => Err("double() takes a number".into()),
///     }),
/// );
/// assert_eq!(InProcess.run(task).unwrap().end, End::Exited(0));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Sandbox for InProcess {
    fn backend(&self) -> Backend {
        Backend::Monty
    }

    fn boundary(&self) -> &'static str {
        "an interpreter in this process that has nothing of the host"
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn start(&self, task: Task) -> Result<Finished, Error> {
        let began = Instant::now();
        let _claim = match task.limits.memory {
            None => None,
            Some(_) => Some(memory::claim().map_err(not_counted)?),
        };
        let scope = super::scope(&task, task.limits.memory)?;
        let (start, mut host) = Local::new(task);
        let ended = interpreter::run(start, &scope, &mut host);
        let flushed = host.flush();
        let (end, exception) = host.end(ended, flushed)?;
        Ok(Finished {
            end,
            exception,
            truncated: host.stdout.truncated || host.stderr.truncated,
            warnings: host
                .stderr
                .failed
                .iter()
                .map(Warning::not_written)
                .collect(),
            usage: Usage {
                total: began.elapsed(),
                ..Usage::default()
            },
            machine: None,
        })
    }
}

fn not_counted(why: &str) -> Error {
    Error::Unavailable {
        backend: Backend::Monty,
        why: format!("the memory of a task within this process cannot be limited: {why}"),
        hint: "use the sandbox Monty, which has a process for each task".into(),
    }
}

/// The interpreter's host in this process.
struct Local {
    functions: BTreeMap<String, Function>,
    stdin: Option<Lines>,
    stdout: Capped,
    stderr: Capped,
    block: Block,
    events: Receiver<Event>,
    stopped: Option<u8>,
}

impl Local {
    fn new(task: Task) -> (Start, Local) {
        let limit = task.limits.output;
        let host = Local {
            functions: task.functions,
            stdin: task.stdin.map(Lines::new),
            stdout: Capped::new(task.stdout, limit, &Pending::default()),
            stderr: Capped::new(task.stderr, limit, &Pending::default()),
            block: Block::new(),
            events: task.events,
            stopped: None,
        };
        let start = match task.program {
            Program::Code(code) => Start::Code(code),
            Program::Resume { state, returned } => Start::Resume { state, returned },
            // Unreachable: the backend doesn't declare commands.
            Program::Command(_) => Start::Code(String::new()),
        };
        (start, host)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.block.flush(|bytes| self.stdout.write(bytes))
    }

    fn end(
        &self,
        ended: Result<Ended, Fault>,
        flushed: io::Result<()>,
    ) -> Result<(End, Option<Exception>), Error> {
        if let Some(signal) = self.stopped {
            return Ok((End::Stopped(signal), None));
        }
        let ended = match (ended, flushed) {
            (Ok(ended), Ok(())) => ended,
            (Err(fault @ Fault::State(_)), _) => {
                return Err(Error::Failed {
                    backend: Backend::Monty,
                    detail: fault.to_string(),
                });
            }
            (Err(Fault::Host(error)), _) | (Ok(_), Err(error)) => return host_failed(error),
        };
        let exception = match ended.outcome {
            Outcome::Exited(1..) => ended.traceback.as_deref().and_then(Exception::read),
            _ => None,
        };
        Ok((super::end(ended.outcome), exception))
    }
}

/// Returns the end for an error of the host, which is most often one of writing output. A line of input that is too long is an error
/// without a system error code.
fn host_failed(error: io::Error) -> Result<(End, Option<Exception>), Error> {
    if error.raw_os_error().is_none() && error.kind() == io::ErrorKind::Other {
        return Err(super::failed(&error.to_string()));
    }
    Ok((process::output_failed(error)?, None))
}

impl Host for Local {
    fn call(&mut self, call: Call) -> io::Result<Result<Value, String>> {
        // The function may write to the same output.
        self.flush()?;
        Ok(match self.functions.get_mut(&call.function) {
            Some(function) => function(call),
            None => Err(format!("name '{}' is not defined", call.function)),
        })
    }

    fn write(&mut self, to: Stream, text: &str) -> io::Result<()> {
        match to {
            Stream::Stdout => self.block.push(text),
            Stream::Stderr => {
                self.flush()?;
                return self.stderr.write_or_drop(text.as_bytes());
            }
        }
        match self.block.is_full() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn poll(&mut self) -> io::Result<()> {
        for event in self.events.try_iter() {
            if let Event::Signal(signal) | Event::Stop(signal) = event {
                self.stopped = Some(signal);
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        match self.block.is_old() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        self.flush()?;
        match &mut self.stdin {
            Some(lines) => lines.next(),
            None => Ok(String::new()),
        }
    }
}

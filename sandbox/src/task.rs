//! What is to be run, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::Value;

use super::{Backend, Capability, Error, Exception, VmOptions};
use minivm_machine::session::Event;
use minivm_machine::streams::in_memory;
use minivm_machine::{Call, End, Files, Place};

/// The most bytes of [`Program::Code`]: what Linux takes as one argument.
pub const CODE_MAX: usize = (128 << 10) - 1;

/// What a sandbox is to run.
#[derive(Clone, Debug, PartialEq)]
pub enum Program {
    /// Python code, at most [`CODE_MAX`] bytes.
    Code(String),
    /// A command and its arguments.
    Command(Vec<OsString>),
    /// Code that was suspended: see [`End::Suspended`].
    Resume {
        /// What it was kept as.
        state: Vec<u8>,
        /// What the function returned that it had called, or the message of an exception.
        returned: Result<Value, String>,
    },
}

/// A function of the host's that the code may call. What it returns as an error is the message of an exception there.
pub type Function = Box<dyn FnMut(Call) -> Result<Value, String> + Send>;

/// What a task may use up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take: in a microVM from the command's start, in the others from the sandbox's.
    pub time: Option<Duration>,
    /// Bytes of memory: the machine's in a microVM, all of the sandbox's processes' in the others. Where it isn't said each has
    /// a default.
    pub memory: Option<u64>,
    /// Bytes of each output that are passed on. What comes after them is dropped.
    pub output: Option<u64>,
}

impl Limits {
    /// The same, with so much memory where nothing is said of it.
    #[must_use]
    pub(super) fn with_memory(self, bytes: u64) -> Limits {
        Limits {
            memory: self.memory.or(Some(bytes)),
            ..self
        }
    }
}

/// A program with its surroundings.
pub struct Task {
    /// What to run.
    pub program: Program,
    /// Its input, if it gets any.
    pub stdin: Option<OwnedFd>,
    /// Its output.
    pub stdout: Box<dyn Write + Send>,
    /// The command's stderr.
    pub stderr: Box<dyn Write + Send>,
    /// Environment variables, beside those that the image or the sandbox sets itself.
    pub env: Vec<(OsString, OsString)>,
    /// Files and folders to copy in, to absolute paths.
    pub files: Vec<Files>,
    /// What it may use up.
    pub limits: Limits,
    /// Functions that it may call.
    pub functions: BTreeMap<String, Function>,
    /// Functions at whose call it is suspended.
    pub suspend_at: BTreeSet<String>,
    /// What happens to it while it runs. A signal ends it everywhere but in a microVM, whose command gets it.
    pub events: Receiver<Event>,
    /// What a virtual machine alone can do with it.
    pub vm: VmOptions,
}

impl Task {
    /// A program without input, whose outputs go nowhere.
    pub fn new(program: Program) -> Self {
        Task {
            program,
            stdin: None,
            stdout: Box::new(io::sink()),
            stderr: Box::new(io::sink()),
            env: Vec::new(),
            files: Vec::new(),
            limits: Limits::default(),
            functions: BTreeMap::new(),
            suspend_at: BTreeSet::new(),
            events: mpsc::channel().1,
            vm: VmOptions::default(),
        }
    }

    /// Python code without input, whose outputs go nowhere.
    pub fn code(code: impl Into<String>) -> Self {
        Task::new(Program::Code(code.into()))
    }

    /// Gives it these bytes to read.
    ///
    /// # Errors
    ///
    /// Where there is no memory to keep them.
    pub fn with_input(mut self, bytes: &[u8]) -> io::Result<Self> {
        self.stdin = Some(in_memory(bytes)?);
        Ok(self)
    }

    /// What a sandbox must be able to do to run it.
    pub fn needs(&self) -> Vec<Capability> {
        let resumes = matches!(self.program, Program::Resume { .. });
        let needs = [
            (
                matches!(self.program, Program::Command(_)),
                Capability::Commands,
            ),
            (!self.files.is_empty(), Capability::Files),
            (!self.env.is_empty(), Capability::Environment),
            (!self.functions.is_empty(), Capability::HostFunctions),
            (self.limits.memory.is_some(), Capability::MemoryLimit),
            (resumes || !self.suspend_at.is_empty(), Capability::Snapshot),
        ];
        let needed = needs.into_iter().filter(|(needed, _)| *needed);
        let needed = needed.map(|(_, capability)| capability);
        needed.chain(self.vm.needs()).collect()
    }

    /// The user's variables as text, for sandboxes whose Python has no others.
    pub(super) fn texts(&self, backend: Backend) -> Result<Vec<(String, String)>, Error> {
        let text = |(name, value): &(OsString, OsString)| {
            let texts = name.to_str().zip(value.to_str());
            let texts = texts.map(|(name, value)| (name.to_owned(), value.to_owned()));
            texts.ok_or_else(|| Error::Failed {
                backend,
                detail: format!(
                    "the environment variable {name:?} is not UTF-8, which it needs: leave it out, or take --backend microvm"
                ),
            })
        };
        self.env.iter().map(text).collect()
    }
}

/// What a task took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// From the call to its return.
    pub total: Duration,
    /// Time that processors spent in user mode, as far as it is known.
    pub user_time: Option<Duration>,
    /// And in the kernel.
    pub system_time: Option<Duration>,
    /// The most bytes of this host's memory that the sandbox held at a time, as far as it is known.
    pub peak_memory: Option<u64>,
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// The exception that ended Python code, as its traceback has it. The code can write what it likes there.
    pub exception: Option<Exception>,
    /// Whether output was dropped for being too much.
    pub truncated: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What it took.
    pub usage: Usage,
    /// What is known of its virtual machine; `None` for sandboxes without one.
    pub machine: Option<MachineRun>,
}

/// A task's run in a virtual machine.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineRun {
    /// Where the machine ran.
    pub place: Place,
    /// Whether it went on from a template instead of booting.
    pub warm: bool,
    /// Whether files could not be copied out; the warnings say which.
    pub copy_failed: bool,
    /// Whether the guest's kernel ended a process for want of memory, be it the command or another one.
    pub out_of_memory: bool,
    /// The most bytes of the guest's memory that the command had.
    pub peak_memory: Option<u64>,
    /// From the task's begin until the machine ran.
    pub build: Duration,
    /// From there until the guest's init started, as far as that is known, else until it said hello.
    pub boot: Duration,
    /// From init's start until it said hello, by the guest's own account.
    pub init: Option<Duration>,
    /// From there to the command's start.
    pub setup: Duration,
    /// From there to its end.
    pub run: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_task_needs_what_it_uses_and_nothing_else() {
        assert_eq!(Task::code("pass").needs(), []);
        let mut task = Task::new(Program::Command(vec!["true".into()]));
        task.env.push(("A".into(), "1".into()));
        task.limits.memory = Some(1 << 20);
        task.suspend_at.insert("ask".into());
        assert_eq!(
            task.needs(),
            [
                Capability::Commands,
                Capability::Environment,
                Capability::MemoryLimit,
                Capability::Snapshot
            ]
        );
    }

    #[test]
    fn variables_that_are_not_text_are_refused_by_backends_without_others() {
        let mut task = Task::code("pass");
        let odd = OsString::from_vec(b"\xff".to_vec());
        task.env = vec![("A".into(), odd)];
        for backend in [Backend::Deno, Backend::Monty] {
            let error = task.texts(backend).unwrap_err().to_string();
            assert!(error.contains("\"A\" is not UTF-8"), "{error}");
        }
    }

    #[test]
    fn bytes_are_an_input() {
        let task = Task::code("pass").with_input(b"hello").unwrap();
        let mut read = String::new();
        File::from(task.stdin.unwrap())
            .read_to_string(&mut read)
            .unwrap();
        assert_eq!(read, "hello");
    }
}

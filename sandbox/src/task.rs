//! A task for a sandbox, and its result.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::Value;

use super::{Backend, Capability, Error, Exception, VmOptions};
use minivm_machine::folders::Volume;
use minivm_machine::jail::CpuQuota;
use minivm_machine::session::Event;
use minivm_machine::streams::in_memory;
use minivm_machine::{Accel, Call, CopyIn, End, Walls, Warning};

/// The largest size of [`Program::Code`] in bytes: that of one argument in Linux (MAX_ARG_STRLEN, without its end).
pub const CODE_MAX: usize = (128 << 10) - 1;

/// A program for a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub enum Program {
    /// Python code, at most [`CODE_MAX`] bytes.
    Code(String),
    /// A command and its arguments.
    Command(Vec<OsString>),
    /// Suspended code: see [`End::Suspended`].
    Resume {
        /// The bytes that it was kept as.
        state: Vec<u8>,
        /// The value that its call returns, or the message of the exception that it raises.
        returned: Result<Value, String>,
    },
}

/// A function of the host that the code may call. An error is the message of an exception in the code.
pub type Function = Box<dyn FnMut(Call) -> Result<Value, String> + Send>;

/// Limits of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The time limit: in a microVM from the command's start, in the others from the sandbox's.
    pub time: Option<Duration>,
    /// Memory in bytes: that of the machine in a microVM, that of all the sandbox's processes in the others. `None` for the
    /// backend's default.
    pub memory: Option<u64>,
    /// Bytes of each output that are passed on. Further bytes are dropped.
    pub output: Option<u64>,
    /// Processor time of the machine.
    pub cpu: Option<CpuQuota>,
}

impl Limits {
    /// Returns these limits, with a default for memory.
    #[must_use]
    pub(super) fn with_memory(self, bytes: u64) -> Limits {
        Limits {
            memory: self.memory.or(Some(bytes)),
            ..self
        }
    }
}

/// A program with its input, outputs, environment, files and limits.
pub struct Task {
    /// The code or the command.
    pub program: Program,
    /// The program's stdin; `None` for an empty one.
    pub stdin: Option<OwnedFd>,
    /// The program's stdout.
    pub stdout: Box<dyn Write + Send>,
    /// The program's stderr.
    pub stderr: Box<dyn Write + Send>,
    /// Environment variables, beside those that the image or the sandbox sets itself.
    pub env: Vec<(OsString, OsString)>,
    /// Files and folders to copy in, to absolute paths.
    pub files: CopyIn,
    /// Folders of this host's to share. gVisor bounds none of them: only a microVM enforces
    /// [`Limits`](minivm_machine::folders::Limits).
    pub volumes: Vec<Volume>,
    /// The program's limits.
    pub limits: Limits,
    /// Functions of the host that the code may call.
    pub functions: BTreeMap<String, Function>,
    /// Names of functions whose call suspends the code.
    pub suspend_at: BTreeSet<String>,
    /// Signals and changes of the terminal's size while the task runs. A signal ends the task; in a microVM the command gets it.
    pub events: Receiver<Event>,
    /// Options that only a virtual machine supports.
    pub vm: VmOptions,
}

impl Task {
    /// Makes a task of a program without input, whose outputs are dropped.
    pub fn new(program: Program) -> Self {
        Task {
            program,
            stdin: None,
            stdout: Box::new(io::sink()),
            stderr: Box::new(io::sink()),
            env: Vec::new(),
            files: CopyIn::default(),
            volumes: Vec::new(),
            limits: Limits::default(),
            functions: BTreeMap::new(),
            suspend_at: BTreeSet::new(),
            events: mpsc::channel().1,
            vm: VmOptions::default(),
        }
    }

    /// Makes a task of Python code without input, whose outputs are dropped.
    pub fn code(code: impl Into<String>) -> Self {
        Task::new(Program::Code(code.into()))
    }

    /// Sets the task's stdin to these bytes.
    ///
    /// # Errors
    ///
    /// The system's error where there is no memory to keep them.
    pub fn with_input(mut self, bytes: &[u8]) -> io::Result<Self> {
        self.stdin = Some(in_memory(bytes)?);
        Ok(self)
    }

    /// Returns the capabilities that a sandbox needs to run the task.
    pub(super) fn needs(&self) -> Vec<Capability> {
        let resumes = matches!(self.program, Program::Resume { .. });
        let has_rules =
            |volume: &Volume| !volume.folder.hide.is_empty() || !volume.folder.protect.is_empty();
        let needs = [
            (
                matches!(self.program, Program::Command(_)),
                Capability::Commands,
            ),
            (!self.files.is_empty(), Capability::Files),
            (!self.volumes.is_empty(), Capability::Folders),
            (self.volumes.iter().any(has_rules), Capability::FolderRules),
            (!self.env.is_empty(), Capability::Environment),
            (!self.functions.is_empty(), Capability::HostFunctions),
            (self.limits.memory.is_some(), Capability::MemoryLimit),
            (self.limits.cpu.is_some(), Capability::CpuQuota),
            (resumes || !self.suspend_at.is_empty(), Capability::Snapshot),
        ];
        let needed = needs.into_iter().filter(|(needed, _)| *needed);
        let needed = needed.map(|(_, capability)| capability);
        needed.chain(self.vm.needs()).collect()
    }

    /// Returns the task's variables as text, for sandboxes whose Python supports no other values.
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

/// Time and memory that a task used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time from the call of [`Sandbox::run`](crate::Sandbox::run) to its return.
    pub total: Duration,
    /// CPU time in user mode; `None` where the sandbox doesn't measure it.
    pub user_time: Option<Duration>,
    /// CPU time in the kernel; `None` where the sandbox doesn't measure it.
    pub system_time: Option<Duration>,
    /// Peak memory of the sandbox on this host, in bytes; `None` where it could not be measured.
    pub peak_memory: Option<u64>,
}

/// The result of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The task's end.
    pub end: End,
    /// The exception that ended Python code, read from the traceback on its stderr. The code can forge it.
    pub exception: Option<Exception>,
    /// Whether output was dropped: beyond the limit, or because it could not be written.
    pub truncated: bool,
    /// Warnings for the user.
    pub warnings: Vec<Warning>,
    /// Time and memory that the task used.
    pub usage: Usage,
    /// The run's virtual machine; `None` for sandboxes without one.
    pub machine: Option<MachineRun>,
}

/// A task's run in a virtual machine.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineRun {
    /// Whether the machine ran on this host's KVM or in the lab.
    pub accel: Accel,
    /// Whether the machine was resumed from a template instead of booting.
    pub warm: bool,
    /// The walls around the machine's monitor; `None` where it has none, as in the lab.
    pub walls: Option<Walls>,
    /// Whether files could not be copied out; the warnings name them.
    pub copy_failed: bool,
    /// Whether the guest kernel's OOM killer ended a process: the command or another one.
    pub out_of_memory: bool,
    /// Peak memory of the command in the guest, in bytes; `None` where the guest didn't report it.
    pub peak_memory: Option<u64>,
    /// Time from the task's start until the machine ran.
    pub build: Duration,
    /// Time from there until the guest's init started, or until its hello where `init` is `None`.
    pub boot: Duration,
    /// Time from init's start until its hello, as the guest reports it.
    pub init: Option<Duration>,
    /// Time from the hello to the command's start.
    pub setup: Duration,
    /// Time from the command's start to its end.
    pub run: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_machine::folders::{Access, Folder};
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
    fn a_folder_with_patterns_needs_rules() {
        let needs = |access| {
            let folder = Folder::new("/", access);
            let at = "/work".into();
            let mut task = Task::code("pass");
            task.volumes.push(Volume { folder, at });
            task.needs()
        };
        assert_eq!(needs(Access::ReadOnly), [Capability::Folders]);
        assert_eq!(
            needs(Access::ReadWrite),
            [Capability::Folders, Capability::FolderRules],
            "its hooks are protected"
        );
    }

    #[test]
    fn backends_whose_variables_are_text_refuse_others() {
        let mut task = Task::code("pass");
        let odd = OsString::from_vec(b"\xff".to_vec());
        task.env = vec![("A".into(), odd)];
        for backend in [Backend::Deno, Backend::Monty] {
            let error = task.texts(backend).unwrap_err().to_string();
            assert!(error.contains("\"A\" is not UTF-8"), "{error}");
        }
    }

    #[test]
    fn bytes_can_be_the_stdin() {
        let task = Task::code("pass").with_input(b"hello").unwrap();
        let mut read = String::new();
        File::from(task.stdin.unwrap())
            .read_to_string(&mut read)
            .unwrap();
        assert_eq!(read, "hello");
    }
}

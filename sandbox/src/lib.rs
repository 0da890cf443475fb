//! One trait, five sandboxes: the same task in a microVM, in gVisor, in Monty, in Deno with Pyodide, in Chromium with
//! Pyodide.
//!
//! A [`Task`] is Python code or a command, with its input, its outputs and its limits. [`Sandbox::run`] runs it to its end and
//! says what came of it: [`Finished`]. What a sandbox can't do it has not declared ([`Sandbox::capabilities`]), and a task that
//! needs it is refused before anything runs.
//!
//! An adapter builds a command and reads an answer. What the adapters share is here: `process` runs a program in a jail
//! ([`minivm_machine::jail`]) with limits to its end, and `exception` reads tracebacks.

mod bundle;
pub mod chromium;
mod deno;
pub mod exception;
mod gvisor;
mod host;
mod microvm;
pub mod monty;
mod packed;
mod process;
mod pyodide;
pub mod reach;
pub mod rootless;
mod stop_signal;
mod task;
pub mod tools;
mod turducken;
mod vm_options;
mod watch;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use minivm_guest::inherited;
use minivm_machine::{images, jail, kernel, templates};

pub use chromium::Chromium;
pub use deno::Deno;
pub use exception::Exception;
pub use gvisor::Gvisor;
pub use host::Host;
pub use microvm::Microvm;
pub use minivm_machine::{Call, End};
pub use monty::Monty;
pub use task::{CODE_MAX, Finished, Function, Limits, MachineRun, Program, Task, Usage};
pub use turducken::Turducken;
pub use vm_options::{Entrypoint, Started, VmOptions};

/// The five.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// A virtual machine on KVM, with a Linux kernel of its own.
    Microvm,
    /// A kernel in user space.
    Gvisor,
    /// A Python interpreter that has nothing of the host.
    Monty,
    /// CPython as WebAssembly, in Deno.
    Deno,
    /// CPython as WebAssembly, in a browser.
    Chromium,
}

impl Backend {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Backend; 5] = [
        Backend::Microvm,
        Backend::Gvisor,
        Backend::Monty,
        Backend::Deno,
        Backend::Chromium,
    ];

    /// Whether it runs on a container image.
    pub fn needs_image(self) -> bool {
        self.capabilities().contains(&Capability::Commands)
    }

    /// What it can do, beside running Python code.
    pub fn capabilities(self) -> &'static [Capability] {
        use Capability::{
            Commands, Container, CopyOut, Environment, Files, HostFunctions, Machine, MemoryLimit,
            Packages, Snapshot, Terminal,
        };
        match self {
            Backend::Microvm => &[
                Commands,
                Packages,
                Files,
                Environment,
                MemoryLimit,
                Container,
                Terminal,
                CopyOut,
                Machine,
            ],
            Backend::Gvisor => &[Commands, Packages, Files, Environment, MemoryLimit],
            Backend::Monty => &[Environment, HostFunctions, MemoryLimit, Snapshot],
            Backend::Deno | Backend::Chromium => &[Files, Environment, MemoryLimit],
        }
    }

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Microvm => "microvm",
            Backend::Gvisor => "gvisor",
            Backend::Monty => "monty",
            Backend::Deno => "deno",
            Backend::Chromium => "chromium",
        }
    }
}

impl clap::ValueEnum for Backend {
    fn value_variants<'a>() -> &'a [Self] {
        &Backend::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// What a sandbox may be able to do, beside running Python code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Run any command of an image.
    Commands,
    /// Use Python packages that the image holds.
    Packages,
    /// Get files copied in.
    Files,
    /// See environment variables that it is given.
    Environment,
    /// Reach a network.
    Network,
    /// Call functions of the host's.
    HostFunctions,
    /// Be held to a limit on memory.
    MemoryLimit,
    /// Be suspended at a call, kept as bytes, and resumed.
    Snapshot,
    /// Give a command another user, working folder, host name, entrypoint, limits or file systems than the image's.
    Container,
    /// Give a command a terminal.
    Terminal,
    /// Get files copied out when the command has ended.
    CopyOut,
    /// Be a machine with a kernel, vCPUs and an accelerator of the user's choice.
    Machine,
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Capability::Commands => "commands",
            Capability::Packages => "packages",
            Capability::Files => "way to copy files in",
            Capability::Environment => "environment variables",
            Capability::Network => "network",
            Capability::HostFunctions => "host functions",
            Capability::MemoryLimit => "memory limit",
            Capability::Snapshot => "snapshots",
            Capability::Container => "settings for a command in an image",
            Capability::Terminal => "terminal",
            Capability::CopyOut => "way to copy files out",
            Capability::Machine => "virtual machine",
        })
    }
}

/// A way to run code that nobody trusts.
pub trait Sandbox: Send + Sync {
    /// Which one it is.
    fn backend(&self) -> Backend;

    /// All that it can do, beside running Python code: as its backend can, if it isn't less.
    fn capabilities(&self) -> &'static [Capability] {
        self.backend().capabilities()
    }

    /// What stands between the code and the host, in a few words.
    fn boundary(&self) -> &'static str;

    /// Looks whether all is there that it needs. Nothing is run for it.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], with what to do about it.
    fn check(&self) -> Result<(), Error>;

    /// Runs a task that needs nothing but what this sandbox has declared. Callers use [`Sandbox::run`].
    ///
    /// # Errors
    ///
    /// As `run`'s.
    fn start(&self, task: Task) -> Result<Finished, Error>;

    /// Runs a task to its end, and leaves nothing of it behind: no process, no file.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] where the task needs what this sandbox hasn't declared, [`Error::Unavailable`] where a program
    /// is missing, and others where the sandbox itself failed. Whatever the code does is no error but an [`End`].
    fn run(&self, task: Task) -> Result<Finished, Error> {
        if let Program::Code(code) = &task.program {
            python(code)?;
        }
        let able = self.capabilities();
        match task.needs().into_iter().find(|need| !able.contains(need)) {
            Some(what) => Err(Error::NotSupported {
                backend: self.backend(),
                what,
            }),
            None => {
                // A machine tells it by itself.
                let left_out = match self.backend() {
                    Backend::Microvm => Vec::new(),
                    _ => minivm_machine::left_out(&task.files)?,
                };
                if matches!(
                    self.backend(),
                    Backend::Gvisor | Backend::Deno | Backend::Chromium
                ) {
                    let limits = inherited::check_for_runtimes();
                    limits.map_err(|refused| Error::Failed {
                        backend: self.backend(),
                        detail: refused.to_string(),
                    })?;
                }
                let finished = self.start(task);
                let mut finished = finished.map_err(|error| error.of(self.backend()))?;
                finished.warnings.splice(0..0, left_out);
                Ok(finished)
            }
        }
    }
}

/// Why a sandbox could not run a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The task needs what the sandbox can't do.
    #[error("the backend {backend} has no {what}: take another one")]
    NotSupported {
        /// Which sandbox.
        backend: Backend,
        /// What it can't do.
        what: Capability,
    },
    /// Something is not installed, or doesn't work on this host.
    #[error("the backend {backend} is not available: {why}; {hint}")]
    Unavailable {
        /// Which sandbox.
        backend: Backend,
        /// What is missing.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// The task asks for what isn't valid, or isn't there in the image.
    #[error("{0}")]
    Request(String),
    /// The code can't be handed over.
    #[error(
        "the code is longer than {CODE_MAX} bytes, or has a zero byte in it: put it into a file"
    )]
    Code,
    /// The sandbox broke.
    #[error("the backend {backend} failed: {detail}")]
    Failed {
        /// Which sandbox.
        backend: Backend,
        /// What it said.
        detail: String,
    },
    /// The microVM's error.
    #[error(transparent)]
    Machine(#[from] minivm_machine::Error),
    /// There is no template for it, or it is of no use.
    #[error(transparent)]
    Template(#[from] templates::Error),
    /// There is no kernel for it.
    #[error(transparent)]
    Kernel(#[from] kernel::Missing),
    /// The image can't be used.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// There is no jail. [`Sandbox::run`] says instead which sandbox it was for.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// Something of the host's could not be had.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// With the sandbox that it befell.
    fn of(self, backend: Backend) -> Self {
        match self {
            Error::Jail(jail::Error::Unavailable { why, hint }) => {
                Error::Unavailable { backend, why, hint }
            }
            Error::Jail(jail::Error::Failed(detail)) => Error::Failed { backend, detail },
            Error::Jail(jail::Error::Host { action, source }) => Error::Host { action, source },
            error => error,
        }
    }
}

/// What a backend is made of on this host beside an image, in a few words, where all of it is there. Nothing is run or made.
///
/// # Errors
///
/// [`Error::Unavailable`], with what to do about it.
pub fn find_parts(backend: Backend, cache: &Path, worker: &Path) -> Result<String, Error> {
    let name = |path: PathBuf| path.display().to_string();
    if matches!(
        backend,
        Backend::Gvisor | Backend::Monty | Backend::Chromium
    ) {
        worker_is_there(backend, worker)?;
    }
    match backend {
        Backend::Microvm => Ok(name(kernel::find()?)),
        Backend::Gvisor => gvisor::find_runsc(cache).map(name),
        Backend::Monty => Ok("built in".into()),
        Backend::Deno => deno::find(cache).map(name),
        Backend::Chromium => chromium::find().map(name),
    }
}

/// Looks whether the jail can be made in which all run that are no machines.
///
/// # Errors
///
/// [`Error::Unavailable`], with what to do about it.
pub fn check_jail(backend: Backend) -> Result<(), Error> {
    jail::check().map_err(|error| Error::from(error).of(backend))
}

/// The command that runs code in an image's Python. Its output is not buffered, or what was printed before a limit would be
/// lost.
///
/// # Errors
///
/// [`Error::Code`] where it can't be an argument.
pub fn python(code: &str) -> Result<Vec<OsString>, Error> {
    if code.len() > CODE_MAX || code.contains('\0') {
        return Err(Error::Code);
    }
    Ok([minivm_machine::PYTHON, "-u", "-c", code]
        .map(Into::into)
        .to_vec())
}

/// Looks whether the program for inside is there.
fn worker_is_there(backend: Backend, worker: &Path) -> Result<(), Error> {
    if worker.is_file() {
        return Ok(());
    }
    Err(Error::Unavailable {
        backend,
        why: format!("there is no program {}", worker.display()),
        hint: "it is built with minivm, and belongs beside it".into(),
    })
}

/// Names the action in the error of a system call.
fn cannot(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::Host { action, source }
}

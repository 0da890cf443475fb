//! Five sandboxes for untrusted code behind one trait: a microVM, gVisor, Monty, Deno with Pyodide, and Chromium with Pyodide.
//!
//! A [`Task`] is Python code or a command, with its input, outputs and limits. [`Host::open`] opens the sandbox of a [`Backend`],
//! and [`Sandbox::run`] runs a task to its end and returns [`Finished`]: how it ended, its exception, warnings and usage. A
//! sandbox declares its capabilities ([`Sandbox::capabilities`]); a task that needs another one is refused before anything runs.
//!
//! | backend | what runs the code | boundary | needs |
//! |---|---|---|---|
//! | [`Backend::Microvm`] | an image's programs on a Linux kernel of their own | hardware virtualization (KVM) | an image, a kernel |
//! | [`Backend::Gvisor`] | an image's programs on a kernel in user space | that kernel, in a jail | an image, `runsc` |
//! | [`Backend::Monty`] | an interpreter of a part of Python | that interpreter, in a process in a jail | – |
//! | [`Backend::Deno`] | CPython compiled to WebAssembly | WebAssembly, Deno's permissions, a jail | Deno, Pyodide |
//! | [`Backend::Chromium`] | CPython compiled to WebAssembly | WebAssembly, Chromium's sandbox, a jail | Chromium, Pyodide |
//!
//! The jail is bubblewrap's namespaces with a user, filters of system calls and limits: see [`minivm_machine::jail`]. gVisor, Monty
//! and Chromium run the program `minivm-worker` in it.
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//!
//! use minivm_machine::{Accel, cache};
//! use minivm_sandbox::{Backend, End, Host, Task};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let host = Host {
//!         worker: Host::worker_beside(Path::new("/usr/local/bin/minivm")),
//!         cache: cache::folder().ok_or("neither XDG_CACHE_HOME nor HOME is set")?,
//!         image: None, // Monty needs none; `minivm_image::open` opens one
//!         kernel: None,
//!         accel: Accel::Kvm,
//!     };
//!     let mut task = Task::code("print(2 + 2)");
//!     task.stdout = Box::new(std::io::stdout());
//!     task.limits.time = Some(Duration::from_secs(5));
//!     let finished = host.open(Backend::Monty)?.run(task)?;
//!     assert_eq!(finished.end, End::Exited(0));
//!     Ok(())
//! }
//! ```
//!
//! # Modules
//!
//! - `task`, `vm_options`: the task, and its options for a virtual machine alone; `host`: where sandboxes are opened.
//! - `microvm`, `gvisor` (with `bundle` and [`rootless`]), [`monty`], `deno` and [`chromium`] (with `pyodide`): the backends. Each
//!   makes a command or a machine of a task, and reads its end. [`Turducken`] puts three of them inside each other.
//! - `process` runs a jailed program with limits to its end; `watch` measures its memory where no control group can.
//! - `exception` reads tracebacks, `packed` makes an archive of a task's files, `stop_signal` reads an image's signal.
//! - [`reach`] tries what code in a sandbox can reach of the host.
//! - [`tools`] installs `runsc`, Deno and Pyodide.
//!
//! `minivm-worker` is made of [`monty`], [`chromium`] and [`rootless`]; the feature `worker` (on by default) has its interpreter and
//! its driver of Chromium.

mod bundle;
pub mod chromium;
mod deno;
mod exception;
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
use std::path::{Path, PathBuf};

use minivm_guest::inherited;
use minivm_image::io_error::HostError;
use minivm_machine::{folders, images, jail, kernel, templates};

use chromium::Chromium;
use deno::Deno;
pub use exception::Exception;
use gvisor::Gvisor;
pub use host::Host;
pub use microvm::Microvm;
pub use minivm_machine::{Call, End, Warning};
pub use monty::Monty;
pub use task::{CODE_MAX, Finished, Function, Limits, MachineRun, Program, Task, Usage};
pub use turducken::Turducken;
pub use vm_options::{Entrypoint, Started, VmOptions};

/// A kind of sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// A virtual machine on KVM, with a Linux kernel of its own.
    Microvm,
    /// A container on a kernel in user space.
    Gvisor,
    /// A Python interpreter without access to the host.
    Monty,
    /// CPython as WebAssembly, in Deno.
    Deno,
    /// CPython as WebAssembly, in a browser.
    Chromium,
}

impl Backend {
    /// All backends, in the order in which they are listed.
    pub const ALL: [Backend; 5] = [
        Backend::Microvm,
        Backend::Gvisor,
        Backend::Monty,
        Backend::Deno,
        Backend::Chromium,
    ];

    /// Returns whether the backend needs a container image.
    pub fn needs_image(self) -> bool {
        self.capabilities().contains(&Capability::Commands)
    }

    /// Returns the backend's capabilities beside running Python code.
    pub fn capabilities(self) -> &'static [Capability] {
        use Capability::{
            Commands, Container, CopyOut, CpuQuota, Environment, Files, FolderRules, Folders,
            HostFunctions, Machine, MemoryLimit, Packages, Snapshot, Terminal,
        };
        match self {
            Backend::Microvm => &[
                Commands,
                Packages,
                Files,
                Folders,
                FolderRules,
                Environment,
                MemoryLimit,
                Container,
                Terminal,
                CopyOut,
                CpuQuota,
                Machine,
            ],
            Backend::Gvisor => &[Commands, Packages, Files, Folders, Environment, MemoryLimit],
            Backend::Monty => &[Environment, HostFunctions, MemoryLimit, Snapshot],
            Backend::Deno | Backend::Chromium => &[Files, Environment, MemoryLimit],
        }
    }

    /// Returns the name that `--backend` takes.
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

/// A capability of sandboxes, beside running Python code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Running any command of an image.
    Commands,
    /// Using Python packages of the image.
    Packages,
    /// Copying files in.
    Files,
    /// Sharing folders of the host's.
    Folders,
    /// Hiding and protecting parts of a shared folder, and bounding its growth.
    FolderRules,
    /// Setting environment variables.
    Environment,
    /// Reaching a network.
    Network,
    /// Calling functions of the host.
    HostFunctions,
    /// A limit on memory.
    MemoryLimit,
    /// A bound on processor time.
    CpuQuota,
    /// Suspending code at a call, keeping it as bytes, and resuming it.
    Snapshot,
    /// A user, working folder, host name, entrypoint, limits or file systems that differ from the image's.
    Container,
    /// A terminal for the command.
    Terminal,
    /// Copying files out when the command has ended.
    CopyOut,
    /// A choice of kernel, vCPUs and accelerator.
    Machine,
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Capability::Commands => "commands",
            Capability::Packages => "packages",
            Capability::Files => "way to copy files in",
            Capability::Folders => "shared folders",
            Capability::FolderRules => "way to hide, protect or bound what it shares",
            Capability::Environment => "environment variables",
            Capability::Network => "network",
            Capability::HostFunctions => "host functions",
            Capability::MemoryLimit => "memory limit",
            Capability::CpuQuota => "bound on processor time",
            Capability::Snapshot => "snapshots",
            Capability::Container => "settings for a command in an image",
            Capability::Terminal => "terminal",
            Capability::CopyOut => "way to copy files out",
            Capability::Machine => "virtual machine",
        })
    }
}

/// A way to run untrusted code.
pub trait Sandbox: Send + Sync {
    /// Returns the kind of the sandbox.
    fn backend(&self) -> Backend;

    /// Returns the sandbox's capabilities beside running Python code: its backend's, or fewer.
    fn capabilities(&self) -> &'static [Capability] {
        self.backend().capabilities()
    }

    /// Describes in a few words what separates the code from the host.
    fn boundary(&self) -> &'static str;

    /// Checks that everything the sandbox needs is installed and works on this host. It runs no task.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] with the remedy; [`Error::Kernel`] where a microVM's kernel is missing.
    fn check(&self) -> Result<(), Error>;

    /// Runs a task that [`Sandbox::run`] has checked against the declared capabilities. Callers use [`Sandbox::run`].
    ///
    /// # Errors
    ///
    /// Those of [`Sandbox::run`]; an [`Error::Jail`] doesn't name the backend yet.
    fn start(&self, task: Task) -> Result<Finished, Error>;

    /// Runs a task to its end, and leaves no process and no file of it behind.
    ///
    /// # Errors
    ///
    /// [`Error::NotSupported`] where the task needs a capability that this sandbox hasn't declared, [`Error::Code`] and
    /// [`Error::Request`] where the task is invalid, [`Error::Unavailable`] where a program is missing, and the others where the
    /// sandbox itself failed. A failure of the code is an [`End`], not an error.
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
            None => self.start(task).map_err(|error| error.of(self.backend())),
        }
    }
}

/// Reasons why a sandbox could not run a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The task needs a capability that the sandbox lacks.
    #[error("the backend {backend} has no {what}: take another one")]
    NotSupported {
        /// The sandbox's backend.
        backend: Backend,
        /// The capability that it lacks.
        what: Capability,
    },
    /// A program is not installed, or doesn't work on this host.
    #[error("the backend {backend} is not available: {why}; {hint}")]
    Unavailable {
        /// The sandbox's backend.
        backend: Backend,
        /// The cause.
        why: String,
        /// The remedy.
        hint: String,
    },
    /// An option of the task is invalid, or the image or template doesn't allow it.
    #[error("{0}")]
    Request(String),
    /// The code can't be passed as an argument.
    #[error(
        "the code is longer than {CODE_MAX} bytes, or has a zero byte in it: put it into a file"
    )]
    Code,
    /// The sandbox failed.
    #[error("the backend {backend} failed: {detail}")]
    Failed {
        /// The sandbox's backend.
        backend: Backend,
        /// The cause.
        detail: String,
    },
    /// A machine could not be started or spoken to.
    #[error(transparent)]
    Machine(#[from] minivm_machine::Error),
    /// A template is missing, unusable, or can't be made.
    #[error(transparent)]
    Template(#[from] templates::Error),
    /// The microVM's kernel is missing.
    #[error(transparent)]
    Kernel(#[from] kernel::Missing),
    /// The image can't be unpacked or cached.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// A folder can't be shared.
    #[error(transparent)]
    Folder(#[from] folders::Error),
    /// The jail can't be made. [`Sandbox::run`] returns [`Error::Unavailable`], [`Error::Failed`] or [`Error::Host`] instead.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// A system call on this host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Error {
    /// Names the backend in an error of the jail.
    fn of(self, backend: Backend) -> Self {
        match self {
            Error::Jail(jail::Error::Unavailable { why, hint }) => {
                Error::Unavailable { backend, why, hint }
            }
            Error::Jail(jail::Error::Failed(detail)) => Error::Failed { backend, detail },
            Error::Jail(jail::Error::Host(error)) => error.into(),
            error => error,
        }
    }
}

/// Finds the programs of a backend on this host, and returns the main one's path, or `built in`.
///
/// # Errors
///
/// [`Error::Unavailable`] with the remedy, or [`Error::Kernel`] where the microVM's kernel is missing.
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

/// Makes a jail, to find out whether this host allows the jails of all backends but the microVM.
///
/// # Errors
///
/// [`Error::Unavailable`] with the remedy.
pub fn check_jail(backend: Backend) -> Result<(), Error> {
    jail::check().map_err(|error| Error::from(error).of(backend))
}

/// Returns the command that runs code in an image's Python. Python doesn't buffer its output: a limit would lose what is in the
/// buffer.
///
/// # Errors
///
/// [`Error::Code`] where the code can't be an argument.
pub(crate) fn python(code: &str) -> Result<Vec<OsString>, Error> {
    if code.len() > CODE_MAX || code.contains('\0') {
        return Err(Error::Code);
    }
    Ok([minivm_machine::PYTHON, "-u", "-c", code]
        .map(Into::into)
        .to_vec())
}

/// Checks that `minivm-worker` is there.
fn worker_is_there(backend: Backend, worker: &Path) -> Result<(), Error> {
    if worker.is_file() {
        return Ok(());
    }
    Err(Error::Unavailable {
        backend,
        why: format!("there is no program {}", worker.display()),
        hint: "put minivm-worker, which is built with minivm, beside it".into(),
    })
}

/// Checks that the limits of this process are high enough for a backend whose program is a large runtime.
fn limits_suffice(backend: Backend) -> Result<(), Error> {
    inherited::check_for_runtimes().map_err(|refused| Error::Failed {
        backend,
        detail: refused.to_string(),
    })
}

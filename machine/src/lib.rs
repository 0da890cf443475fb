//! A command in a virtual machine: on this host's KVM or in the lab, after a boot or from a template.
//!
//! Machines come from [`minivm_vmm`], root file systems from [`minivm_image`]; [`minivm_guest`] has the messages that host and guest
//! exchange. This crate joins them into one call that runs a command and returns how it ended.
//!
//! # How a command runs
//!
//! 1. [`images::ImageCache`] finds the image's initramfs archive in the cache, or makes it, with `minivm-init` in it;
//!    [`kernel::find`] finds the guest's kernel.
//! 2. A [`MachineSpec`] names both, and how much memory and how many vCPUs the guest gets. [`MachineSpec::start`] boots it, on this host's
//!    KVM (`local`) or in the lab (`remote`). [`Templates::start`](templates::Templates::start) resumes a saved one instead.
//! 3. Either way the caller has a [`Link`]: two streams of frames, a way to stop the machine, and how it ended. `wire` carries the
//!    frames through `rings` in guest memory, or byte by byte through the UART.
//! 4. [`Session::run`] sends a [`Request`](minivm_guest::channel::Request) over the link. Its threads send input, signals and files
//!    (`outgoing`), take what the guest sends (`conversation`, `copy_out`), and stop the machine at its limits (`limits`).
//! 5. The command ends, or is ended; the machine is stopped, and [`Session::run`] returns a [`Report`].
//!
//! ```no_run
//! use minivm_guest::channel::Request;
//! use minivm_machine::{End, MachineSpec, Accel, Session, kernel};
//!
//! let machine = MachineSpec {
//!     kernel: kernel::find()?,
//!     initramfs: "debian.cpio".into(), // see `images`
//!     image: None,
//!     memory: 256 << 20,
//!     cpus: 1,
//!     rings: true,
//!     console: false,
//!     cpu_quota: None,
//! };
//! let mut session = Session::new(Request {
//!     argv: vec![b"uname".to_vec(), b"-r".to_vec()],
//!     ..Request::default()
//! });
//! session.stdout = Box::new(std::io::stdout());
//! let report = session.run(machine.start(&Accel::Kvm)?)?;
//! assert_eq!(report.end, End::Exited(0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Modules
//!
//! | module | what it has |
//! |---|---|
//! | [`session`] | [`Session`]: one command in one machine, from the request to the [`Report`] |
//! | `conversation`, `outgoing`, `limits` | the threads of a session: from the guest, to the guest, and the watchdog |
//! | `copies`, `files`, [`copy_out`], `unpack_into` | files to copy: what they are, packed for a guest, unpacked from one; hostile archives in general |
//! | [`end`](End), [`signal`], [`warning`](Warning) | how a program ended, in any sandbox, and its exit code; signals; warnings of a run |
//! | `local`, `remote`, [`lab_machine`] | where a machine runs: on KVM here, or in a lab, and what is sent to that |
//! | [`monitor`] | the process in which a machine runs on this host's KVM, behind walls |
//! | [`fetch`] | the process that pulls, reads and unpacks images, behind walls |
//! | [`folders`] | the folder server: folders of the host, in FUSE messages, answered by a process of its own |
//! | `child` | how minivm's own processes behind walls are started, and their messages |
//! | [`confine`] | those walls, from within |
//! | [`probe()`], [`survey`] | a test of this host's KVM; what it and the processor have and lack |
//! | `watch` | the watch over a machine's exits |
//! | `wire`, `rings` | the host's end of the control channel |
//! | [`templates`], [`template`] | machines that are saved when they are ready, by name; one of them, saved and resumed |
//! | [`snapshot_folder`](SnapshotFolder) | the folder of a snapshot that is being saved, which has the old one or the new |
//! | [`pool`](Pool) | machines of a snapshot, made ahead |
//! | [`timeline`] | one machine's life as phases, and its exits |
//! | [`images`], [`kernel`], [`cache`] | initramfs archives and root folders of images, kernels, and the folder that keeps all of it |
//! | [`lab`] | an emulated machine (QEMU) with real KVM, for hosts without |
//! | [`arch`] | what differs between processor architectures |
//! | [`jail`] | namespaces, a user, filters and limits around a program of the host's |
//! | `filter` | lists of system calls, compiled |
//! | [`input`](Input) | reading inputs, without waiting |
//! | [`output`], [`output_path`], [`streams`], [`printable`] | writing outputs: with a limit, to a path, without loss, without control characters |
//! | `console`, `last_words` | what a machine prints before it dies, for the error that reports it |

pub mod arch;
pub mod cache;
mod child;
pub mod confine;
mod console;
mod conversation;
mod copies;
pub mod copy_out;
mod end;
pub mod fetch;
mod files;
mod filter;
pub mod folders;
pub mod images;
mod input;
pub mod jail;
pub mod kernel;
pub mod lab;
pub mod lab_machine;
mod last_words;
mod limits;
mod local;
pub mod monitor;
mod outgoing;
pub mod output;
pub mod output_path;
mod pool;
pub mod printable;
mod probe;
mod remote;
mod rings;
mod room;
pub mod session;
pub mod signal;
mod snapshot_folder;
pub mod streams;
pub mod survey;
pub mod template;
pub mod templates;
pub mod timeline;
mod unpack_into;
mod warning;
mod watch;
mod wire;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use minivm_guest::channel::Preparation;
use minivm_guest::channel::frame::BODY_MAX;
use minivm_image::io_error::HostError;
use minivm_vmm::{Builder, Config, Kernel, Outcome};
use serde::{Deserialize, Serialize};

use jail::CpuQuota;
use lab::Processor;

pub use confine::Walls;
pub use copies::Files;
pub use end::{Call, End};
pub use files::CopyIn;
pub use input::Input;
pub use local::relay;
pub use pool::Pool;
pub use probe::probe;
pub use session::{Report, Session};
pub use snapshot_folder::SnapshotFolder;
pub use warning::Warning;
pub use watch::{Events, Watch, Watching};

/// The name of Python's program in images.
pub const PYTHON: &str = "python3";

/// A machine with minivm's init in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initramfs's file.
    pub initramfs: PathBuf,
    /// The root file system's image, which the guest reads in place; the initramfs has init alone then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Whether frames go through guest memory. If not, every byte goes through the UART.
    pub rings: bool,
    /// Whether the kernel's console goes to stderr as it comes. If not, its last lines are kept for errors.
    pub console: bool,
    /// The most processor time of the monitor, and so of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<CpuQuota>,
}

/// The accelerator of a machine: the source of its virtualization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accel {
    /// This host's KVM.
    Kvm,
    /// The lab: an emulator for development.
    Lab {
        /// The program that runs there, see [`LabRequest::program`](lab::LabRequest::program).
        program: PathBuf,
        /// The processor that the lab emulates. Its architecture is the guest's.
        processor: Processor,
    },
}

impl Accel {
    /// Returns the lab for guests of this program's own architecture, with `program` in it.
    pub fn lab(program: impl Into<PathBuf>) -> Accel {
        Accel::Lab {
            program: program.into(),
            processor: Processor::default(),
        }
    }

    /// Returns whether guests there are of this program's own architecture.
    pub fn is_of_this_architecture(&self) -> bool {
        match self {
            Accel::Kvm => true,
            Accel::Lab { processor, .. } => processor.runs_this_program(),
        }
    }

    /// Returns what virtualizes machines there, as `--accel` names it: `kvm` or `lab`.
    pub fn name(&self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Lab { .. } => "lab",
        }
    }

    /// Returns what separates a machine there from the host, in words for the user.
    pub fn boundary(&self) -> &'static str {
        match self {
            Accel::Kvm => "hardware virtualization (KVM)",
            Accel::Lab { .. } => "an emulator for development (QEMU): no wall against hostile code",
        }
    }

    /// Returns a warning about machines there, if there is one. It is known once a machine has run.
    pub fn warning(&self) -> Option<String> {
        match self {
            Accel::Kvm => None,
            Accel::Lab { .. } => lab::unjailed_warning(),
        }
    }
}

/// A machine that was started, as a session uses it.
pub struct Link {
    /// Whether the guest's hello was read and its version checked, as a clone's was before it was saved. If not, the hello is the first
    /// message of `from_guest`.
    pub greeted: bool,
    /// The walls around the monitor that runs the machine; `None` where it runs in this process, without walls, or in a lab.
    pub walls: Option<Walls>,
    /// The frames that the guest sends. They end with the machine.
    pub from_guest: Box<dyn Read + Send>,
    /// The frames for the guest.
    pub to_guest: Box<dyn Write + Send>,
    /// The messages of the guest's folders ([`minivm_guest::channel::folders`]), both ways; `None` where it can have none. They end with the
    /// machine.
    pub folders: Option<UnixStream>,
    /// Ends the machine, from any thread. Dropping it does so, too.
    pub stop: Box<dyn Fn() + Send + Sync>,
    /// Waits until the machine has ended.
    pub end: Box<dyn FnOnce() -> Result<Ended, Error> + Send>,
}

/// The end of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether its kernel shut down in good order, or the host stopped it.
    pub orderly: bool,
    /// A description for error messages.
    pub how: String,
    /// The most bytes of this host's memory that the process with the machine has held at a time, the machine's among them; `None` for the
    /// lab.
    pub host_memory: Option<u64>,
}

impl Ended {
    /// Describes a machine's end. `console` is the end of what its kernel has printed, if that was kept.
    fn of(outcome: Outcome, console: Option<String>, host_memory: Option<u64>) -> Ended {
        let orderly = outcome.is_orderly() || outcome == Outcome::Stopped;
        let how = match console.filter(|_| !orderly) {
            Some(console) => format!("{outcome}; its console:\n{console}"),
            None => outcome.to_string(),
        };
        Ended {
            orderly,
            how,
            host_memory,
        }
    }
}

/// Returns the most bytes of memory that a process has held at a time, by its `status` file.
fn peak_memory(status: &str) -> Option<u64> {
    let status = std::fs::read_to_string(status).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// An error of a machine or of its session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The monitor's error.
    #[error(transparent)]
    Monitor(#[from] minivm_vmm::Error),
    /// The lab's error.
    #[error(transparent)]
    Lab(#[from] crate::lab::Error),
    /// The machine ended before the guest sent how the command ended.
    #[error("the machine ended before its command did: {0}")]
    Died(String),
    /// The guest's init sent what the protocol doesn't allow.
    #[error("the guest broke the protocol")]
    Protocol(#[source] io::Error),
    /// The guest's init speaks another version of the protocol.
    #[error("the initramfs has an init of another version ({theirs}, not {ours}): build it again")]
    Version {
        /// The guest's version.
        theirs: u16,
        /// The host's version.
        ours: u16,
    },
    /// The template's machine can't be made or resumed.
    #[error("cannot get the template's machine: {0}")]
    NoTemplate(String),
    /// The guest's init sent nothing within this time.
    #[error("the guest's init did not start within {0:?}; `--verbose` shows the kernel's console")]
    NoInit(std::time::Duration),
    /// The request has more bytes than a message can.
    #[error(
        "the command, its environment and its user are too long: {0} bytes together, and the most is {BODY_MAX}"
    )]
    TooLong(usize),
    /// The guest refused the request, for another reason than that the command isn't there or can't be executed.
    #[error("the guest refused to run the command: {0}")]
    Refused(String),
    /// The guest would have too little memory.
    #[error("{0}")]
    NoRoom(String),
    /// The machine of a timeline failed, in the process that ran it.
    #[error("{0}")]
    Measured(String),
    /// The monitor's process ended before it had reported the machine's end.
    #[error("the machine's monitor ended before it: {0}")]
    MonitorDied(String),
    /// The folders can't be served, or not to the machine's end.
    #[error(transparent)]
    Folders(#[from] folders::Error),
    /// The bound on the machine's processor time can't be had.
    #[error(transparent)]
    Quota(#[from] jail::Error),
    /// The monitor's process could not do its work.
    #[error("{0}")]
    InMonitor(String),
    /// A system call on the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A machine's `stop` that is called when it is dropped.
pub(crate) struct StopOnDrop<F: Fn()>(F);

impl<F: Fn() + Send + Sync + 'static> StopOnDrop<F> {
    pub(crate) fn boxed(stop: F) -> Box<dyn Fn() + Send + Sync> {
        let guard = StopOnDrop(stop);
        Box::new(move || guard.stop())
    }
}

impl<F: Fn()> StopOnDrop<F> {
    fn stop(&self) {
        (self.0)();
    }
}

impl<F: Fn()> Drop for StopOnDrop<F> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl MachineSpec {
    /// Starts the machine. Its init boots, and waits for a request.
    ///
    /// # Errors
    ///
    /// [`Error::Monitor`] where the files, the configuration or KVM don't allow it, [`Error::Lab`] where the lab lacks a file or the
    /// memory, [`Error::Quota`] where its processor time can't be bounded, and [`Error::Host`] where a pipe or a thread can't be made.
    pub fn start(&self, accel: &Accel) -> Result<Link, Error> {
        self.start_watched(accel, None)
    }

    /// Starts the machine as [`start`](Self::start) does, with a watch over its exits, which has to be one for that place.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start)'s.
    pub fn start_watched(&self, accel: &Accel, watch: Option<Watch>) -> Result<Link, Error> {
        match accel {
            Accel::Kvm => local::start(self, watch),
            Accel::Lab { .. } if self.cpu_quota.is_some() => {
                Err(jail::CpuGroup::none_in_lab().into())
            }
            Accel::Lab { program, processor } => {
                // Checked here as well: an error of the lab's would name the files as the lab does. Another architecture's kernel can
                // only be checked there.
                if processor.runs_this_program() {
                    match monitor::is_there() {
                        true => monitor::Spec::boot(self.config()).check()?,
                        false => Builder::new(self.config()).check()?,
                    }
                }
                let events = watch.and_then(Watch::events).map(|events| events.stream);
                remote::start(self, program.clone(), *processor, events)
            }
        }
    }

    /// Boots the machine on this host's KVM, has its init prepare what it can before a request comes, and saves the machine in
    /// `folder`. [`template::Saved`] resumes it.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start)'s; [`Error::NoTemplate`] where it can't be prepared, or not in time; [`Error::Died`] where it ends
    /// before; [`Error::Protocol`] and [`Error::Version`] where its init isn't ours; [`Error::Monitor`] where the folder can't be
    /// written.
    pub(crate) fn save_prepared(
        &self,
        preparation: Preparation,
        folder: &Path,
    ) -> Result<template::Rings, Error> {
        template::save(self, preparation, folder)
    }

    /// Returns the bytes of its memory that its command has: all but what its kernel needs to know of a mapped image's pages.
    pub fn command_memory(&self) -> u64 {
        let image = self.image.as_ref().and_then(|path| path.metadata().ok());
        let structures = image.map_or(0, |image| room::page_structures(image.len()));
        self.memory.saturating_sub(structures)
    }

    /// Returns the monitor's configuration for this machine.
    fn config(&self) -> Config {
        let channel = if self.rings { "rings" } else { "uart" };
        let root = match &self.image {
            Some(_) => " root=/dev/pmem0",
            None => "",
        };
        Config {
            initramfs: Some(self.initramfs.clone()),
            pmem: self.image.clone(),
            // Expedited: moving the command into its cgroup waits for a grace period, which otherwise takes as long as two ticks.
            cmdline: format!(
                "{}{} rcupdate.rcu_expedited=1 {}{channel}{root}",
                arch::CMDLINE,
                arch::FOR_INIT,
                minivm_guest::channel::PARAMETER
            ),
            memory: self.memory,
            cpus: self.cpus,
            com3: true,
            ..Config::new(Kernel::File(self.kernel.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_persistent_memory_and_the_root() {
        let mut machine = templates::Recipe::example("kernel".into(), "initramfs".into()).machine;
        let without = machine.config();
        assert_eq!(without.pmem, None);
        assert!(!without.cmdline.contains("root="), "{}", without.cmdline);
        machine.image = Some("image".into());
        let with = machine.config();
        assert_eq!(with.pmem.as_deref(), Some(Path::new("image")));
        assert_eq!(
            with.cmdline.strip_prefix(&without.cmdline),
            Some(" root=/dev/pmem0")
        );
        assert_eq!(with.initramfs, without.initramfs);
    }
}

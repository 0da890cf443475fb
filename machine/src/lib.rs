//! A machine that runs one command and tells how it ended.
//!
//! 1. A [`Machine`] says which kernel, which initramfs (made by [`crate::images`], with `minivm-init` in it), and how much of
//!    what.
//! 2. [`Machine::start`] starts it on this host's KVM (`local`), or in the lab (`remote`). What comes of it is a [`Link`]: two
//!    streams of frames, a way to stop it, and how it ended. `wire` and `rings` are how the streams get out of a guest.
//! 3. [`Session::run`] sends a request over the link, moves bytes and signals, and makes a [`Report`] of what comes back.

pub mod cache;
mod console;
mod conversation;
mod copy_out;
mod end;
mod files;
pub mod images;
pub mod jail;
pub mod kernel;
pub mod lab;
pub mod lab_machine;
mod last_words;
mod limits;
mod local;
mod outgoing;
pub mod output;
pub mod output_path;
pub mod printable;
mod remote;
mod rings;
mod room;
pub mod session;
pub mod streams;
pub mod template;
pub mod templates;
mod unpack_into;
mod wire;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use minivm_guest::channel::Preparation;
use minivm_guest::channel::frame::BODY_MAX;
use minivm_vmm::{Builder, Config, Kernel};
use serde::{Deserialize, Serialize};

pub use end::{Call, End};
pub use files::{check_copies, check_room};
pub use files::{guest_name, left_out, pack};
pub use local::relay;
pub use room::memory_for;
pub use session::{Files, Report, Session};

/// What Python is called in images.
pub const PYTHON: &str = "python3";

/// A machine with minivm's init in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initramfs's.
    pub initramfs: PathBuf,
    /// Guest memory in bytes.
    pub memory: u64,
    /// vCPUs.
    pub cpus: u8,
    /// Whether bulk goes through guest memory. If not, every byte goes through the UART.
    pub rings: bool,
    /// Whether the kernel's console is shown on stderr as it comes. If not, its last lines are kept for errors.
    pub console: bool,
}

/// Where a machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host's KVM.
    Here,
    /// In the lab.
    Lab {
        /// As [`crate::lab::LabRequest::program`].
        program: PathBuf,
    },
}

impl Place {
    /// What gives machines there their virtualization, in a word: as `--accel` is told.
    pub fn accel(&self) -> &'static str {
        match self {
            Place::Here => "kvm",
            Place::Lab { .. } => "lab",
        }
    }

    /// What stands there between a machine and the host.
    pub fn boundary(&self) -> &'static str {
        match self {
            Place::Here => "hardware virtualization (KVM)",
            Place::Lab { .. } => "an emulator for development (QEMU): no wall against hostile code",
        }
    }

    /// What the user of machines there should know, if anything, once one has run.
    pub fn warning(&self) -> Option<String> {
        match self {
            Place::Here => None,
            Place::Lab { .. } => lab::unjailed_warning(),
        }
    }

    /// The most bytes of this host's memory that machines there have held at a time, with this process's own or the lab's.
    /// Both only grow, so it tells of the last machine where there was one.
    pub fn host_memory(&self) -> Option<u64> {
        match self {
            Place::Here => {
                let status = std::fs::read_to_string("/proc/self/status").ok()?;
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix("VmHWM:"))?;
                let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
                Some(kib << 10)
            }
            Place::Lab { .. } => None,
        }
    }
}

/// A machine that has been started.
pub struct Link {
    /// Whether the guest's hello has been received and its version checked, as that of a clone was before it was saved. If not, the hello
    /// is the first message of `from_guest`.
    pub greeted: bool,
    /// The frames that it sends; they end with it.
    pub from_guest: Box<dyn Read + Send>,
    /// The frames for it.
    pub to_guest: Box<dyn Write + Send>,
    /// Ends it, from any thread. So does dropping this.
    pub stop: Box<dyn Fn() + Send + Sync>,
    /// Waits for its end.
    pub end: Box<dyn FnOnce() -> Result<Ended, Error> + Send>,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether its kernel shut down in good order, or was stopped from here.
    pub orderly: bool,
    /// In words.
    pub how: String,
}

/// Why a machine can't run a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The monitor's error.
    #[error(transparent)]
    Monitor(#[from] minivm_vmm::Error),
    /// The lab's.
    #[error(transparent)]
    Lab(#[from] crate::lab::Error),
    /// The guest's end, without a word of how the command ended.
    #[error("the machine ended before its command did: {0}")]
    Died(String),
    /// The guest's init said what can't be.
    #[error("the guest broke the protocol")]
    Protocol(#[source] io::Error),
    /// The guest's init is of another version.
    #[error("the initramfs has an init of another version ({theirs}, not {ours}): build it again")]
    Version {
        /// The guest's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The template's machine can't be had.
    #[error("the template's machine cannot be had: {0}")]
    NoTemplate(String),
    /// Nothing came from the guest's init.
    #[error("the guest's init did not start within {0:?}; `-v` shows the kernel's console")]
    NoInit(std::time::Duration),
    /// The request doesn't fit a message.
    #[error(
        "the command, its environment and its user are too long: {0} bytes together, and the most is {BODY_MAX}"
    )]
    TooLong(usize),
    /// The request was refused, for another reason than that the command can't be run.
    #[error("the guest refused to run the command: {0}")]
    Refused(String),
    /// The guest would have too little memory.
    #[error("{0}")]
    NoRoom(String),
    /// Something of the host's could not be had.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A way to stop a machine that is taken when nobody can take it any more.
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

/// Names the action in the error of a system call.
pub(crate) fn cannot(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::Host { action, source }
}

impl Machine {
    /// Starts it. It waits for a request.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from starting.
    pub fn start(&self, place: &Place) -> Result<Link, Error> {
        match place {
            Place::Here => local::start(self),
            Place::Lab { program } => {
                // What is wrong with the files is better said at once, with their names here.
                Builder::new(self.config()).check()?;
                remote::start(self, program.clone())
            }
        }
    }

    /// Boots it on this host's KVM up to where it waits for a request, having prepared what it was told to, and saves it in
    /// `folder`. [`template::Saved`] goes on from there.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start)'s, [`Error::Refused`] where it can't be prepared, and where the folder can't be written.
    pub fn save_prepared(
        &self,
        preparation: Preparation,
        folder: &Path,
    ) -> Result<template::Rings, Error> {
        template::save(self, preparation, folder)
    }

    /// The monitor's part of it.
    fn config(&self) -> Config {
        let channel = if self.rings { "rings" } else { "uart" };
        Config {
            initramfs: Some(self.initramfs.clone()),
            // Expedited: moving the command into its cgroup waits for a grace period, which takes as long as two ticks else.
            cmdline: format!(
                "console=ttyS0 quiet reboot=t panic=-1 rcupdate.rcu_expedited=1 {}{channel}",
                minivm_guest::channel::PARAMETER
            ),
            memory: self.memory,
            cpus: self.cpus,
            ..Config::new(Kernel::File(self.kernel.clone()))
        }
    }
}

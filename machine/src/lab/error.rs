//! Errors of a lab.

use std::path::PathBuf;
use std::time::Duration;

use minivm_image::io_error::HostError;

use super::Processor;
use super::processor::Emulator;
use crate::cache;

/// An error of a lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU isn't installed.
    #[error("cannot find {program}: install it with `apt-get install {package}`")]
    QemuMissing {
        /// The program's name.
        program: &'static str,
        /// Debian's package that has it.
        package: &'static str,
    },
    /// The lab's kernel isn't there.
    #[error("no lab kernel in {}: make it with `{setup}`, or set MINIVM_LAB_KERNEL to a folder that has one", folder.display())]
    KernelMissing {
        /// The folder that should have it.
        folder: PathBuf,
        /// The command that makes it.
        setup: &'static str,
    },
    /// There is no `minivm` for a lab of another architecture.
    #[error("no minivm for a lab with {processor} at {}: make it with `{setup}`, or name one in MINIVM_LAB_PROGRAM", program.display())]
    ProgramMissing {
        /// The file that should be it.
        program: PathBuf,
        /// The lab's processor.
        processor: Processor,
        /// The command that makes it.
        setup: &'static str,
    },
    /// Neither `XDG_CACHE_HOME` nor `HOME` is set.
    #[error(transparent)]
    NoCache(#[from] cache::Unknown),
    /// The lab's initramfs can't be made.
    #[error("cannot make the lab's initramfs")]
    Initramfs(#[from] minivm_guest::newc::Error),
    /// A lab of another processor was to have a disk.
    #[error("a lab with {processor} cannot read {} in place: only one with epyc (x86-64) can", disk.display())]
    NoDisk {
        /// The disk's file.
        disk: PathBuf,
        /// The lab's processor.
        processor: Processor,
    },
    /// The host has less memory than the lab would need.
    #[error(
        "the lab would need {needed} MiB for the guest and itself, and this host has {there}: give the guest less (--memory)"
    )]
    TooLarge {
        /// What the lab would need, in MiB.
        needed: u64,
        /// The host's memory and swap, in MiB.
        there: u64,
    },
    /// A system call failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The time limit was reached; the lab was killed.
    #[error("time limit of {limit:?} reached")]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// [`Stop::stop`](super::Stop::stop) ended it.
    #[error("the lab was stopped")]
    Stopped,
    /// The lab has booted, but can't run the command.
    #[error("the lab {message}")]
    Refused {
        /// The reason that its init sent.
        message: String,
    },
    /// QEMU or the lab's kernel ended without an answer.
    #[error("the lab died: {console}")]
    Died {
        /// The last lines of its console.
        console: String,
    },
}

impl Error {
    pub(super) fn qemu_missing(emulator: &Emulator) -> Error {
        Error::QemuMissing {
            program: emulator.program,
            package: emulator.package,
        }
    }
}

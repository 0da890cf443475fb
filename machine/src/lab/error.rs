//! What can go wrong with a lab.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::cache;

/// Why a lab didn't run its command to the end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no QEMU.
    #[error("cannot find {program}: install it with `apt-get install qemu-system-x86`")]
    QemuMissing {
        /// The program that was looked for.
        program: &'static str,
    },
    /// There is no kernel for it.
    #[error("no lab kernel in {}: make it with `cargo xtask setup`, or name the folder of one that is there in MINIVM_LAB_KERNEL", folder.display())]
    KernelMissing {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// Neither `XDG_CACHE_HOME` nor `HOME` is set.
    #[error(transparent)]
    NoCache(#[from] cache::Unknown),
    /// The lab's own file system can't be made.
    #[error("cannot make the lab's initramfs")]
    Initramfs(#[from] minivm_guest::newc::Error),
    /// This machine has less memory than that.
    #[error(
        "the lab would need {needed} MiB for the guest and itself, and this machine has {there}: give the guest less (--memory)"
    )]
    TooLarge {
        /// In MiB.
        needed: u64,
        /// With what it can swap, in MiB.
        there: u64,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// The time limit was reached; the lab was killed.
    #[error("time limit of {limit:?} reached")]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// [`Stop::stop`](super::Stop::stop) ended it.
    #[error("the lab was stopped")]
    Stopped,
    /// The lab is up but can't run the command.
    #[error("the lab {message}")]
    Refused {
        /// What its init said.
        message: String,
    },
    /// QEMU or the lab's kernel ended without an answer.
    #[error("the lab died: {console}")]
    Died {
        /// The last lines of its console.
        console: String,
    },
}

/// Names the action in the error of a system call.
pub(super) fn cannot(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::Io { action, source }
}

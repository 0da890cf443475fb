//! What can go wrong, and what a user can do about it.
//!
//! One enum for the whole crate. A message says what was tried and on what; the operating system's reason is the
//! [`source`](std::error::Error::source) and is not repeated in the text, so a program prints the chain once.

use std::io;
use std::path::PathBuf;

use crate::kernel::KernelError;
use crate::snapshot::SnapshotError;

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a machine could not be built or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration asks for something that no machine can have; the text says what and names the bounds.
    #[error("{0}")]
    Config(String),

    /// There is no `/dev/kvm`.
    #[error(
        "there is no /dev/kvm: load the kvm_intel or kvm_amd module, and enable virtualization in the firmware or in the cloud's settings"
    )]
    KvmMissing,

    /// `/dev/kvm` exists, but this user may not open it.
    #[error(
        "no permission to open /dev/kvm: join its group with `sudo usermod -aG kvm $USER` and log in again"
    )]
    KvmPermission,

    /// This host's KVM lacks something that minivm builds on.
    #[error("this host's KVM has no {0}; Linux 4.10 or newer has it")]
    KvmLacks(&'static str),

    /// KVM is there and can't run a kernel.
    #[error("this host's KVM cannot run a kernel: {0}")]
    KvmUnusable(String),

    /// A call to KVM failed.
    #[error("{call} failed")]
    Kvm {
        /// The call's name as the KVM API documents it.
        call: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },

    /// A file could not be opened or read.
    #[error("cannot read the {what} {}", path.display())]
    File {
        /// What the file was to be: `kernel`, `initramfs` or `snapshot`.
        what: &'static str,
        /// Its path, as it was given.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },

    /// The kernel's file was read, but it can't be booted.
    #[error("cannot boot {}", path.display())]
    Kernel {
        /// Its path, as it was given.
        path: PathBuf,
        /// What is wrong with it.
        source: KernelError,
    },

    /// The initramfs has no room in guest memory.
    #[error(
        "the initramfs {} of {size} bytes does not fit: {room} bytes of guest memory are left for it; more --memory helps up to 3G", path.display()
    )]
    InitramfsTooLarge {
        /// Its path, as it was given.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What guest memory has left between the kernel and the end of low RAM, in bytes.
        room: u64,
    },

    /// The snapshot can't be used.
    #[error("cannot restore {}", path.display())]
    Snapshot {
        /// The snapshot's folder, as it was given.
        path: PathBuf,
        /// What is wrong with it.
        source: SnapshotError,
    },

    /// The processor or KVM of this host can't do what the guest of a snapshot already uses.
    #[error(
        "this host has no {0}, which the snapshot needs: restore it on a host like the one that saved it, or save it anew here"
    )]
    HostLacks(String),

    /// The snapshot can't be written. What was in its place before is still there.
    #[error("cannot save {}", path.display())]
    Save {
        /// The snapshot's folder, as it was given.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },

    /// The machine runs, or has ended: only one that is paused has a state that can be saved.
    #[error("cannot save a machine that is not paused: pause it first")]
    NotPaused,

    /// Something of the host's that a machine needs (memory, a thread, a descriptor) could not be had.
    #[error("cannot get {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },

    /// What the guest wrote to a serial port could not be passed on.
    #[error("cannot write the guest's serial output")]
    Output(#[source] io::Error),

    /// KVM handed back a vCPU for a reason that minivm doesn't handle. The guest did something that this processor
    /// or this KVM can't virtualize.
    #[error("vCPU {vcpu} stopped: {reason}, at instruction pointer {rip:#x}")]
    Exit {
        /// The vCPU's number, from 0.
        vcpu: u8,
        /// KVM's name for the exit, with what it tells.
        reason: String,
        /// Where the guest was.
        rip: u64,
    },
}

impl Error {
    /// Wraps the failure of the KVM call named `call`; made to stand in a `map_err`.
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |errno| Error::Kvm {
            call,
            source: errno.into(),
        }
    }

    /// Wraps the failure to get `what` from the host; made to stand in a `map_err`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Host {
            what,
            source: source.into(),
        }
    }
}

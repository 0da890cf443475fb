//! The crate's errors, in one enum: what failed, on what, and what a user can do about it.
//!
//! The operating system's reason is the [`source`](std::error::Error::source) of an error and is not repeated in its text, so
//! a program prints the chain once.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::arch::text;
use crate::kernel::error::KernelError;
use crate::sent;
use crate::snapshot::error::SnapshotError;

/// The result of all functions of this crate that can fail with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The reason for which a machine could not be built, saved or run on.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// The configuration asks for something that no machine can have; the text says what and names the bounds.
    #[error("{0}")]
    Config(String),

    /// There is no `/dev/kvm`.
    #[error("there is no /dev/kvm: {}", text::NO_KVM)]
    KvmMissing,

    /// `/dev/kvm` exists, but this user may not open it.
    #[error(
        "no permission to open /dev/kvm: join its group with `sudo usermod -aG kvm $USER` and log in again"
    )]
    KvmPermission,

    /// This host's KVM lacks something that minivm builds on.
    #[error("this host's KVM has no {0}; Linux 4.10 or newer has it")]
    KvmLacks(Cow<'static, str>),

    /// `/dev/kvm` can be opened, but its KVM can't run a kernel.
    #[error("this host's KVM cannot run a kernel: {0}")]
    KvmUnusable(String),

    /// A call to KVM failed.
    #[error("{call} failed")]
    Kvm {
        /// The call's name as the KVM API documents it.
        call: Cow<'static, str>,
        /// The operating system's reason.
        #[serde(with = "sent::io_error")]
        source: io::Error,
    },

    /// A file could not be opened or read.
    #[error("cannot read the {what} {}", path.display())]
    File {
        /// The file's role, such as `kernel`, `initramfs` or `snapshot`.
        what: Cow<'static, str>,
        /// Its path, as it was given.
        #[serde(with = "sent::path")]
        path: PathBuf,
        /// The operating system's reason.
        #[serde(with = "sent::io_error")]
        source: io::Error,
    },

    /// The kernel's file was read, but it can't be booted.
    #[error("cannot boot {}", path.display())]
    Kernel {
        /// Its path, as it was given.
        #[serde(with = "sent::path")]
        path: PathBuf,
        /// The file's defect.
        source: KernelError,
    },

    /// The initramfs has no room in guest memory.
    #[error(
        "the initramfs {} of {size} bytes does not fit: {room} bytes of guest memory are left for it; more --memory helps up to {}", path.display(), text::INITRAMFS_MEMORY
    )]
    InitramfsTooLarge {
        /// Its path, as it was given.
        #[serde(with = "sent::path")]
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The guest memory that is left between the kernel and the end of low RAM, in bytes.
        room: u64,
    },

    /// The snapshot can't be used.
    #[error("cannot restore {}", path.display())]
    Snapshot {
        /// The snapshot's folder, as it was given.
        #[serde(with = "sent::path")]
        path: PathBuf,
        /// The snapshot's defect.
        source: SnapshotError,
    },

    /// This host's processor or KVM lacks a feature that the guest of a snapshot has seen.
    #[error(
        "this host has no {0}, which the snapshot needs: restore it on a host like the one that saved it, or save it anew here"
    )]
    HostLacks(String),

    /// The snapshot can't be written. An older one in its place is still whole.
    #[error("cannot save {}", path.display())]
    Save {
        /// The snapshot's folder, as it was given.
        #[serde(with = "sent::path")]
        path: PathBuf,
        /// The operating system's reason.
        #[serde(with = "sent::io_error")]
        source: io::Error,
    },

    /// The machine runs, or has ended: only a paused machine can be saved.
    #[error("cannot save a machine that is not paused: pause it first")]
    NotPaused,

    /// The host refused a resource that a machine needs: memory, a thread, a descriptor.
    #[error("cannot get {what}")]
    Host {
        /// The resource.
        what: Cow<'static, str>,
        /// The operating system's reason.
        #[serde(with = "sent::io_error")]
        source: io::Error,
    },

    /// What [`Builder::vcpu_thread`](crate::Builder::vcpu_thread) was given failed on a thread.
    #[error("cannot prepare a vCPU's thread")]
    VcpuThread(
        #[source]
        #[serde(with = "sent::io_error")]
        io::Error,
    ),

    /// The writer of a serial port's output failed.
    #[error("cannot write the guest's serial output")]
    Output(
        #[source]
        #[serde(with = "sent::io_error")]
        io::Error,
    ),

    /// KVM handed back a vCPU for a reason that minivm doesn't handle. The guest did something that this processor
    /// or this KVM can't virtualize.
    #[error("vCPU {vcpu} stopped: {reason}, at instruction pointer {rip:#x}")]
    Exit {
        /// The vCPU's number, from 0.
        vcpu: u8,
        /// KVM's name for the exit, with its details.
        reason: String,
        /// The guest's instruction pointer.
        rip: u64,
    },
}

impl Error {
    /// Wraps the failure of the KVM call named `call`; made to stand in a `map_err`.
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |errno| Error::Kvm {
            call: call.into(),
            source: errno.into(),
        }
    }

    /// Wraps the failure to get the resource `what` from the host; made to stand in a `map_err`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Host {
            what: what.into(),
            source: source.into(),
        }
    }
}

//! The inside of a lab, which is an emulated machine with KVM: its first process, and what the host and that process exchange.
//!
//! The host packs a program that calls [`run_as_init`] into the lab's initramfs, with a [`Job`](job::LabJob). The program mounts the
//! lab's file systems (`root`), loads the kernel's modules, runs the job's command, and carries its streams (`relay`) over one port in
//! [`frame`]s. `minivm` is such a program, and so is `minivm-lab-init`, which is nothing else: a lab of another architecture than the
//! host's needs one that is compiled for it.

mod clock;
pub mod frame;
mod init;
pub mod job;
mod relay;
mod root;

use serde::{Deserialize, Serialize};

pub use init::run_as_init;

/// The argument that makes `minivm` the lab's init. The command line must call [`run_as_init`] for it.
pub const INIT_COMMAND: &str = "lab-init";

/// The folder of the kernel's modules in the lab. They are loaded in the order of their names.
pub const MODULES: &str = "/modules";

/// The file system that the lab's command sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// Init's program and the request's files, nothing else: the lab shares no file system with the host.
    Private,
    /// All of the host's files, read-only below a layer in memory: what the command writes is gone with the lab. `/run` starts empty.
    Host,
}

//! The interface of `minivm-init` where it is the first process of a container, and not of a machine.
//!
//! Init gets [`ARGUMENT`], and three open files: it reads one [`ToGuest::Request`](crate::channel::ToGuest::Request) and, where
//! that announces it, a cpio archive of files; it answers [`ToHost::Started`](crate::channel::ToHost::Started) and starts the
//! command, or, also after that, [`ToHost::Refused`](crate::channel::ToHost::Refused) and ends. The command can't answer.
//!
//! The command's outputs are pipes of the container's own kernel, and init copies them to its own outputs: a write to a host's
//! file may come back short, which a write to a pipe does not, and few programs write the rest. When the command has ended, init
//! ends all other processes, copies the rest of the outputs, and ends as the command did.

/// The first argument of `minivm-init`.
pub const ARGUMENT: &str = "contained";
/// The descriptor of the file with the request.
pub const REQUEST: i32 = 3;
/// The descriptor of the pipe for the answer.
pub const ANSWER: i32 = 4;
/// The descriptor of the file with the archive.
pub const FILES: i32 = 5;

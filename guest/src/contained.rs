//! How `minivm-init` is started where it is the first process of a container, and not of a machine.
//!
//! It gets [`ARGUMENT`], and three open files: it reads one [`ToGuest::Request`](crate::channel::ToGuest::Request) and, where
//! that announces it, a cpio archive of files; it answers [`ToHost::Started`](crate::channel::ToHost::Started) and becomes the
//! command, or, also after that, [`ToHost::Refused`](crate::channel::ToHost::Refused) and ends. The command can't answer.

/// Its first argument.
pub const ARGUMENT: &str = "contained";
/// The number of the file with the request.
pub const REQUEST: i32 = 3;
/// The number of the pipe for the answer.
pub const ANSWER: i32 = 4;
/// The number of the file with the archive.
pub const FILES: i32 = 5;

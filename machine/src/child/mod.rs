//! Children of a process of minivm's that are the same program: each has a role, and gets a job from its parent over a socket.
//!
//! - `spawn`: the start of the process, and its end;
//! - `stream`: the messages between both, and the descriptors beside them.

pub(crate) mod level;
mod spawn;
mod stream;

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use serde::de::DeserializeOwned;

pub(crate) use spawn::Child;
pub(crate) use stream::{Received, Stream, is_of_the_end, read};

use crate::streams;

/// A role of this program as a child of itself.
#[derive(Debug)]
pub(crate) struct Role {
    /// The one argument that the process gets.
    pub(crate) command: &'static CStr,
    /// What the process does with its job, for a user who has typed the command.
    pub(crate) duty: &'static str,
    /// The variables of its parent's environment that the process gets.
    pub(crate) variables: &'static [&'static str],
    /// Whether the process has a PID namespace of its own, and one of users for that, where they can be made.
    pub(crate) is_apart: bool,
    /// Whether the process writes to its parent's stderr.
    pub(crate) has_stderr: bool,
}

impl Role {
    /// Returns whether a process with this command line was started in the role.
    pub(crate) fn is_named_by(&self, command_line: impl IntoIterator<Item = OsString>) -> bool {
        let mut arguments = command_line.into_iter().skip(1);
        let first = arguments.next();
        first.is_some_and(|first| first.as_bytes() == self.command.to_bytes())
            && arguments.next().is_none()
    }

    /// Returns this process's job, and the socket that it came over, which is stdin. Without a job, returns the exit code.
    pub(crate) fn job<T: DeserializeOwned>(&self) -> Result<(Stream, Received<T>), ExitCode> {
        let job = io::stdin().as_fd().try_clone_to_owned().and_then(|socket| {
            let stream = Stream::from(socket);
            let job = stream.receive()?;
            Ok(job.map(|job| (stream, job)))
        });
        match job {
            Ok(job) => job.ok_or(ExitCode::SUCCESS),
            // A socket, but without a job that could be received: the other process reports this one's end.
            Err(error) if error.raw_os_error() != Some(libc::ENOTSOCK) => Err(ExitCode::FAILURE),
            Err(_) => {
                let command = self.command.to_string_lossy();
                streams::tell(&format!(
                    "`{command}` is a command for minivm's own use: it {} of another minivm process",
                    self.duty
                ));
                Err(ExitCode::from(2))
            }
        }
    }
}

//! `minivm-worker monty`: the process in which the backend monty interprets code.

#![allow(
    unsafe_code,
    reason = "an inherited file is nobody's until it is taken"
)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use minivm_sandbox::monty;
use rustix::io::FdFlags;

#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// The number of the socket
    socket: RawFd,
}

/// Runs the task that is in the jail.
pub(crate) fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        args.socket > 2,
        "the socket has to be none of the three streams"
    );
    // SAFETY: whoever starts us has handed us a file of this number, and nothing in this process has taken it. Where that is
    // not so, it is a number that is not open, and the next call says so.
    let socket = unsafe { OwnedFd::from_raw_fd(args.socket) };
    // It is open, or nothing here touches it.
    if let Err(error) = rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC) {
        std::mem::forget(socket);
        return Err(error).context("there is no socket of this number");
    }
    Ok(ExitCode::from(monty::work(socket)?))
}

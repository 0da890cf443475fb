//! `minivm-worker monty`: the process in which the backend monty interprets code.

#![allow(
    unsafe_code,
    reason = "an inherited descriptor has no owner in Rust until it is taken"
)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use minivm_sandbox::monty;
use rustix::io::FdFlags;

#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// The socket's descriptor number
    socket: RawFd,
}

/// Runs the jail's task.
pub(crate) fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        args.socket > 2,
        "the socket's number must be greater than 2"
    );
    // SAFETY: the process inherits a descriptor of this number, and nothing in this process has taken it. Otherwise the number is
    // not open, and the next call fails.
    let socket = unsafe { OwnedFd::from_raw_fd(args.socket) };
    // Of a number that isn't open, nothing is closed.
    if let Err(error) = rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC) {
        std::mem::forget(socket);
        return Err(error).context("there is no open socket of this number");
    }
    Ok(ExitCode::from(monty::work(socket)?))
}

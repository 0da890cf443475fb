//! The step between a jail and `runsc`, which has to be root to make a container: the worker becomes root of a user namespace of its
//! own, and executes `runsc`.
//!
//! `runsc --rootless` can take this step itself by starting itself again, which costs a start of its Go runtime: some 20 ms. This
//! root has power only over what is made in its namespace. It can't make the jail's read-only mounts writable, since they belong to
//! the namespace outside.

#![allow(
    unsafe_code,
    reason = "leaving a namespace has no safe interface in Rust"
)]

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The subcommand of `minivm-worker`.
pub const WORKER_COMMAND: &str = "rootless";

/// The start of the worker's message where it can't become root.
pub(super) const FAILED: &str = "cannot become root in a user namespace: ";

/// Executes the program as root of a new user namespace (user_namespaces(7)) with mounts of its own. Returns only on failure, with
/// the message: user namespaces can't be made or nested here, or the program can't be executed.
pub fn exec(program: &Path, args: &[OsString]) -> String {
    if let Err(error) = become_root() {
        return format!("{FAILED}{error}");
    }
    let error = Command::new(program).args(args).exec();
    format!("cannot execute {}: {error}", program.display())
}

fn become_root() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    // SAFETY: this process has one thread, and it shares no file descriptors with others.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?;
    // A process without capabilities outside may map its own user and group only, and the group only after it has given up
    // setgroups(2).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))
}

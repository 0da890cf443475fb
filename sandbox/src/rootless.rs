//! The step between a jail and `runsc`, which has to be root to make a container: the root of a user namespace of its own.
//!
//! `runsc --rootless` takes this step itself where it has to, by starting itself again, which costs a start of its Go runtime:
//! some 20 ms. Root here has power over what is made here alone. What the jail shows can be made writable no more than before:
//! its mounts belong to the namespace outside.

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

/// The command of `minivm-worker`'s for it.
pub const WORKER_COMMAND: &str = "rootless";

/// What the worker says first where that can't be done.
pub const FAILED: &str = "cannot become root in a user namespace: ";

/// Becomes the program, as root of a new user namespace (user_namespaces(7)) with mounts of its own. Returns only the error, in
/// words: user namespaces can't be made or nested here, or the program can't be executed.
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
    // Who has no power outside may name his own user and group, and the group only where groups can't be dropped.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))
}

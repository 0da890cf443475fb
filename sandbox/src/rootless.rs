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

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The subcommand of `minivm-worker`.
pub const WORKER_COMMAND: &str = "rootless";

/// The start of the worker's message where it can't become root.
pub(super) const FAILED: &str = "cannot become root in a user namespace: ";

/// The flag of that subcommand before the two folders that [`exec`] merges.
pub(super) const MERGE: &str = "--merge";

/// Executes the program as root of a new user namespace (user_namespaces(7)) with mounts of its own. Of two folders to merge, the first
/// one also gets what only the second one has: places for mounts, which can't be made in a folder that is read-only. Neither path may
/// have a colon, comma or backslash. Returns only on failure, with the message: user namespaces can't be made or nested here, the kernel
/// can't merge the folders, or the program can't be executed.
pub fn exec(merged: Option<(&Path, &Path)>, program: &Path, args: &[OsString]) -> String {
    if let Err(error) = become_root() {
        return format!("{FAILED}{error}");
    }
    if let Some(Err(error)) = merged.map(|(folder, added)| merge(folder, added)) {
        return format!(
            "cannot make places for shared folders: {error}; it takes overlayfs, in Linux 5.11, and 5.19 for root"
        );
    }
    let error = Command::new(program).args(args).exec();
    format!("cannot execute {}: {error}", program.display())
}

/// Mounts an overlay of two read-only layers over the first one, of which the first one's files count where both have them.
fn merge(folder: &Path, added: &Path) -> io::Result<()> {
    let layers = format!("lowerdir={}:{}", folder.display(), added.display());
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount(
        c"overlay",
        folder,
        c"overlay",
        flags,
        &*CString::new(layers)?,
    )?;
    Ok(())
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

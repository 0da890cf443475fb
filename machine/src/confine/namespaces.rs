//! What names lead to: in a monitor's namespaces to no file, no host name and no IPC object of the host; in an unpacker to nothing but
//! its folder; in a process that serves folders to nothing but these.

#![allow(
    unsafe_code,
    reason = "rustix's calls that change namespaces and descriptors are unsafe"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, open_tree,
    unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{Missing, NAMESPACES, ROOT};

/// The folder on which the new root is mounted for a moment. Each host has it.
const STAGE: &str = "/proc";

/// Moves this process into mount, IPC and UTS namespaces of its own, with an empty root that is read-only. `user` makes a user
/// namespace as well, in which an ordinary user may do that.
///
/// # Errors
///
/// The wall that is missing, with the call that failed.
pub(super) fn enter(user: bool) -> Result<(), Missing> {
    unshare(user)?;
    leave_names()
}

/// Moves this process into mount, IPC and UTS namespaces of its own, in which names still lead to the host's files.
///
/// # Errors
///
/// As [`enter`]'s.
pub(super) fn unshare(user: bool) -> Result<(), Missing> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if user {
        flags |= UnshareFlags::NEWUSER;
    }
    // SAFETY: the flags don't include CLONE_FILES, by which a thread would lose the descriptors of others.
    unsafe { unshare_unsafe(flags) }.map_err(Missing::of(NAMESPACES, "unshare"))
}

/// Leaves a process that was [`unshare`]d an empty root that is read-only.
///
/// # Errors
///
/// As [`enter`]'s.
pub(super) fn leave_names() -> Result<(), Missing> {
    empty_root().map_err(|(call, error)| Missing::of(ROOT, call)(error))
}

/// Makes an empty file system this process's root, and unmounts all others.
fn empty_root() -> Result<(), (&'static str, Errno)> {
    let named = |call| move |error| (call, error);
    // Otherwise the host would see what is mounted here.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(named("mount (MS_PRIVATE)"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = c"size=4k,nr_inodes=1,mode=555";
    mount("minivm", STAGE, "tmpfs", flags, options).map_err(named("mount"))?;
    chdir(STAGE).map_err(named("chdir"))?;
    // Puts the old root on top of the new one, from where it is unmounted. (pivot_root(2), "pivot_root(".", ".")".)
    let pivoted = pivot_root(".", ".").and_then(|()| unmount(".", UnmountFlags::DETACH));
    // A root that is an initramfs, or no mount's root, can't be moved away. It can be left.
    pivoted.or_else(|_| chroot(".")).map_err(named("chroot"))?;
    chdir("/").map_err(named("chdir"))
}

/// Makes a folder this process's root: neither a `..` nor a link leads out of it. Root may do that, or the root of a user namespace; no
/// other folder may stay open.
///
/// # Errors
///
/// The missing wall.
pub(super) fn enter_folder(folder: BorrowedFd<'_>) -> Result<(), Missing> {
    fchdir(folder).map_err(Missing::of(ROOT, "fchdir"))?;
    chroot(".").map_err(Missing::of(ROOT, "chroot"))
}

/// Returns the same folder or file as a mount of its own, which is in no folder: neither a `..` nor a link leads out of it. It must have
/// been opened in this process's own mount namespace.
///
/// # Errors
///
/// The missing wall.
pub(super) fn mount_alone(place: impl AsFd) -> Result<OwnedFd, Missing> {
    // With what is mounted below it: a part of a user namespace's mounts can't be taken alone.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(place, "", flags).map_err(Missing::of(ROOT, "open_tree"))
}

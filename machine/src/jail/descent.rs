//! The drop of root: where minivm is root, a jail's processes become a user of the host that owns nothing.
//!
//! A user namespace maps its root to a user ID that is free on the host, another one for each run, so that limits that count by
//! user don't add up over runs. All of a jail is in that namespace. A process that breaks out of the jail is that user on the
//! host, and not root.
//!
//! Such a user can't enter root's folders, nor read files that only root may read. So minivm, as root, makes a mount of its own
//! of each file or folder that the jail binds, with owners mapped like those of the namespace (mount_setattr(2),
//! MOUNT_ATTR_IDMAP): root's files belong to that user there, and to root on the disk. The new process attaches these mounts in a
//! tmpfs over `/tmp`, which it alone sees, before it gives root up. Some file systems can't map owners (overlayfs, network file
//! systems): they are bound as they are, and files that only root may read can't be read there.

#![allow(
    unsafe_code,
    reason = "neither mapped mounts nor a process that makes a namespace and nothing else have a safe interface"
)]

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{CWD, Mode, OFlags, fchown, mkdir, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
    move_mount, open_tree,
};
use rustix::process::{
    Gid, Pid, Signal, Uid, WaitOptions, getpid, getppid, kill_process,
    set_parent_process_death_signal, waitpid,
};
use rustix::thread::{
    LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

use super::free_user;

/// The folder in which the new process attaches the mounts. Bubblewrap needs this folder too.
const STAGE: &str = "/tmp";
/// The number of runs of one process that have different user IDs.
const RUNS: u32 = 64;

/// A user namespace and mounts, by which a new process of root's becomes an unprivileged user.
#[derive(Debug)]
pub struct Descent {
    /// The user namespace.
    namespace: OwnedFd,
    user: u32,
    group: u32,
    mounts: Vec<DetachedMount>,
}

/// A mount that isn't attached to a folder yet.
#[derive(Debug)]
struct DetachedMount {
    mount: OwnedFd,
    inside: CString,
    is_folder: bool,
}

impl Descent {
    /// Makes the user namespace of one jail; `None` where this process isn't root, or has no other user to become.
    ///
    /// # Errors
    ///
    /// The error of reading this process's user map, or of making the namespace.
    pub(super) fn prepare() -> io::Result<Option<Descent>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let seed = std::process::id()
            .wrapping_mul(RUNS)
            .wrapping_add(count % RUNS);
        let Some((user, group)) = free_user::pick(seed)? else {
            return Ok(None);
        };
        Ok(Some(Descent {
            namespace: namespace(user, group)?,
            user,
            group,
            mounts: Vec::new(),
        }))
    }

    /// Makes a detached mount of a file or folder, with all that is mounted in it. Returns the path at which the new process
    /// finds it.
    ///
    /// # Errors
    ///
    /// The error of making the mount, or of giving a writable folder to the user.
    pub(super) fn bind(&mut self, host: &Path, writable: bool) -> io::Result<PathBuf> {
        let mount = clone(host, OpenTreeFlags::AT_RECURSIVE)?;
        if map_owners(mount.as_fd(), self.namespace.as_fd()).is_err() && writable {
            let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
            fchown(File::open(host)?, Some(user), Some(group))?;
        }
        self.keep(mount, host)
    }

    /// Like [`bind`](Self::bind), for a file or folder of the user's, whose owner doesn't change, and without what is mounted in it.
    ///
    /// # Errors
    ///
    /// The error of making the mount; where it is `writable` and not root's, or its file system can't map owners.
    pub(super) fn share(&mut self, host: &Path, writable: bool) -> io::Result<PathBuf> {
        let owner = fs::metadata(host)?.uid();
        if writable && owner != 0 {
            return Err(io::Error::other(format!(
                "it belongs to user {owner}, and root can share its own files alone there: run minivm as that user"
            )));
        }
        let mount = clone(host, OpenTreeFlags::empty())?;
        if map_owners(mount.as_fd(), self.namespace.as_fd()).is_err() && writable {
            return Err(io::Error::other(
                "its file system can't map owners: run minivm as an ordinary user, or share it read-only",
            ));
        }
        self.keep(mount, host)
    }

    fn keep(&mut self, mount: OwnedFd, host: &Path) -> io::Result<PathBuf> {
        let inside = Path::new(STAGE).join(self.mounts.len().to_string());
        self.mounts.push(DetachedMount {
            mount,
            inside: c_string(inside.as_os_str())?,
            is_folder: fs::metadata(host)?.is_dir(),
        });
        Ok(inside)
    }

    /// Attaches the mounts and becomes the user. For a process between fork and exec: it makes system calls only.
    ///
    /// # Errors
    ///
    /// The error of the system call that failed.
    pub(super) fn descend(&self) -> io::Result<()> {
        // SAFETY: the process has one thread and shares nothing with others.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change(
            c"/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(
            c"minivm",
            c"/tmp",
            c"tmpfs",
            flags,
            c"mode=755,size=1m,nr_inodes=1k",
        )?;
        for mount in &self.mounts {
            mount.attach()?;
        }
        // A container may hide parts of its `/proc`; a user namespace can't mount a new one then.
        let _ = mount(
            c"proc",
            c"/proc",
            c"proc",
            flags | MountFlags::NOEXEC,
            None::<&std::ffi::CStr>,
        );
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::User))?;
        set_thread_groups(&[])?;
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        Ok(())
    }
}

impl DetachedMount {
    fn attach(&self) -> io::Result<()> {
        if self.is_folder {
            mkdir(&*self.inside, Mode::RWXU)?;
        } else {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(open(&*self.inside, flags, Mode::RUSR)?);
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&self.mount, c"", CWD, &*self.inside, flags)?)
    }
}

/// Gives a folder that was bound writable back to root, with all in it: where owners can't be mapped, the jail's user owns it.
/// Does nothing for an ordinary user, whose folder never changes its owner.
///
/// # Errors
///
/// The error of reading or changing an owner.
pub fn take_back(folder: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let metadata = fs::symlink_metadata(folder)?;
    if metadata.uid() != 0 {
        lchown(folder, Some(0), Some(0))?;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(folder)? {
            take_back(&entry?.path())?;
        }
    }
    Ok(())
}

/// Makes a mount of a file or folder that isn't attached.
fn clone(host: &Path, flags: OpenTreeFlags) -> io::Result<OwnedFd> {
    let always = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, host, always | flags)?)
}

/// Returns whether the file system of a path can map owners; true as well where minivm isn't root and needs no mapping.
pub(super) fn maps_owners(path: &Path) -> bool {
    let Ok(Some(descent)) = Descent::prepare() else {
        return true;
    };
    let mount = clone(path, OpenTreeFlags::empty());
    mount.is_ok_and(|mount| map_owners(mount.as_fd(), descent.namespace.as_fd()).is_ok())
}

/// Makes a user namespace that maps root to this user, and no other user.
fn namespace(user: u32, group: u32) -> io::Result<OwnedFd> {
    // A namespace has a path in `/proc` as long as a process is in it.
    let child = process_in_namespace()?;
    let map = |file: &str, outside: u32| {
        let path = format!("/proc/{}/{file}", child.as_raw_nonzero());
        fs::write(path, format!("0 {outside} 1"))
    };
    let opened = map("uid_map", user)
        .and_then(|()| map("gid_map", group))
        .and_then(|()| File::open(format!("/proc/{}/ns/user", child.as_raw_nonzero())));
    // The killed child's ID stays its own until it is waited for.
    let _ = kill_process(child, Signal::KILL);
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    Ok(opened?.into())
}

/// Starts a process in a new user namespace that does nothing and ends with this process. It doesn't wait on a pipe: a child that
/// another thread starts at the same time would hold a copy of its other end.
fn process_in_namespace() -> io::Result<Pid> {
    let parent = getpid();
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    let none = null_mut::<libc::c_void>();
    // SAFETY: it is a fork, possibly of a process with other threads: the child makes system calls and nothing else.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    if child == 0 {
        let bound = set_parent_process_death_signal(Some(Signal::KILL));
        while bound.is_ok() && getppid() == Some(parent) {
            // SAFETY: it has no arguments.
            unsafe { libc::syscall(libc::SYS_ppoll, none, 0, none, none, 0) };
        }
        // SAFETY: it ends this process and nothing else.
        unsafe { libc::_exit(0) };
    }
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    child.ok_or_else(io::Error::last_os_error)
}

/// Maps owners in this mount and those below it: root's files on the disk belong to the namespace's root.
fn map_owners(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_raw_fd().unsigned_abs()),
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string, and the size is that of the attributes.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_prepare_at_the_same_time() {
        let prepare = || {
            for _ in 0..50 {
                let descent = Descent::prepare().unwrap();
                assert!(descent.is_some() || !rustix::process::geteuid().is_root());
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(prepare);
            }
        });
    }
}

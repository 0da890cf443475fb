//! The file systems of a lab, which its init mounts.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;

use rustix::mount::{MountFlags, mount, mount_move};

use super::Root;
use crate::io_error::{HostError, cannot};

/// The mount options of the host's files over 9p. They rarely change in the few seconds that a lab lives, so they may be cached; messages
/// of half a megabyte make large reads bearable.
const HOST_OPTIONS: &CStr = c"trans=virtio,version=9p2000.L,msize=512000,cache=loose";

/// Mounts /dev, /proc and /sys.
pub(super) fn mount_kernel_file_systems() -> Result<(), HostError> {
    attach("devtmpfs", "/dev", c"mode=0755")?;
    attach("proc", "/proc", c"")?;
    attach("sysfs", "/sys", c"")
}

/// Makes the root file system that the command sees.
pub(super) fn prepare(root: Root) -> Result<(), HostError> {
    match root {
        // The host's /tmp stays: the command's working folder may be in it.
        Root::Host => switch_to_host()?,
        Root::Private => attach("tmpfs", "/tmp", c"mode=1777")?,
    }
    attach("tmpfs", "/run", c"mode=0755")?;
    make_folder("/dev/pts")?;
    make_folder("/dev/shm")?;
    attach("devpts", "/dev/pts", c"mode=0620,ptmxmode=0666")?;
    attach("tmpfs", "/dev/shm", c"mode=1777")?;
    for (name, target) in [
        ("fd", ""),
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
    ] {
        symlink(format!("/proc/self/fd{target}"), format!("/dev/{name}"))
            .map_err(cannot("link /dev/fd"))?;
    }
    // Only some commands need these: a lab kernel without them is good enough for the others.
    let _ = attach("cgroup2", "/sys/fs/cgroup", c"");
    let _ = attach("debugfs", "/sys/kernel/debug", c"");
    Ok(())
}

/// Puts the host's files, with a layer in memory over them that takes what is written, in place of the initramfs.
fn switch_to_host() -> Result<(), HostError> {
    for folder in ["/host", "/layer", "/new"] {
        make_folder(folder)?;
    }
    attach_from("root", "9p", "/host", MountFlags::RDONLY, HOST_OPTIONS)?;
    attach("tmpfs", "/layer", c"mode=0755")?;
    make_folder("/layer/upper")?;
    make_folder("/layer/work")?;
    attach(
        "overlay",
        "/new",
        c"lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work",
    )?;
    for folder in ["/dev", "/proc", "/sys"] {
        let new = format!("/new{folder}");
        mount_move(folder, &new).map_err(|errno| cannot(format!("move {folder}"))(errno.into()))?;
    }
    // The initramfs is the one root that can't be unmounted: the new root is moved over it (as in switch_root(8)).
    let entered = rustix::process::chdir("/new")
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"));
    entered.map_err(|errno| cannot("enter the host's root")(errno.into()))
}

fn make_folder(path: &str) -> Result<(), HostError> {
    fs::create_dir_all(path).map_err(cannot(format!("create {path}")))
}

fn attach(kind: &str, target: &str, options: &CStr) -> Result<(), HostError> {
    attach_from(kind, kind, target, MountFlags::empty(), options)
}

fn attach_from(
    source: &str,
    kind: &str,
    target: &str,
    flags: MountFlags,
    options: &CStr,
) -> Result<(), HostError> {
    mount(source, target, kind, flags, options)
        .map_err(|errno| cannot(format!("mount {kind} on the lab's {target}"))(errno.into()))
}

//! The guest's file systems.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use minivm_guest::channel::{Request, Tmpfs};
use minivm_guest::manifest;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};

use crate::{Error, cannot};

/// Mounts the kernel's own file systems: proc, sysfs, devtmpfs.
pub(crate) fn kernel_file_systems() -> Result<(), Error> {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    attach("proc", "/proc", safe, c"")?;
    attach("sysfs", "/sys", safe, c"")?;
    // The kernel may have mounted it already, though CONFIG_DEVTMPFS_MOUNT is for other roots.
    attach("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755")
}

/// Makes the root a mount of its own. The kernel's first root is the one that can't be left: `pivot_root(2)`, by which
/// container engines and sandboxes enter theirs, refuses to work in it.
pub(crate) fn enter_root() -> Result<(), Error> {
    let folder = Path::new("/").join(manifest::FOLDER);
    make_folder(&folder, 0o755)?;
    mount_bind("/", &folder).map_err(cannot("make the root a mount"))?;
    enter(&folder)
}

/// Makes a folder that a file system is mounted on the root, and moves the kernel's own file systems there.
pub(crate) fn enter(folder: &Path) -> Result<(), Error> {
    let entered = move_mount("/proc", folder)
        .and_then(|()| move_mount("/sys", folder))
        .and_then(|()| move_mount("/dev", folder))
        .and_then(|()| rustix::process::chdir(folder))
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"));
    entered.map_err(cannot("enter the root"))
}

fn move_mount(from: &str, root: &Path) -> rustix::io::Result<()> {
    mount_move(from, root.join(&from[1..]))
}

/// Mounts the file systems that programs expect beside the kernel's own: terminals, shared memory, temporary files, cgroups.
pub(crate) fn others() -> Result<(), Error> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    let data = safe | MountFlags::NOEXEC;
    attach(
        "devpts",
        "/dev/pts",
        data & !MountFlags::NODEV,
        c"mode=0620,gid=5,ptmxmode=0666",
    )?;
    let shm = format!("mode=1777,size={}", shm_size(memory()));
    attach("tmpfs", "/dev/shm", data, &CString::new(shm)?)?;
    replace_link("/dev/ptmx", "pts/ptmx")?;
    for (name, target) in [
        ("fd", ""),
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
    ] {
        replace_link(&format!("/dev/{name}"), &format!("/proc/self/fd{target}"))?;
    }
    // A folder in which the image has files stays as it is. All file systems together, with the root, which takes half, leave
    // some of the memory to programs.
    for (folder, options) in [
        ("/tmp", c"mode=1777,size=20%"),
        ("/run", c"mode=0755,size=10%"),
    ] {
        if is_empty(folder) {
            attach("tmpfs", folder, safe, options)?;
        }
    }
    // Kernels without these are good enough for most commands.
    let _ = attach("mqueue", "/dev/mqueue", data, c"");
    let _ = attach("cgroup2", "/sys/fs/cgroup", data, c"");
    Ok(())
}

/// Returns the machine's memory, in bytes.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

/// Returns the most bytes in `/dev/shm`, where the request has no number: as in containers, but for small machines, and large
/// ones.
fn shm_size(memory: u64) -> u64 {
    (memory / 10).max((64 << 20).min(memory / 3))
}

/// Mounts the file systems of a request.
pub(crate) fn asked_for(request: &Request) -> Result<(), Error> {
    if let Some(size) = request.shm_size {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = CString::new(format!("size={size}"))?;
        mount_remount("/dev/shm", flags, &options).map_err(cannot("resize /dev/shm"))?;
    }
    for Tmpfs {
        path,
        flags,
        options,
    } in &request.tmpfs
    {
        let path = Path::new(OsStr::from_bytes(path));
        make_folder(path, 0o755)?;
        let flags = MountFlags::from_bits_retain(*flags);
        let options = CString::new(options.as_str())?;
        mount("tmpfs", path, "tmpfs", flags, &*options)
            .map_err(cannot(format!("mount tmpfs on {}", path.display())))?;
    }
    Ok(())
}

/// Makes the root file system read-only.
pub(crate) fn make_root_read_only() -> Result<(), Error> {
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    mount_remount("/", flags, c"").map_err(cannot("make the root read-only"))
}

/// Creates a folder, and those above it, where there is none.
pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    if !path.is_dir() {
        fs::create_dir_all(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
            .map_err(cannot(format!("create {}", path.display())))?;
    }
    Ok(())
}

/// Returns whether a folder is empty, or isn't there. A link to one counts as a folder with something in it.
fn is_empty(folder: &str) -> bool {
    match fs::symlink_metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {
            fs::read_dir(folder).is_ok_and(|mut names| names.next().is_none())
        }
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn replace_link(path: &str, target: &str) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => symlink(target, path),
    }
    .map_err(cannot(format!("link {path}")))
}

pub(crate) fn attach(
    kind: &str,
    folder: &str,
    flags: MountFlags,
    options: &CStr,
) -> Result<(), Error> {
    make_folder(Path::new(folder), 0o755)?;
    mount(kind, folder, kind, flags, options).map_err(cannot(format!("mount {kind} on {folder}")))
}

#[cfg(test)]
mod tests {
    use super::shm_size;

    #[test]
    fn shared_memory_is_as_large_as_in_containers_where_there_is_room() {
        assert_eq!(shm_size(60 << 20), 20 << 20);
        assert_eq!(shm_size(230 << 20), 64 << 20);
        assert_eq!(shm_size(512 << 20), 64 << 20);
        assert_eq!(shm_size(10 << 30), 1 << 30);
    }
}

//! The root of an image that lies in persistent memory: an EROFS image, whose files are read where they are (DAX), and over it a layer
//! in the guest's own memory, which takes what is written.
//!
//! The two are one file system, an overlay. These of its options (Linux's `Documentation/filesystems/overlayfs.rst`) have it behave
//! like a single one:
//!
//! | option | without it |
//! |---|---|
//! | `redirect_dir` | `rename(2)` of a folder of the image's fails (`EXDEV`) |
//! | `index` | a hard link of the image's that is written to is a file of its own from then on |
//! | `xino` | the image's files have another `st_dev` than folders and new files, until they are written to |
//! | `metacopy` | `chmod(2)` and `chown(2)` copy the file's content into memory |

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use minivm_guest::manifest::{MAPPED_ROOT, Manifest};
use rustix::buffer::spare_capacity;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{Error, cannot, image, mounts};

/// The image's device.
const DEVICE: &str = "/dev/pmem0";
/// The buses of persistent memory that the kernel knows.
const BUSES: &str = "/sys/bus/nd/devices";
/// Mount points in the kernel's first root: of the image, of the layer over it, of both.
const IMAGE: &str = "/.minivm/image";
const LAYER: &str = "/.minivm/layer";
const ROOT: &str = "/.minivm/root";
/// The kernel's own file systems, which are mounted by now.
const KERNELS: [&str; 3] = ["proc", "sys", "dev"];
/// The most bytes of a file's names of attributes, and of an attribute's value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 << 10;

/// Returns whether the kernel's command line names persistent memory as the root.
pub(crate) fn is_root() -> Result<bool, Error> {
    let cmdline = fs::read("/proc/cmdline").map_err(cannot("read /proc/cmdline"))?;
    Ok(names_mapped_root(&cmdline))
}

fn names_mapped_root(cmdline: &[u8]) -> bool {
    cmdline
        .split(u8::is_ascii_whitespace)
        .rfind(|word| word.starts_with(b"root="))
        == Some(MAPPED_ROOT.as_bytes())
}

/// Makes the image the root. Returns the archive's manifest, and a line for each step that failed and is no reason to stop.
pub(crate) fn enter() -> Result<(Manifest, Vec<String>), Error> {
    let manifest = image::manifest()?.unwrap_or_default();
    clear_archive()?;
    for folder in [IMAGE, LAYER, ROOT] {
        mounts::make_folder(Path::new(folder), 0o755)?;
    }
    find_device()?;
    let mut lost: Vec<_> = mount_image()?.into_iter().collect();
    lost.extend(mount_layer()?);
    for folder in KERNELS {
        mounts::make_folder(&Path::new(ROOT).join(folder), 0o755)?;
    }
    mounts::enter(Path::new(ROOT))?;
    Ok((manifest, lost))
}

/// Removes the files of the kernel's archive, whose memory would never be free again: this program among them, which is in memory as
/// long as it runs.
fn clear_archive() -> Result<(), Error> {
    let clear = || {
        for entry in fs::read_dir("/")? {
            let entry = entry?;
            if KERNELS.iter().any(|kernels| entry.file_name() == *kernels) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    };
    clear().map_err(|error: std::io::Error| cannot("clear the first root")(error))
}

/// Waits until the kernel has found all of its persistent memory, which it looks for in threads of its own, and checks that the image's
/// device is there. To read `wait_probe` is to wait for exactly that (`wait_probe_show` in `drivers/nvdimm/core.c`).
fn find_device() -> Result<(), Error> {
    for bus in fs::read_dir(BUSES).into_iter().flatten().flatten() {
        let probed = bus.path().join("wait_probe");
        match fs::read(&probed) {
            // Of the devices on these buses, buses alone have it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            read => drop(read.map_err(cannot(format!("read {}", probed.display())))?),
        }
    }
    match fs::exists(DEVICE) {
        Ok(true) => Ok(()),
        _ => Err(format!(
            "the kernel has found no {DEVICE}, the root that its command line names: the machine needs an image (--pmem), and the kernel CONFIG_ACPI_NFIT, CONFIG_BLK_DEV_PMEM and CONFIG_NVDIMM_PFN"
        )
        .into()),
    }
}

/// Mounts the image so that its files are read where they are. Returns a line where the kernel can't do that, and copies what is read
/// into its page cache.
fn mount_image() -> Result<Option<String>, Error> {
    let attach = |options| mount(DEVICE, IMAGE, "erofs", MountFlags::RDONLY, options);
    let mounted = match attach(c"dax") {
        // A kernel that doesn't know the option returns it, and one that finds no EROFS image in the device.
        Err(Errno::INVAL) => attach(c""),
        mounted => mounted,
    };
    mounted.map_err(|errno| match errno {
        Errno::NODEV => {
            Error::from("the kernel has no EROFS, which the image needs: CONFIG_EROFS_FS")
        }
        errno => cannot(format!("mount the EROFS image in {DEVICE}"))(errno),
    })?;
    // A device without DAX is mounted all the same, without it.
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(cannot("read the mounts"))?;
    let in_place = mounts
        .lines()
        .any(|line| line.contains(&format!(" {IMAGE} erofs ")) && line.contains("dax=always"));
    Ok((!in_place).then(|| {
        "the image's files are copied into the guest's memory as they are read: the kernel cannot read them in place (it needs CONFIG_FS_DAX and CONFIG_NVDIMM_PFN)"
            .into()
    }))
}

/// Mounts the overlay of image and layer. Returns a line for each attribute of the image's root that can't be set.
fn mount_layer() -> Result<Vec<String>, Error> {
    // As large as the first root may be, where an archive's files lie: half of the memory.
    mounts::attach("tmpfs", LAYER, MountFlags::empty(), c"mode=0755")?;
    let [upper, work] = ["upper", "work"].map(|name| Path::new(LAYER).join(name));
    for folder in [&upper, &work] {
        mounts::make_folder(folder, 0o755)?;
    }
    // The root of the overlay is the layer's.
    let lost =
        copy_attributes(Path::new(IMAGE), &upper).map_err(cannot("copy the root's owner"))?;
    let options = CString::new(format!(
        "lowerdir={IMAGE},upperdir={},workdir={},redirect_dir=on,index=on,xino=on,metacopy=on",
        upper.display(),
        work.display()
    ))?;
    mount("overlay", ROOT, "overlay", MountFlags::empty(), &*options).map_err(|errno| match errno {
        Errno::NODEV => Error::from(
            "the kernel has no overlay file systems, which the image's root needs: CONFIG_OVERLAY_FS",
        ),
        errno => cannot("mount the overlay of the image and memory")(errno),
    })?;
    // The overlay has mounts of its own of both.
    for folder in [IMAGE, LAYER] {
        unmount(folder, UnmountFlags::DETACH).map_err(cannot(format!("unmount {folder}")))?;
    }
    Ok(lost)
}

/// Gives a folder the owner, mode and extended attributes of another one. Returns a line for each attribute that can't be set.
fn copy_attributes(from: &Path, to: &Path) -> std::io::Result<Vec<String>> {
    let metadata = fs::metadata(from)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    let mut names = Vec::with_capacity(XATTR_MAX);
    match llistxattr(from, spare_capacity(&mut names)) {
        Ok(_) | Err(Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno.into()),
    }
    let names = names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    let lost = names.filter_map(|name| {
        let mut value = Vec::with_capacity(XATTR_MAX);
        lgetxattr(from, name, spare_capacity(&mut value))
            .and_then(|_| lsetxattr(to, name, &value, XattrFlags::empty()))
            .err()
            .map(|errno| {
                let name = OsStr::from_bytes(name).display();
                format!("cannot set the attribute {name} of /: {errno}")
            })
    });
    Ok(lost.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_root_on_the_command_line_counts() {
        for (cmdline, is_mapped) in [
            ("quiet root=/dev/pmem0 minivm.channel=rings\n", true),
            ("root=/dev/vda root=/dev/pmem0\n", true),
            ("root=/dev/pmem0 root=/dev/vda\n", false),
            ("root=/dev/pmem01\n", false),
            ("noroot=/dev/pmem0 quiet\n", false),
            ("\n", false),
        ] {
            assert_eq!(
                names_mapped_root(cmdline.as_bytes()),
                is_mapped,
                "{cmdline}"
            );
        }
    }

    #[test]
    fn a_folder_gets_the_mode_and_the_attributes_of_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        for folder in [&from, &to] {
            fs::create_dir(folder).unwrap();
        }
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1751)).unwrap();
        lsetxattr(&from, "user.one", b"1\0 ", XattrFlags::empty()).unwrap();
        assert_eq!(copy_attributes(&from, &to).unwrap(), [""; 0]);
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o1751);
        let mut value = Vec::with_capacity(8);
        lgetxattr(&to, "user.one", spare_capacity(&mut value)).unwrap();
        assert_eq!(value, b"1\0 ");
    }
}

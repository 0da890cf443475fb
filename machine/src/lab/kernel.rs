//! Where the lab's kernel is, and its modules.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use minivm_image::io_error::cannot;

use super::Error;
use crate::cache;

/// Names of a kernel in its folder. An uncompressed one is taken first: under emulation, unpacking takes longer than the rest
/// of the boot. The last is what a distribution calls its own.
const NAMES: [&str; 3] = ["vmlinux", "bzImage", "vmlinuz"];

/// Where the lab has the modules.
pub(super) const MODULES: &str = "/modules";

/// The kernel that `cargo xtask setup` has made, or the one in the folder that `MINIVM_LAB_KERNEL` names.
pub fn find() -> Result<PathBuf, Error> {
    let folder = match env::var_os("MINIVM_LAB_KERNEL").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => cache::find()?.join("kernel/lab/current"),
    };
    let kernels = NAMES.map(|name| folder.join(name));
    kernels
        .into_iter()
        .find(|kernel| kernel.is_file())
        .ok_or(Error::KernelMissing { folder })
}

/// Modules that the kernel needs to be a lab's: where they are here, and what they are called in the lab. They are loaded in the order
/// of their names.
///
/// They are in the folder `modules` beside the kernel. A distribution's kernel has KVM and its devices in modules; the lab's own has
/// them built in, and no such folder.
pub(super) fn modules(kernel: &Path) -> Result<Vec<(PathBuf, PathBuf)>, Error> {
    let folder = kernel.with_file_name("modules");
    let listed = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.and_then(|entries| entries.collect::<io::Result<Vec<_>>>()),
    };
    let mut modules = Vec::new();
    for entry in listed.map_err(cannot(format!("read {}", folder.display())))? {
        let name = PathBuf::from(entry.file_name());
        if name.extension().is_some_and(|end| end == "ko") {
            modules.push((entry.path(), Path::new(MODULES).join(name)));
        }
    }
    Ok(modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_beside_a_kernel_come_into_the_lab_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinuz");
        assert_eq!(modules(&kernel).unwrap(), []);
        let beside = folder.path().join("modules");
        fs::create_dir(&beside).unwrap();
        for name in ["00-kvm.ko", "01-kvm_amd.ko", "list"] {
            fs::write(beside.join(name), "").unwrap();
        }
        let mut found = modules(&kernel).unwrap();
        found.sort();
        let expected = ["00-kvm.ko", "01-kvm_amd.ko"]
            .map(|name| (beside.join(name), Path::new("/modules").join(name)));
        assert_eq!(found, expected);
    }
}

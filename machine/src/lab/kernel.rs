//! Where the lab's kernel is.

use std::env;
use std::path::PathBuf;

use super::Error;
use crate::cache;

/// The kernel that `cargo xtask setup` has made. An uncompressed one is taken first: under emulation, unpacking takes
/// longer than the rest of the boot.
pub fn find() -> Result<PathBuf, Error> {
    let folder = match env::var_os("MINIVM_LAB_KERNEL").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => cache::find()?.join("kernel/lab/current"),
    };
    let kernels = ["vmlinux", "bzImage"].map(|name| folder.join(name));
    kernels
        .into_iter()
        .find(|kernel| kernel.is_file())
        .ok_or(Error::KernelMissing { folder })
}

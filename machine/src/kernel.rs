//! The guest's default kernel.

use std::env;
use std::path::PathBuf;

use crate::{arch, cache};

/// The error where there is no kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kernel in {}: make one with `cargo xtask setup`, or name one with --kernel, or the folder of one that is there, another user's for one, in MINIVM_KERNEL", folder.display())]
pub struct Missing {
    /// The folder that was looked in.
    pub folder: PathBuf,
}

/// Returns the kernel that `kernel-config/build.sh` has made last, or the one in the folder that `MINIVM_KERNEL` names.
///
/// # Errors
///
/// Where there is none.
pub fn find() -> Result<PathBuf, Missing> {
    let folder = match env::var_os("MINIVM_KERNEL").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => cache::folder()
            .unwrap_or_default()
            .join("kernel/sandbox/current"),
    };
    let kernel = folder.join(arch::KERNEL);
    if kernel.is_file() {
        Ok(kernel)
    } else {
        Err(Missing { folder })
    }
}

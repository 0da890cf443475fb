//! The guest's default kernel.

use std::env;
use std::path::PathBuf;

use crate::cache;
use crate::lab::Processor;

/// The error where there is no kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kernel in {}: make one with `{setup}`, or name one with --kernel, or the folder of one that is there, another user's for one, in MINIVM_KERNEL", folder.display())]
pub struct Missing {
    /// The folder that was looked in.
    pub folder: PathBuf,
    /// The command that makes one.
    pub setup: &'static str,
}

/// Kernels for guests of an architecture, as Rust calls it: the folder in the cache, and the file there. The first that is there is taken:
/// the one that `kernel-config/build.sh` has made last, then Debian's.
const KERNELS: [(&str, &str, &str); 3] = [
    ("x86_64", "kernel/sandbox/current", "vmlinux"),
    ("aarch64", "kernel/sandbox-arm64/current", "Image"),
    ("aarch64", "arm64/debian", "vmlinuz"),
];

/// Returns the kernel that was made for guests of this program's architecture, or the one in the folder that `MINIVM_KERNEL` names.
///
/// # Errors
///
/// [`Missing`], with the folder that has no kernel.
pub fn find() -> Result<PathBuf, Missing> {
    find_for(Processor::default())
}

/// As [`find`], for guests that run on a lab's processor.
///
/// # Errors
///
/// [`Missing`], with the folder that has no kernel.
pub fn find_for(processor: Processor) -> Result<PathBuf, Missing> {
    let architecture = processor.architecture();
    let kernels = KERNELS
        .iter()
        .filter(|(guests, ..)| *guests == architecture);
    let given = env::var_os("MINIVM_KERNEL").filter(|folder| !folder.is_empty());
    let cache = cache::folder().unwrap_or_default();
    let mut looked_in = None;
    for (_, folder, name) in kernels {
        let folder = match &given {
            Some(given) => PathBuf::from(given),
            None => cache.join(folder),
        };
        let kernel = folder.join(name);
        if kernel.is_file() {
            return Ok(kernel);
        }
        looked_in.get_or_insert(folder);
    }
    Err(Missing {
        folder: looked_in.unwrap_or_default(),
        setup: processor.setup(),
    })
}

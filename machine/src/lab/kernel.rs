//! Where the lab's kernel is, its modules, and its init.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use minivm_guest::lab::MODULES;
use minivm_image::io_error::cannot;

use super::{Error, Processor};
use crate::cache;

/// `minivm` for the other architecture, in the cache.
const FOREIGN_PROGRAM: &str = "arm64/minivm";

/// Returns the kernel that `cargo xtask setup` has made, or the one in the folder that `MINIVM_LAB_KERNEL` names.
///
/// # Errors
///
/// [`Error::KernelMissing`], or [`Error::NoCache`] where there is no variable and no cache.
pub fn find(processor: Processor) -> Result<PathBuf, Error> {
    let emulator = processor.emulator();
    let folder = match variable("MINIVM_LAB_KERNEL") {
        Some(folder) => folder,
        None => cache::find()?.join(emulator.kernel_folder),
    };
    let mut kernels = emulator.kernels.iter().map(|name| folder.join(name));
    kernels
        .find(|kernel| kernel.is_file())
        .ok_or_else(|| Error::KernelMissing {
            folder: folder.clone(),
            setup: emulator.setup,
        })
}

/// Returns the program that is the lab's init: this one where it runs there, else the one that `MINIVM_LAB_PROGRAM` names, or that
/// `cargo xtask setup --arm64` has made.
///
/// # Errors
///
/// [`Error::ProgramMissing`], or [`Error::NoCache`] where there is no variable and no cache.
pub fn find_program(processor: Processor) -> Result<PathBuf, Error> {
    if processor.runs_this_program() {
        return Ok("/proc/self/exe".into());
    }
    let program = match variable("MINIVM_LAB_PROGRAM") {
        Some(program) => program,
        None => cache::find()?.join(FOREIGN_PROGRAM),
    };
    if program.is_file() {
        return Ok(program);
    }
    Err(Error::ProgramMissing {
        program,
        processor,
        setup: processor.emulator().setup,
    })
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
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

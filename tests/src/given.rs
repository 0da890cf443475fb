//! What `cargo xtask test` gives to tests in their environment.

use std::fs;
use std::path::{Path, PathBuf};

/// The path that a variable names.
///
/// # Panics
///
/// Where it isn't set.
pub fn path(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test`"))
        .into()
}

/// The optimized command `minivm` where there is one: in the lab it runs emulated. Otherwise `own`, which Cargo built for the test.
pub fn minivm(own: &str) -> PathBuf {
    let optimized = std::env::var_os("MINIVM_TEST_BINARY");
    optimized.map_or_else(|| own.into(), PathBuf::from)
}

/// A static busybox for the architecture that this is compiled for.
pub fn busybox() -> PathBuf {
    let given = std::env::var_os("MINIVM_TEST_BUSYBOX");
    given.map_or_else(|| "/bin/busybox".into(), PathBuf::from)
}

/// The file that a variable names, copied to where reading is fast: in the lab, all that was there before it comes over 9p.
///
/// # Panics
///
/// Where it isn't set, or there is no such file.
pub fn copy(variable: &str, folder: &Path) -> PathBuf {
    let file = path(variable);
    let copy = folder.join(variable);
    fs::copy(&file, &copy).unwrap_or_else(|error| panic!("{variable} {file:?}: {error}"));
    copy
}

/// The guest's kernel, copied as [`copy`] does, into a folder of its own with its configuration beside it: that tells minivm that its
/// guests map images. A kernel without one has no copy of it either.
///
/// # Panics
///
/// Where it isn't set, or a file can't be copied.
pub fn kernel(folder: &Path) -> PathBuf {
    let (kernel, folder) = (path("MINIVM_TEST_KERNEL"), folder.join("kernel"));
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let copy = |file: &Path| {
        let copy = folder.join(file.file_name().expect("it is a file"));
        fs::copy(file, &copy).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        copy
    };
    let config = kernel.with_file_name("config");
    if config.exists() {
        copy(&config);
    }
    copy(&kernel)
}

/// The root file system with Python, from which `MINIVM_TEST_INITRAMFS` was made.
///
/// # Panics
///
/// Where that isn't set.
pub fn python_root() -> PathBuf {
    path("MINIVM_TEST_INITRAMFS").with_file_name("rootfs")
}

//! What the tests boot, and with what.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{OnceLock, PoisonError, RwLock};

use minivm_guest::newc::{Archive, Attributes, Node};
use minivm_tests::given;

/// Tests share this process; one that counts what the process has wants it alone.
pub(crate) static PROCESS: RwLock<()> = RwLock::new(());

/// To be held by each test that doesn't count.
pub(crate) fn shared() -> impl Drop {
    PROCESS.read().unwrap_or_else(PoisonError::into_inner)
}

/// A file of the tests' own.
pub(crate) fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// The command.
pub(crate) fn minivm() -> Command {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    Command::new(COPY.get_or_init(|| given::copy("MINIVM_TEST_BINARY", &scratch(""))))
}

/// Our kernel, uncompressed.
pub(crate) fn kernel() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| given::copy("MINIVM_TEST_KERNEL", &scratch("")))
}

/// The bytes of busybox, which is linked statically.
pub(crate) fn busybox() -> Vec<u8> {
    fs::read(given::busybox()).expect("busybox-static is installed")
}

/// An archive of these programs and links to busybox, with a console.
pub(crate) fn initramfs(name: &str, programs: &[(&str, &[u8])], links: &str) -> PathBuf {
    let mut archive = Archive::new(Vec::new());
    for folder in ["bin", "dev", "proc", "sys"] {
        archive.directory(folder, Attributes::new(0o755)).unwrap();
    }
    for (name, major, minor) in [("console", 5, 1), ("null", 1, 3)] {
        let device = Node::CharDevice { major, minor };
        archive
            .node(format!("dev/{name}"), device, Attributes::new(0o600))
            .unwrap();
    }
    for (path, bytes) in programs {
        let size = bytes.len() as u64;
        archive
            .file(path, Attributes::new(0o755), size, *bytes)
            .unwrap();
    }
    for link in links.split_whitespace() {
        archive
            .symlink(format!("bin/{link}"), "busybox", Attributes::new(0o777))
            .unwrap();
    }
    let path = scratch(&format!("boot-{name}.cpio"));
    fs::write(&path, archive.finish().unwrap()).unwrap();
    path
}

//! Python's root file system from Debian's packages, for machines that reach no container registry.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::cache::Cache;
use crate::debian::{self, Apt, Pinned};
use crate::process::capture;

/// Of what Python depends on, the libraries that its extension modules load. Left out: sqlite3, curses, readline, dbm.
const LIBRARIES: [&str; 9] = [
    "libc6",
    "zlib1g",
    "libexpat1",
    "libssl",
    "liblzma5",
    "libbz2-1.0",
    "libffi",
    "libuuid1",
    "libcrypt1",
];

/// What a shell script such as `/init` may call.
const APPLETS: [&str; 32] = [
    "sh", "mount", "umount", "echo", "cat", "ls", "cp", "mv", "rm", "mkdir", "rmdir", "ln",
    "chmod", "chown", "sleep", "env", "id", "ps", "kill", "true", "false", "test", "head", "tail",
    "grep", "sed", "wc", "sort", "find", "date", "stty", "dmesg",
];

/// What no program reads in a machine that lives for a second: a third of the size.
const UNREAD: [&str; 8] = [
    "usr/share",
    "usr/lib/*-linux-gnu/gconv",
    "usr/lib/*-linux-gnu/perl",
    "usr/lib/locale",
    "sbin",
    "usr/sbin",
    "usr/lib/mime",
    "usr/lib/*-linux-gnu/audit",
];

/// Debian's name for the architecture in folders, in place of the star above.
const X86_64: &str = "x86_64";

/// The packages, in the versions that the archive has now.
pub(crate) fn packages(cache: &Cache) -> Result<Vec<Pinned>> {
    debian::pinned(cache, "python 1", || names(&debian::OWN))
}

/// The packages' names.
pub(crate) fn names(apt: &Apt) -> Result<Vec<String>> {
    let names = apt.dependencies(&["python3-minimal"])?;
    let python = names
        .iter()
        .find(|name| name.starts_with("python3.") && name.ends_with("-minimal"));
    let python = python
        .ok_or_else(|| anyhow!("python3-minimal depends on no python3.N-minimal"))?
        .clone();
    let (minimal, standard) = (
        format!("lib{python}"),
        format!("lib{}-stdlib", python.trim_end_matches("-minimal")),
    );
    let mut libraries = apt.dependencies(&[&python, &minimal, &standard])?;
    libraries.retain(|name| LIBRARIES.iter().any(|library| name.starts_with(library)));
    libraries.extend([python, minimal, standard, "busybox-static".to_owned()]);
    Ok(libraries)
}

/// Fills `root` with Python, a shell and what they need.
pub(crate) fn fill(packages: &[Pinned], root: &Path) -> Result<()> {
    precompile(&fill_from(&debian::OWN, X86_64, packages, root)?, root)
}

/// As [`fill`], from an archive for this architecture; returns Python's name. Its modules aren't compiled: it may not run here.
pub(crate) fn fill_from(
    apt: &Apt,
    architecture: &str,
    packages: &[Pinned],
    root: &Path,
) -> Result<String> {
    apt.unpack(packages, root)?;
    for folder in ["bin", "lib", "lib64"] {
        // Since Debian 13 all is below /usr, and another package has these links.
        if !root.join(folder).exists() {
            link(&format!("usr/{folder}"), &root.join(folder))?;
        }
    }
    for unread in UNREAD {
        let path = root.join(unread.replace('*', architecture));
        if path.is_dir() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    for applet in APPLETS {
        link("busybox", &root.join("bin").join(applet))?;
    }
    // Python finds its library by where this link leads to; the path is the one that container images have.
    let mut names = packages
        .iter()
        .filter_map(|package| package.split_once("-minimal="));
    let python = names.find_map(|(name, _)| name.starts_with("python3.").then_some(name));
    let python = python.ok_or_else(|| anyhow!("no python3.N-minimal among the packages"))?;
    fs::create_dir_all(root.join("usr/local/bin"))?;
    link(
        &format!("../../bin/{python}"),
        &root.join("usr/local/bin/python3"),
    )?;
    link(python, &root.join("usr/bin/python3"))?;
    Ok(python.to_owned())
}

/// Compiles the modules that every start of Python reads, for Debian does so only when it installs: without this it is a
/// quarter of a start's time. The new Python itself does it, by its own loader and libraries.
fn precompile(python: &str, root: &Path) -> Result<()> {
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
        .map(|path| root.join(path).display().to_string());
    let encodings = root.join("usr/lib").join(python).join("encodings");
    let mut command = Command::new(root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    command
        .args(["--library-path", &libraries.join(":")])
        .arg(root.join("usr/bin").join(python));
    command
        .args([
            "-B",
            "-S",
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            "-s",
        ])
        .arg(root);
    command.args(["__init__.py", "aliases.py", "utf_8.py"].map(|module| encodings.join(module)));
    capture(command.env_clear().env("PYTHONHOME", root.join("usr")))?;
    Ok(())
}

fn link(target: &str, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(target, link)
        .with_context(|| format!("cannot create {}", link.display()))
}

//! Debian packages that the set-up needs: which are missing, and their installation with `apt-get`.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{capture, output, shown};

/// For a first boot in the lab: QEMU, and the jail around it.
const FOR_LAB: [&str; 2] = ["qemu-system-x86", "bubblewrap"];

/// For unpacking a packaged kernel's modules.
const FOR_MODULES: [&str; 2] = ["xz-utils", "zstd"];

/// For the lab (QEMU, busybox), for building kernels (all the others), and for archives (cpio).
const ALWAYS: [&str; 17] = [
    "qemu-system-x86",
    "busybox-static",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "xz-utils",
    "lz4",
    "zstd",
    "cpio",
    "kmod",
    "gcc",
    "libc6-dev",
    "make",
    "rsync",
    "ca-certificates",
];

/// For the sandboxes that are no machines. Deno and Pyodide come by npm, see [`npm`].
const FOR_SANDBOXES: [&str; 2] = ["bubblewrap", "chromium"];

/// For the tests alone, which make and move images with the tools that everybody uses. Docker's daemon comes in
/// `docker.io`; its client isn't needed.
const FOR_TESTS: [&str; 8] = [
    "device-tree-compiler",
    "erofs-utils",
    "skopeo",
    "umoci",
    "docker-registry",
    "docker.io",
    "python3",
    "git",
];

/// For arm64: what emulates it, a C compiler for it, and what unpacks a kernel's modules.
const FOR_ARM64: [&str; 4] = [
    "qemu-system-arm",
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "xz-utils",
];

/// For the tests that watch the calls of a program.
const FOR_TRACES: [&str; 1] = ["strace"];

/// For the tests on Intel's processors: Bochs with its firmware, and what makes a CD that it boots. Of its displays the one with no
/// windows, which isn't used, as without any of them Debian installs another.
const FOR_INTEL: [&str; 7] = [
    "bochs",
    "bochs-term",
    "bochsbios",
    "vgabios",
    "isolinux",
    "syslinux-common",
    "xorriso",
];

/// The kernel's source, the one we want first.
const SOURCES: [&str; 2] = ["linux-source-6.12", "linux-source"];

/// Installs what a first boot needs: nothing is compiled for it but minivm.
pub(crate) fn install_for_first_boot(lab: bool) -> Result<String> {
    let for_lab: &[_] = if lab { &FOR_LAB } else { &[] };
    install(&missing(&[for_lab, &FOR_MODULES].concat())?)
}

/// Installs what the set-up always needs.
pub(crate) fn install_all() -> Result<String> {
    let mut missing = missing(&ALWAYS)?;
    let has_source = self::missing(&SOURCES)?.len() < SOURCES.len();
    if !has_source {
        if !has_candidate(SOURCES[0])? {
            refresh()?;
        }
        missing.push(if has_candidate(SOURCES[0])? {
            SOURCES[0]
        } else {
            SOURCES[1]
        });
    }
    install(&missing)
}

/// Installs what the sandboxes need that are no machines.
pub(crate) fn install_for_sandboxes() -> Result<String> {
    install(&[missing(&FOR_SANDBOXES)?, npm()].concat())
}

/// The package npm, unless there is an npm: others than Debian have it too, and the two exclude each other.
fn npm() -> Vec<&'static str> {
    let there = Command::new("npm").arg("--version").output().is_ok();
    if there { Vec::new() } else { vec!["npm"] }
}

/// Installs what only the tests need.
pub(crate) fn install_for_tests() -> Result<String> {
    install_some(&FOR_TESTS)
}

/// Installs what the tests need that watch the calls of a program.
pub(crate) fn install_for_traces() -> Result<String> {
    install_some(&FOR_TRACES)
}

/// Installs what the lab for arm64 needs, and what compiles for it.
pub(crate) fn install_for_arm64() -> Result<String> {
    install_some(&FOR_ARM64)
}

/// Installs what the tests on Intel's processors need.
pub(crate) fn install_for_intel() -> Result<String> {
    install(&missing(&[&FOR_INTEL[..], &["bubblewrap"]].concat())?)
}

/// Installs these packages where they are missing.
pub(crate) fn install_some(names: &[&'static str]) -> Result<String> {
    install(&missing(names)?)
}

/// Fetches apt's lists.
pub(crate) fn refresh() -> Result<()> {
    apt_get(&["update"])
}

fn install(missing: &[&str]) -> Result<String> {
    if missing.is_empty() {
        return Ok("already there".to_owned());
    }
    let names = missing.join(" ");
    println!("installing {names} …");
    refresh()?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], missing].concat())?;
    Ok(format!("installed {names}"))
}

/// Those of `names` that are not installed.
fn missing(names: &[&'static str]) -> Result<Vec<&'static str>> {
    if !Path::new("/usr/bin/dpkg-query").exists() {
        bail!(
            "this is not a Debian machine (no dpkg-query), and set-up installs packages with apt-get: use Debian 12"
        );
    }
    // dpkg-query's exit code is 1 when it doesn't know one of them, which is no failure here.
    let mut query = Command::new("dpkg-query");
    query
        .args(["--show", "--showformat=${db:Status-Status} ${Package}\n"])
        .args(names);
    let known = String::from_utf8_lossy(&output(&mut query)?.stdout).into_owned();
    let installed = |name: &str| {
        known
            .lines()
            .any(|line| line.strip_prefix("installed ") == Some(name))
    };
    Ok(names
        .iter()
        .copied()
        .filter(|name| !installed(name))
        .collect())
}

fn has_candidate(name: &str) -> Result<bool> {
    Ok(
        output(Command::new("apt-cache").args(["show", "--no-all-versions", name]))?
            .status
            .success(),
    )
}

/// Runs `apt-get` as root.
fn apt_get(arguments: &[&str]) -> Result<()> {
    let root = capture(Command::new("id").arg("-u"))?.trim() == "0";
    if !root && !Path::new("/usr/bin/sudo").exists() {
        bail!(
            "packages are missing, and installing takes root: run `apt-get {}` as root",
            arguments.join(" ")
        );
    }
    let mut command = Command::new(if root { "env" } else { "sudo" });
    if !root {
        command.args(["--non-interactive", "env"]);
    }
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "--quiet",
        "--option",
        "DPkg::Lock::Timeout=120",
    ]);
    command.args(arguments);
    match capture(&mut command) {
        Ok(_) => Ok(()),
        Err(error) => bail!(
            "{error}; mend what apt-get says above, or run it by hand: {}",
            shown(&command)
        ),
    }
}

//! Deno and Pyodide, from the npm registry.
//!
//! A lock file that minivm carries names the versions and the digest of each package, so what is installed is what has been
//! tested, wherever the registry is that the user's npm asks. It goes to `<cache>/assets/npm-<key of the lock>`, published as a
//! [`Folder`]. The packages' own scripts don't run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use minivm_image::Digest;
use minivm_image::io_error::failed;
use minivm_image::publish::Folder;
use minivm_machine::printable::printable;

use super::{Error, lock};

const PACKAGE: &str = include_str!("../../js/package.json");
const LOCK: &str = include_str!("../../js/package-lock.json");

/// The program Deno, in an installation's folder.
const DENO: &str = "node_modules/@deno/linux-x64-glibc/deno";
/// Pyodide's folder there.
const PYODIDE: &str = "node_modules/pyodide";
/// The files of it that are needed to run Python.
const PYODIDE_FILES: [&str; 5] = [
    "pyodide.asm.mjs",
    "pyodide.asm.wasm",
    "pyodide-lock.json",
    "pyodide.mjs",
    "python_stdlib.zip",
];

/// Installs both, unless they are there; returns the installation's folder. `progress` gets a line for each step that takes
/// time.
///
/// # Errors
///
/// Where npm is missing or fails, or the cache can't be written.
pub fn install(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
    let folder = folder(cache);
    if is_whole(&folder) {
        return Ok(folder);
    }
    if std::env::consts::ARCH != "x86_64" {
        return Err(Error::Architecture(std::env::consts::ARCH));
    }
    let entry = Folder::new(&folder);
    let lock = lock(&entry, || {
        progress("waiting for another minivm that installs Deno and Pyodide");
    })?;
    if is_whole(&folder) {
        return Ok(folder);
    }
    let partial = entry.begin(&lock)?;
    progress("installing Deno and Pyodide by npm");
    fill(partial.path())?;
    check(partial.path())?;
    partial.publish()?;
    Ok(folder)
}

/// Returns the program Deno, if it is installed.
pub fn deno(cache: &Path) -> Option<PathBuf> {
    let folder = folder(cache);
    is_whole(&folder).then(|| folder.join(DENO))
}

/// Returns Pyodide's folder, if it is installed.
pub fn pyodide(cache: &Path) -> Option<PathBuf> {
    let folder = folder(cache);
    is_whole(&folder).then(|| folder.join(PYODIDE))
}

/// Returns the installation's key; other versions have another one.
pub(crate) fn key() -> String {
    Digest::of(LOCK).hex()[..16].to_owned()
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("assets").join(format!("npm-{}", key()))
}

fn needed() -> impl Iterator<Item = PathBuf> {
    let pyodide = PYODIDE_FILES.map(|file| Path::new(PYODIDE).join(file));
    pyodide.into_iter().chain([DENO.into()])
}

fn is_whole(folder: &Path) -> bool {
    needed().all(|file| fs::metadata(folder.join(file)).is_ok_and(|file| file.len() > 0))
}

/// Has npm install into the folder.
fn fill(folder: &Path) -> Result<(), Error> {
    for (name, text) in [("package.json", PACKAGE), ("package-lock.json", LOCK)] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(failed("write", &path))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .args(["--loglevel=error", "--no-update-notifier"])
        .current_dir(folder)
        .stdin(Stdio::null());
    let output = npm.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::NoNpm,
        _ => failed("run", Path::new("npm"))(error).into(),
    })?;
    if !output.status.success() {
        return Err(Error::Npm(cause(&output)));
    }
    Ok(())
}

/// What npm complains about, in a line: its first that is more than a code.
fn cause(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints = said.lines().filter_map(|line| {
        let line = line.strip_prefix("npm error ")?;
        let plain = ["code ", "syscall ", "errno ", "A complete log"];
        (!plain.iter().any(|start| line.starts_with(start))).then_some(line)
    });
    let first = complaints.take(1).next().map(|line| printable(line, 300));
    first.unwrap_or_else(|| format!("it ended with {}", output.status))
}

/// Looks whether what is needed is there.
fn check(folder: &Path) -> Result<(), Error> {
    for file in needed() {
        let path = folder.join(file);
        fs::metadata(&path).map_err(failed("open", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn told(stderr: &str) -> String {
        cause(&Output {
            status: ExitStatus::from_raw(1 << 8),
            stdout: Vec::new(),
            stderr: stderr.into(),
        })
    }

    #[test]
    fn every_package_of_the_lock_has_a_digest_and_none_a_host() {
        let lock: serde_json::Value = serde_json::from_str(LOCK).unwrap();
        let packages = lock["packages"].as_object().unwrap();
        for (name, package) in packages.iter().filter(|(name, _)| !name.is_empty()) {
            let digest = package["integrity"].as_str().unwrap();
            assert!(digest.starts_with("sha512-"), "{name}: {digest}");
            assert_eq!(package.get("resolved"), None, "{name}");
        }
        assert!(packages.len() > 2);
        let asked: serde_json::Value = serde_json::from_str(PACKAGE).unwrap();
        assert_eq!(packages[""]["dependencies"], asked["dependencies"]);
    }

    #[test]
    fn npms_complaint_is_told_in_a_line() {
        let refused = "npm error code ECONNREFUSED\nnpm error syscall connect\nnpm error errno ECONNREFUSED\n\
                       npm error FetchError: request to http://x/pyodide failed, reason: connect ECONNREFUSED\nnpm error more\n";
        assert_eq!(
            told(refused),
            "FetchError: request to http://x/pyodide failed, reason: connect ECONNREFUSED"
        );
        assert_eq!(told(""), "it ended with exit status: 1");
    }

    #[test]
    fn what_is_not_whole_is_not_there() {
        let cache = tempfile::tempdir().unwrap();
        let folder = folder(cache.path());
        for file in needed() {
            assert_eq!(deno(cache.path()), None);
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        assert_eq!(deno(cache.path()), Some(folder.join(DENO)));
        let there = install(cache.path(), &mut |_| panic!("nothing is to be done"));
        assert_eq!(there.unwrap(), folder);
        fs::write(folder.join(DENO), "").unwrap();
        assert_eq!(pyodide(cache.path()), None);
    }
}

//! Deno with Pyodide: CPython as WebAssembly, in a JavaScript engine with hardly any permissions.
//!
//! There are two walls. The first is Deno: the code reaches all of Deno (`from js import Deno`), and can do what Deno's permissions
//! allow. They allow reading Pyodide's own files and the task's, and nothing else: no network, no processes, no environment, no
//! other file, no library, no facts about the host; and Deno never prompts for more. A forbidden call raises `NotCapable`. These
//! need no permission: the three streams; `Deno.exit(n)`, by which the code chooses its exit code, as by `sys.exit(n)`; the
//! versions of Deno and V8; the process's ID and memory use, as the jail shows them; workers, with the same permissions.
//!
//! The second is the jail: code that breaks out of Deno finds an empty network, no processes but its own, and of the host's files
//! Deno, its six libraries and Pyodide, read-only.
//!
//! No option of Deno or V8 limits the memory of WebAssembly and of buffers; the jail's control group does. A time limit kills the
//! process.
//!
//! Deno's own caches (its module graph, and compiled code) are made once for each installation, and bound read-only.
//!
//! Python starts in a third of the time from a snapshot of its memory, which Pyodide's `makeMemorySnapshot` makes once for each
//! installation. That call is private, and the version is pinned. `random` is seeded anew after it, and `os.urandom` comes from
//! Deno; the seed of `hash` is the snapshot's, so strings have the same hash in all runs of one installation. Where no snapshot can
//! be made, Python starts without one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minivm_image::Digest;
use minivm_image::io_error::cannot;
use minivm_image::publish::{self, Folder, Found};

use super::exception::Tail;
use super::process::{self, Streams};
use super::pyodide::{self, SNAPSHOT};
use super::{Backend, End, Error, Finished, Limits, Sandbox, Task, check_jail};
use crate::tools::npm;
use minivm_machine::jail::{self, Calls, Jail};
use minivm_machine::printable::printable;

const LAUNCHER: &str = include_str!("../js/deno.mjs");

/// The permission to read files of the jail.
pub(super) const READABLE: &str = "--allow-read=/pyodide/pyodide.asm.mjs,/pyodide/pyodide.asm.wasm,/pyodide/pyodide-lock.json,\
                        /pyodide/python_stdlib.zip,/task,/snapshot";
/// Options under which Deno doesn't prompt, fetch, or read configuration.
pub(super) const OPTIONS: [&str; 8] = [
    "run",
    "--quiet",
    "--no-prompt",
    "--no-remote",
    "--no-npm",
    "--no-config",
    "--no-lock",
    "--cached-only",
];

/// Deno's environment, which the code can't read.
pub(super) const VARIABLES: [(&str, &str); 4] = [
    ("LD_LIBRARY_PATH", "/lib"),
    ("DENO_DIR", "/tmp/deno"),
    ("DENO_NO_UPDATE_CHECK", "1"),
    ("NO_COLOR", "1"),
];

/// The option for a run without Deno's caches: code that Deno would cache is lost with the jail.
pub(super) const KEEP_NOTHING: &str = "--no-code-cache";
/// The path in the jail of Deno's caches.
const CACHES: &str = "/caches";

/// The dynamic loader that Deno names; `LIBRARIES` are those that it is linked against.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: [&str; 6] = [
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
];
/// Folders in which distributions have the libraries.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/usr/lib",
    "/lib",
];

/// The default memory limit in bytes. A small Python program takes some 160 MiB.
const MEMORY: u64 = 512 << 20;
/// The limits of making a snapshot or caches.
const MAKING_LIMITS: Limits = Limits {
    time: Some(Duration::from_secs(120)),
    memory: Some(2 << 30),
    output: Some(256 << 20),
    cpu: None,
};

/// The Deno sandbox: Deno, Pyodide, and the files that they need.
pub(super) struct Deno {
    deno: PathBuf,
    pyodide: PathBuf,
    libraries: Vec<PathBuf>,
    snapshot: Option<PathBuf>,
    caches: Option<PathBuf>,
}

impl Deno {
    /// Opens the installation in this cache. It first makes the snapshot and Deno's caches, where they are missing.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where Deno, Pyodide or a library isn't installed.
    pub(super) fn open(cache: &Path) -> Result<Deno, Error> {
        let mut deno = Deno {
            deno: find(cache)?,
            pyodide: npm::pyodide(cache).ok_or_else(not_installed)?,
            libraries: libraries()?,
            snapshot: None,
            caches: None,
        };
        let kept = |made: Result<(), Error>, path: PathBuf| match made {
            Ok(()) => Some(path),
            Err(error) => {
                let error = error.of(Backend::Deno);
                log::warn!(
                    "Python starts without {}, and so more slowly: {error}",
                    path.display()
                );
                None
            }
        };
        let path = made_path(cache, "python", ".snapshot");
        deno.snapshot = kept(deno.make_snapshot(&path), path);
        let path = made_path(cache, "deno", ".caches");
        deno.caches = kept(deno.make_caches(&path), path);
        Ok(deno)
    }

    /// Returns the snapshot's file; `None` where it could not be made.
    pub(super) fn into_snapshot(self) -> Option<PathBuf> {
        self.snapshot
    }

    /// Returns the host's files that Deno needs and their paths in the jail, without the launcher and the snapshot.
    pub(super) fn parts(&self) -> Vec<(&Path, String)> {
        let mut parts = vec![
            (&*self.deno, "/deno".to_owned()),
            (&*self.pyodide, "/pyodide".to_owned()),
            (Path::new(LOADER), LOADER.to_owned()),
        ];
        for library in &self.libraries {
            let name = library.file_name().unwrap_or_default();
            parts.push((library, format!("/lib/{}", name.display())));
        }
        parts
    }

    /// Returns the snapshot's file; `None` where it could not be made.
    pub(super) fn snapshot(&self) -> Option<&Path> {
        self.snapshot.as_deref()
    }

    /// Makes a jail with no other files of the host than Deno, its libraries and Pyodide.
    fn jail(&self) -> Result<Jail, Error> {
        let mut jail = Jail::new()?.calls(Calls::Deno);
        for (host, inside) in self.parts() {
            jail = jail.bind_read_only(host, inside)?;
        }
        for (name, value) in VARIABLES {
            jail = jail.env(name, value);
        }
        Ok(jail.add_file(LAUNCHER.as_bytes(), "/task/deno.mjs")?)
    }

    /// Makes the snapshot where it is missing: the memory of a Python that is about to start the code.
    fn make_snapshot(&self, path: &Path) -> Result<(), Error> {
        let found = publish::find(path.with_extension("partial"), || publish::hold(path));
        match found? {
            Found::There(_) => Ok(()),
            Found::Missing(partial) => {
                let made = partial.make(path, |file| self.write_snapshot(file));
                made.map(drop)
            }
        }
    }

    fn write_snapshot(&self, file: &File) -> Result<(), Error> {
        let stdout = file.try_clone().map_err(cannot("open a file again"))?;
        let stderr = Tail::default();
        let jail = self
            .jail()?
            .add_file(pyodide::SHARED.as_bytes(), "/task/pyodide.mjs")?;
        let arguments = OPTIONS
            .iter()
            .chain(&[READABLE, "/task/deno.mjs", "snapshot"]);
        let streams = Streams::to(stdout, stderr.of(Box::new(io::sink())));
        let finished = process::run(jail.program("/deno", arguments)?, streams, &MAKING_LIMITS)?;
        let size = file.metadata().map_or(0, |file| file.len());
        // The launcher writes the size last, so that half a snapshot is never taken for a whole one.
        if finished.end != End::Exited(0) || stderr.text().trim() != size.to_string() {
            return Err(Error::Failed {
                backend: Backend::Deno,
                detail: format!(
                    "the snapshot has {size} bytes, and Deno wrote {:?}",
                    printable(&stderr.text(), 300)
                ),
            });
        }
        // The snapshot has no secrets. Where owners can't be mapped, the jail's user needs the permission for others.
        let by_all = fs::Permissions::from_mode(0o644);
        let set = file.set_permissions(by_all);
        Ok(set.map_err(cannot("let others read the snapshot"))?)
    }

    /// Makes Deno's caches where they are missing, by running Python. Later runs can read them only.
    fn make_caches(&self, path: &Path) -> Result<(), Error> {
        let entry = Folder::new(path);
        if entry.is_there() {
            return Ok(());
        }
        let made = entry.open_or_make(|_| true, |partial, _| self.fill_caches(partial));
        made.map(drop)
    }

    fn fill_caches(&self, folder: &Path) -> Result<(), Error> {
        // The first run caches the module graph, the second one compiled code.
        for _ in 0..2 {
            let mut task = Task::code("pass");
            task.limits = MAKING_LIMITS;
            let jail = self.jail()?.bind_writable(folder, CACHES)?;
            let finished = self.run_in(jail.env("DENO_DIR", CACHES), task, &[])?;
            if finished.end != End::Exited(0) {
                return Err(Error::Failed {
                    backend: Backend::Deno,
                    detail: format!("a program that does nothing ended with {:?}", finished.end),
                });
            }
        }
        let back = jail::take_back(folder);
        Ok(back.map_err(cannot(format!("take {} back", folder.display())))?)
    }

    fn run_in(&self, mut jail: Jail, task: Task, more: &[&str]) -> Result<Finished, Error> {
        let limits = task.limits.with_memory(MEMORY);
        if let Some(snapshot) = &self.snapshot {
            jail = jail.bind_read_only(snapshot, SNAPSHOT)?;
        }
        let snapshot = self.snapshot.as_ref().map(|_| SNAPSHOT);
        let (jail, left_out) = pyodide::add_task(jail, Backend::Deno, &task, &limits, snapshot)?;
        let arguments = OPTIONS
            .iter()
            .chain(more)
            .chain(&[READABLE, "/task/deno.mjs"]);
        let streams = Streams::from(task);
        let mut finished = process::run(jail.program("/deno", arguments)?, streams, &limits)?;
        finished.warnings.splice(0..0, left_out);
        Ok(finished)
    }
}

/// Finds the program Deno, if Pyodide is installed too.
pub(super) fn find(cache: &Path) -> Result<PathBuf, Error> {
    npm::deno(cache).ok_or_else(not_installed)
}

fn not_installed() -> Error {
    let why = "Deno and Pyodide are not installed";
    unavailable(why, "`minivm doctor --fix` installs them")
}

/// Finds the libraries that Deno is linked against.
fn libraries() -> Result<Vec<PathBuf>, Error> {
    let of_glibc = Path::new(LOADER).exists();
    let find = |name: &&str| {
        let mut paths = LIBRARY_FOLDERS
            .iter()
            .map(|folder| Path::new(folder).join(name));
        let found = paths.find(|path| of_glibc && fs::metadata(path).is_ok());
        found.ok_or_else(|| {
            let why = format!("Deno needs glibc's {name}, which this host lacks");
            unavailable(why, "use a distribution with glibc, or another backend")
        })
    };
    LIBRARIES.iter().map(find).collect()
}

/// Returns the path of a file or folder that is made once for this installation. Its key covers the scripts that run before it is
/// made.
fn made_path(cache: &Path, name: &str, end: &str) -> PathBuf {
    let made_by = [&npm::key(), LAUNCHER, pyodide::SHARED].concat();
    let key = Digest::of(made_by).hex()[..16].to_owned();
    cache.join("assets").join(format!("{name}-{key}{end}"))
}

fn unavailable(why: impl Into<String>, hint: &str) -> Error {
    Error::Unavailable {
        backend: Backend::Deno,
        why: why.into(),
        hint: hint.into(),
    }
}

impl Sandbox for Deno {
    fn backend(&self) -> Backend {
        Backend::Deno
    }

    fn boundary(&self) -> &'static str {
        "WebAssembly, Deno's permissions, namespaces (bubblewrap)"
    }

    fn check(&self) -> Result<(), Error> {
        check_jail(Backend::Deno)
    }

    fn start(&self, task: Task) -> Result<Finished, Error> {
        let jail = self.jail()?;
        match &self.caches {
            Some(caches) => {
                let jail = jail.bind_read_only(caches, CACHES)?.env("DENO_DIR", CACHES);
                self.run_in(jail, task, &[])
            }
            None => self.run_in(jail, task, &[KEEP_NOTHING]),
        }
    }
}

#[cfg(test)]
mod tests;

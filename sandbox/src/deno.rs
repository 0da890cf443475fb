//! Deno with Pyodide: CPython as WebAssembly, in a JavaScript engine that permits next to nothing.
//!
//! There are two walls. The first is Deno's: the code can do what Deno's permissions let it, for `from js import Deno` reaches
//! all of Deno. These are to read Pyodide's own files and the task's, and nothing else: no network, no processes, no
//! environment, no other file for reading or writing, no library, no facts about the host, and nobody who is asked for more.
//! A forbidden call raises `NotCapable`. What stays in reach without a permission: the three streams; `Deno.exit(n)`, by
//! which the code chooses its exit code, as it may by `sys.exit(n)`; the versions of Deno and V8; the process's number
//! and memory use, as the jail shows them; workers, which have the same permissions.
//!
//! The second is the jail: who gets past Deno finds a network with nothing in it, no processes but its own, and of the host's
//! files Deno, its six libraries and Pyodide, for reading.
//!
//! Neither Deno's nor V8's own options bound the memory of WebAssembly and of buffers; the jail's control group does. A time
//! limit ends the process, whatever it is at.
//!
//! Deno's own caches (what it knows of its modules, and their code compiled) are made once as well, and shown for reading.
//!
//! Python starts in a third of the time from a snapshot of its memory, which is made once for each installation, by Pyodide's
//! `makeMemorySnapshot`. That call is private and the version pinned. The random numbers of `random` are seeded anew after it,
//! and those of `os.urandom` come from Deno; the seed of `hash` is the snapshot's, so that strings have the same hash in all
//! runs of one installation. Where no snapshot can be made Python starts without.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minivm_image::Digest;

use super::exception::Tail;
use super::process::{self, Streams};
use super::pyodide::{self, SNAPSHOT};
use super::{Backend, End, Error, Finished, Limits, Sandbox, Task, cannot, check_jail};
use crate::tools::npm;
use minivm_machine::jail::{self, Calls, Jail};
use minivm_machine::printable::printable;

const LAUNCHER: &str = include_str!("../js/deno.mjs");

/// What may be read, of the jail's files.
pub(super) const READABLE: &str = "--allow-read=/pyodide/pyodide.asm.mjs,/pyodide/pyodide.asm.wasm,/pyodide/pyodide-lock.json,\
                        /pyodide/python_stdlib.zip,/task,/snapshot";
/// Nothing is asked, nothing fetched, nothing looked for that could change what is run.
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

/// Its environment, which the code doesn't see.
pub(super) const VARIABLES: [(&str, &str); 4] = [
    ("LD_LIBRARY_PATH", "/lib"),
    ("DENO_DIR", "/tmp/deno"),
    ("DENO_NO_UPDATE_CHECK", "1"),
    ("NO_COLOR", "1"),
];

/// Where what Deno would keep is gone with it.
pub(super) const KEEP_NOTHING: &str = "--no-code-cache";
/// Where the jail has what Deno knows already of its modules, and their code compiled.
const CACHES: &str = "/caches";

/// What runs Deno: the loader that it names, and the libraries that it is linked against.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: [&str; 6] = [
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
];
/// Where distributions have them.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/usr/lib",
    "/lib",
];

/// What all of it gets of memory where nothing is said, in bytes: Python with little in it takes some 160 MiB.
const MEMORY: u64 = 512 << 20;
/// What making a snapshot or caches may take.
const MAKING_LIMITS: Limits = Limits {
    time: Some(Duration::from_secs(120)),
    memory: Some(2 << 30),
    output: Some(256 << 20),
};

/// Deno, Pyodide, and what they need.
pub struct Deno {
    deno: PathBuf,
    pyodide: PathBuf,
    libraries: Vec<PathBuf>,
    snapshot: Option<PathBuf>,
    caches: Option<PathBuf>,
}

impl Deno {
    /// The installation in this cache. The snapshot is made, if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where something isn't installed.
    pub fn open(cache: &Path) -> Result<Deno, Error> {
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
                    "Python starts without {}, which takes longer: {error}",
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

    /// The file of Python's memory, where there is one.
    pub(super) fn into_snapshot(self) -> Option<PathBuf> {
        self.snapshot
    }

    /// What of the host's files it needs, and where it finds them, but for its launcher and the snapshot.
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

    /// The file of Python's memory, where there is one.
    pub(super) fn snapshot(&self) -> Option<&Path> {
        self.snapshot.as_deref()
    }

    /// A jail with Deno, Pyodide and nothing else of the host's.
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

    /// Runs Python up to where the code would start, and keeps its memory, unless that is there.
    fn make_snapshot(&self, path: &Path) -> Result<(), Error> {
        if path.is_file() {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(folder);
        let file = file.map_err(cannot(format!("create a file in {}", folder.display())))?;
        let stdout = file.reopen().map_err(cannot("open a file again"))?;
        let told = Tail::default();
        let jail = self
            .jail()?
            .add_file(pyodide::SHARED.as_bytes(), "/task/pyodide.mjs")?;
        let arguments = OPTIONS
            .iter()
            .chain(&[READABLE, "/task/deno.mjs", "snapshot"]);
        let streams = Streams::to(stdout, told.of(Box::new(io::sink())));
        let finished = process::run(jail.program("/deno", arguments)?, streams, &MAKING_LIMITS)?;
        let size = file.as_file().metadata().map_or(0, |file| file.len());
        // Its last word is the size, so that half a snapshot is never taken for a whole one.
        if finished.end != End::Exited(0) || told.text().trim() != size.to_string() {
            return Err(Error::Failed {
                backend: Backend::Deno,
                detail: format!(
                    "the snapshot has {size} bytes, and Deno said {:?}",
                    printable(&told.text(), 300)
                ),
            });
        }
        let wrap = || cannot(format!("write {}", path.display()));
        // Nothing in it is secret, and where owners can't be mapped the jail's user is one of the others.
        let by_all = fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(by_all).map_err(wrap())?;
        file.as_file().sync_all().map_err(wrap())?;
        let kept = file.persist(path);
        kept.map(drop).map_err(|error| wrap()(error.error))
    }

    /// Runs Python and keeps what Deno has found out for it, unless that is there. Later runs see it, and can't change it.
    fn make_caches(&self, path: &Path) -> Result<(), Error> {
        if path.is_dir() {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let partial = tempfile::Builder::new()
            .prefix("deno-partial-")
            .tempdir_in(folder);
        let partial =
            partial.map_err(cannot(format!("create a folder in {}", folder.display())))?;
        // Once to find out what the modules are, and once more to keep their code.
        for _ in 0..2 {
            let mut task = Task::code("pass");
            task.limits = MAKING_LIMITS;
            let jail = self.jail()?.bind_writable(partial.path(), CACHES)?;
            let finished = self.run_in(jail.env("DENO_DIR", CACHES), task, &[])?;
            if finished.end != End::Exited(0) {
                return Err(Error::Failed {
                    backend: Backend::Deno,
                    detail: format!("a program that does nothing ended with {:?}", finished.end),
                });
            }
        }
        let back = jail::take_back(partial.path());
        back.map_err(cannot(format!("take {} back", partial.path().display())))?;
        match fs::rename(partial.path(), path) {
            Ok(()) => drop(partial.keep()),
            // Somebody else has made them meanwhile.
            Err(_) if path.is_dir() => {}
            Err(error) => return Err(cannot(format!("create {}", path.display()))(error)),
        }
        Ok(())
    }

    fn run_in(&self, mut jail: Jail, task: Task, more: &[&str]) -> Result<Finished, Error> {
        let limits = task.limits.with_memory(MEMORY);
        if let Some(snapshot) = &self.snapshot {
            jail = jail.bind_read_only(snapshot, SNAPSHOT)?;
        }
        let snapshot = self.snapshot.as_ref().map(|_| SNAPSHOT);
        let jail = pyodide::add_task(jail, Backend::Deno, &task, &limits, snapshot)?;
        let arguments = OPTIONS
            .iter()
            .chain(more)
            .chain(&[READABLE, "/task/deno.mjs"]);
        let streams = Streams::from(task);
        process::run(jail.program("/deno", arguments)?, streams, &limits)
    }
}

/// The program Deno, where Pyodide is there too.
pub(super) fn find(cache: &Path) -> Result<PathBuf, Error> {
    npm::deno(cache).ok_or_else(not_installed)
}

fn not_installed() -> Error {
    let why = "Deno and Pyodide are not installed";
    unavailable(why, "`minivm doctor --fix` installs them")
}

/// The libraries that Deno is linked against, where this host has them.
fn libraries() -> Result<Vec<PathBuf>, Error> {
    let of_glibc = Path::new(LOADER).exists();
    let find = |name: &&str| {
        let mut paths = LIBRARY_FOLDERS
            .iter()
            .map(|folder| Path::new(folder).join(name));
        let found = paths.find(|path| of_glibc && fs::metadata(path).is_ok());
        found.ok_or_else(|| {
            let why = format!("Deno needs glibc's {name}, which is not here");
            unavailable(why, "take a distribution with glibc, or another backend")
        })
    };
    LIBRARIES.iter().map(find).collect()
}

/// Where something is that is made once of this installation. What is run before it is kept is a part of it.
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

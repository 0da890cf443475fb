//! Chromium with Pyodide: CPython as WebAssembly, in a page of a browser.
//!
//! There are three walls. A page may do what any site's page may: it has no files, no processes and no other site's data, and the
//! code reaches no more by `import js`. The page's process is in Chromium's own sandbox, which is on even where root runs minivm,
//! since Chromium isn't root in the jail. The jail is around the whole browser. Its network has only a loopback device of its own,
//! so that a browser's connections (requests, sockets, WebRTC, windows, forms) reach nothing. Of the host's files it has the
//! programs and libraries in `/usr`, of which Chromium needs many, read-only.
//!
//! The jail's first program is `minivm-worker` ([`worker`]). It starts Chromium with a profile that is removed with the jail, drives
//! it over DevTools, and serves the page (`server`) on the jail's loopback. The page can request what is served, Pyodide and the
//! task, and call the function that sends its output and end: these give the code no more than `print` and `sys.exit` do. DevTools
//! itself refuses connections and requests with a page's origin.
//!
//! The driver is the crate chromiumoxide, the lighter one of those that can (it adds 3.5 MB to the program; headless_chrome adds half
//! as much again). Neither supports DevTools over pipes, which is why the driver is in the jail.

#[cfg(feature = "worker")]
mod server;
#[cfg(feature = "worker")]
pub mod worker;

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use minivm_image::io_error::cannot;
use rustix::fs::{Mode, fchmod};

use super::process::{self, Streams};
use super::pyodide::{self, SNAPSHOT};
use super::{Backend, Deno, End, Error, Finished, Sandbox, Task, check_jail, worker_is_there};
use crate::tools::npm;
use minivm_machine::jail::{Calls, Jail, find_program};
use minivm_machine::printable::printable;

/// The subcommand of `minivm-worker`.
pub const WORKER_COMMAND: &str = "chromium";
/// The worker's exit code where the page failed. The code may exit with it too: only for a failure does the worker write a report.
pub const WORKER_FAILED: u8 = 125;

/// The default memory limit in bytes. A small Python program takes some 330 MiB.
const MEMORY: u64 = 1 << 30;
/// The size in bytes of `/tmp`, which has the profile, and of `/dev/shm`, which Chromium's processes share.
const TMP_SIZE: u64 = 256 << 20;

const LAUNCHER: &str = include_str!("../../js/chromium.mjs");

/// Paths at which distributions have the browser itself, and not a script that starts it.
const BROWSERS: [&str; 3] = [
    "/usr/lib/chromium/chromium",
    "/usr/lib64/chromium-browser/chromium-browser",
    "/usr/lib/chromium-browser/chromium-browser",
];

/// The Chromium sandbox: the browser, Pyodide, and the worker that drives the browser.
pub(crate) struct Chromium {
    worker: PathBuf,
    chromium: PathBuf,
    pyodide: PathBuf,
    snapshot: Option<PathBuf>,
}

impl Chromium {
    /// Opens this host's Chromium and the Pyodide in this cache. `worker` is the program `minivm-worker`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where Chromium or Pyodide isn't installed.
    pub(crate) fn open(worker: &Path, cache: &Path) -> Result<Chromium, Error> {
        let chromium = find()?;
        let pyodide = npm::pyodide(cache).ok_or_else(|| {
            unavailable(
                "Pyodide is not installed",
                "`minivm doctor --fix` installs it",
            )
        })?;
        Ok(Chromium {
            worker: worker.to_owned(),
            chromium,
            pyodide,
            // Deno makes the snapshot; the same Python runs in both.
            snapshot: Deno::open(cache).ok().and_then(Deno::into_snapshot),
        })
    }
}

/// Finds this host's browser.
pub(super) fn find() -> Result<PathBuf, Error> {
    let mut known = BROWSERS.iter().map(PathBuf::from);
    let found = known.find(|path| path.is_file());
    let found = found.or_else(|| find_program("chromium"));
    found.ok_or_else(|| {
        let hint = "`sudo apt-get install chromium` installs it";
        unavailable("Chromium is not installed", hint)
    })
}

fn unavailable(why: &str, hint: &str) -> Error {
    Error::Unavailable {
        backend: Backend::Chromium,
        why: why.into(),
        hint: hint.into(),
    }
}

impl Sandbox for Chromium {
    fn backend(&self) -> Backend {
        Backend::Chromium
    }

    fn boundary(&self) -> &'static str {
        "WebAssembly, Chromium's sandbox, namespaces (bubblewrap)"
    }

    fn check(&self) -> Result<(), Error> {
        worker_is_there(Backend::Chromium, &self.worker)?;
        check_jail(Backend::Chromium)
    }

    fn start(&self, task: Task) -> Result<Finished, Error> {
        worker_is_there(Backend::Chromium, &self.worker)?;
        let (failures, reporter) = io::pipe().map_err(cannot("create a pipe"))?;
        let reporter = OwnedFd::from(reporter);
        // The worker opens it by its name in `/proc`, and may be another user.
        let by_all = fchmod(&reporter, Mode::from_raw_mode(0o666));
        by_all.map_err(|error| cannot("create a pipe")(error.into()))?;
        let number = reporter.as_raw_fd().to_string();
        let limits = task.limits.with_memory(MEMORY);
        let jail = Jail::new()?
            .calls(Calls::Browser)
            .tmp_size(TMP_SIZE)
            .shm_size(TMP_SIZE)
            .bind_system()
            .bind_read_only(&self.worker, "/worker")?
            .bind_read_only(&self.pyodide, "/pyodide")?
            .add_file(LAUNCHER.as_bytes(), "/task/chromium.mjs")?
            .env("HOME", "/tmp")
            .inherit(reporter);
        let jail = match &self.snapshot {
            Some(snapshot) => jail.bind_read_only(snapshot, SNAPSHOT)?,
            None => jail,
        };
        let snapshot = self.snapshot.as_ref().map(|_| SNAPSHOT);
        let (jail, left_out) =
            pyodide::add_task(jail, Backend::Chromium, &task, &limits, snapshot)?;
        let chromium = self.chromium.as_os_str();
        let jailed = jail.program(
            "/worker",
            [WORKER_COMMAND.as_ref(), chromium, number.as_ref()],
        )?;
        let streams = Streams::from(task);
        let mut finished = process::run(jailed, streams, &limits)?;
        finished.warnings.splice(0..0, left_out);
        conclude(finished, failures)
    }
}

/// Returns the task's end, from the worker's exit code and its report of a failure.
fn conclude(mut finished: Finished, failures: impl Read) -> Result<Finished, Error> {
    if finished.end != End::Exited(WORKER_FAILED) {
        return Ok(finished);
    }
    let mut detail = String::new();
    // All writers have ended, so the read doesn't block.
    let _ = failures.take(4096).read_to_string(&mut detail);
    match detail.as_str() {
        "" => Ok(finished),
        OUT_OF_MEMORY => {
            finished.end = End::OutOfMemory;
            Ok(finished)
        }
        detail => Err(Error::Failed {
            backend: Backend::Chromium,
            detail: printable(detail, 500),
        }),
    }
}

/// The worker's report of a page that is out of memory.
const OUT_OF_MEMORY: &str = "out of memory";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Usage;

    fn concluded(code: u8, report: &str) -> Result<End, String> {
        let finished = Finished {
            end: End::Exited(code),
            exception: None,
            truncated: false,
            warnings: Vec::new(),
            usage: Usage::default(),
            machine: None,
        };
        let concluded = conclude(finished, report.as_bytes());
        concluded
            .map(|finished| finished.end)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_failure_is_told_apart_from_an_exit_code() {
        assert_eq!(concluded(0, ""), Ok(End::Exited(0)));
        assert_eq!(concluded(WORKER_FAILED, ""), Ok(End::Exited(WORKER_FAILED)));
        assert_eq!(
            concluded(WORKER_FAILED, OUT_OF_MEMORY),
            Ok(End::OutOfMemory)
        );
        let failed = concluded(WORKER_FAILED, "no\nbrowser\u{1b}");
        assert_eq!(failed, Err("the backend chromium failed: nobrowser".into()));
    }

    #[test]
    fn what_is_not_installed_is_not_available() {
        let cache = tempfile::tempdir().unwrap();
        let opened = Chromium::open(Path::new("/minivm"), cache.path());
        let error = opened.err().unwrap().to_string();
        assert!(error.contains("is not installed; `"), "{error}");
    }
}

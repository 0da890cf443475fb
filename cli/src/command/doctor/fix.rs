//! `minivm doctor --fix`: installs what sandboxes lack.
//!
//! What comes into the cache takes no privileges: `runsc`, Deno, Pyodide. Debian's packages do: they are installed where
//! this user has those, and otherwise it prints the command that installs them.

use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use indicatif::ProgressBar;
use minivm_machine::Accel;
use minivm_machine::cache;
use minivm_machine::jail::find_program;
use minivm_sandbox::tools;
use minivm_sandbox::{self, Backend, Host};

use super::super::worker;
use super::backends::OTHERS;

/// A program, and the Debian package that has it.
const PACKAGES: [(&str, &str); 3] = [
    ("bwrap", "bubblewrap"),
    ("chromium", "chromium"),
    ("npm", "npm"),
];

/// Installs what is missing, and returns whether all sandboxes can be run then. A failure is printed, and does not keep the rest from being installed.
pub(super) fn fix() -> anyhow::Result<bool> {
    let cache = cache::find()?;
    let bar = bar();
    let mut mended = packages(&bar);
    for backend in OTHERS {
        if let Err(error) = mend(backend, &cache, &bar) {
            mended = false;
            bar.suspend(|| eprintln!("minivm: {error:#}"));
        }
    }
    bar.finish_and_clear();
    Ok(mended)
}

fn bar() -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Prints a step, as a progress message on a terminal and as a line elsewhere.
fn tell(bar: &ProgressBar, what: &str) {
    match bar.is_hidden() {
        true => eprintln!("minivm: {what}"),
        false => bar.set_message(what.to_owned()),
    }
}

fn mend(backend: Backend, cache: &Path, bar: &ProgressBar) -> anyhow::Result<()> {
    let mut told = |what: &str| tell(bar, what);
    match backend {
        Backend::Gvisor if find_parts(backend, cache).is_err() => {
            tools::install_runsc(cache, &mut told)?;
        }
        Backend::Deno | Backend::Chromium => {
            tools::npm::install(cache, &mut told)?;
        }
        _ => {}
    }
    if backend == Backend::Deno {
        told("making a snapshot of a started Python");
        // It makes what it needs.
        host(cache).open(backend)?;
    }
    find_parts(backend, cache)?;
    Ok(())
}

fn find_parts(backend: Backend, cache: &Path) -> anyhow::Result<String> {
    Ok(minivm_sandbox::find_parts(backend, cache, &worker()?)?)
}

fn host(cache: &Path) -> Host {
    Host {
        // Nothing is run.
        worker: PathBuf::new(),
        cache: cache.to_owned(),
        image: None,
        kernel: None,
        accel: Accel::Kvm,
    }
}

/// Installs missing packages, and returns whether all are there then.
fn packages(bar: &ProgressBar) -> bool {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return true;
    }
    let names = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bar.suspend(|| eprintln!("minivm: run `sudo apt-get install {names}`, which takes root"));
        return false;
    }
    tell(bar, &format!("installing {names}"));
    let apt_get = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["--quiet", "--quiet"]).args(words);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let install = [&["install", "--yes", "--no-install-recommends"], &*missing].concat();
    let installed = apt_get(&["update"]) && apt_get(&install);
    if !installed {
        bar.suspend(|| eprintln!("minivm: `apt-get install {names}` failed; it says why above"));
    }
    installed
}

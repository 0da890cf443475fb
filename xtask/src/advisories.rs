//! `cargo xtask advisories`: cargo-deny over the lock file, with the database of known faults (RustSec's) where it can be fetched.
//!
//! It is no part of `cargo xtask test`, as cargo-deny takes minutes to build, and the database is fetched from GitHub. The tests
//! (`tests/tests/supply`) keep the other rules of `deny.toml` by themselves.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::cargo::{cargo, root};
use crate::process::pass_through;
use crate::report::Report;
use crate::tally::Tally;

/// The version of cargo-deny that is installed.
const VERSION: &str = "0.20.2";

/// The folder of the cache for it.
const FOLDER: &str = "tools";

/// The checks that need nothing but the lock file and the packages.
const OFFLINE: [&str; 3] = ["bans", "licenses", "sources"];

/// The advisories' check, which needs the database.
const ADVISORIES: &str = "advisories";

/// Runs all checks that can be run, and prints how many there were.
pub(crate) fn run() -> Result<()> {
    let mut report = Report::new();
    let deny = report.stage("cargo-deny", install)?;
    let mut tally = Tally::default();
    for check in OFFLINE {
        tally += checked(&mut report, &deny, check);
    }
    let fetched = report.stage("database", || {
        pass_through(cargo_deny(&deny).args(["fetch", "db"])).map(|()| ((), "fetched".to_owned()))
    });
    match fetched {
        Ok(()) => tally += checked(&mut report, &deny, ADVISORIES),
        Err(error) => {
            eprintln!("xtask: {ADVISORIES} are skipped: there is no database of them: {error:#}");
            tally.skipped += 1;
        }
    }
    println!("{tally}");
    match tally.failed {
        0 => Ok(()),
        failed => bail!("{failed} of cargo-deny's checks failed: it says why above"),
    }
}

fn checked(report: &mut Report, deny: &Path, check: &str) -> Tally {
    let run =
        || pass_through(cargo_deny(deny).args(["check", check])).map(|()| ((), "ok".to_owned()));
    match report.stage(check, run) {
        Ok(()) => Tally {
            passed: 1,
            ..Tally::default()
        },
        Err(error) => {
            eprintln!("xtask: {error:#}");
            Tally::failure()
        }
    }
}

/// cargo-deny for this workspace, whose lock file it may not change.
fn cargo_deny(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).arg("--locked");
    command
}

/// Builds cargo-deny, or finds it built; returns its path.
fn install() -> Result<(PathBuf, String)> {
    let cache = Cache::open()?;
    let key = format!("cargo-deny-{VERSION}");
    let program = |folder: &Path| folder.join("bin/cargo-deny");
    let there = program(&cache.folder(FOLDER).join(&key));
    if there.exists() {
        return Ok((there, "already there".to_owned()));
    }
    let folder = cache.make(FOLDER, &key, |folder| {
        let mut install = cargo();
        install.args(["install", "--locked", "--version", VERSION, "--root"]);
        pass_through(install.arg(folder).arg("cargo-deny"))
    })?;
    Ok((program(&folder), "built".to_owned()))
}

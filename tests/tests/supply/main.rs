//! The crates that minivm is made of: their sources, licences and versions against `deny.toml`; what has `unsafe`, C or assembly in it, and
//! how many packages are shipped, against docs/unsafe.md. And the monitor's size.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod graph;
mod page;
mod policy;
mod size;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's folder.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap().to_owned()
}

/// Runs Cargo with these arguments in the workspace, whose lock file it may not change; returns what it prints.
fn cargo(arguments: &[&str]) -> String {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments).arg("--locked");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

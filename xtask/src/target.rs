//! Rust's standard library for other targets: for the C library that the guest's init is linked against, and for arm64.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, output};

/// As in `machine/build.rs`.
const MUSL: &str = "x86_64-unknown-linux-musl";

/// Installs it where rustup can. Without it, init is linked against the host's C library, and works as well.
pub(crate) fn install() -> Result<String> {
    let added = add(MUSL);
    Ok(added.unwrap_or_else(|error| format!("{error:#}: init will be twice as large")))
}

/// Installs a target where it isn't there.
///
/// # Errors
///
/// If rustup can't, or this Rust isn't rustup's.
pub(crate) fn add(target: &str) -> Result<String> {
    if is_there(target) {
        return Ok("already there".to_owned());
    }
    println!("installing Rust's target {target} …");
    let added = capture(Command::new("rustup").args(["target", "add", target]));
    added.with_context(|| format!("no Rust target {target}"))?;
    if !is_there(target) {
        bail!("no Rust target {target} for this Rust, which isn't rustup's");
    }
    Ok(format!("installed {target}"))
}

fn is_there(target: &str) -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", target]);
    output(&mut rustc).is_ok_and(|printed| {
        let folder = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
        printed.status.success() && Path::new(&folder).is_dir()
    })
}

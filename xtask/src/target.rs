//! Rust's standard library for the C library that the guest's init is linked against.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::{capture, output};

/// As in `machine/build.rs`.
const MUSL: &str = "x86_64-unknown-linux-musl";

/// Installs it where rustup can. Without it, init is linked against the host's C library, and works as well.
pub(crate) fn install() -> Result<String> {
    if is_there() {
        return Ok("already there".to_owned());
    }
    println!("installing Rust's target {MUSL} …");
    let added = capture(Command::new("rustup").args(["target", "add", MUSL]));
    Ok(match added {
        Ok(_) if is_there() => format!("installed {MUSL}"),
        Ok(_) => format!("no {MUSL} for this Rust: init will be twice as large"),
        Err(error) => format!("no {MUSL} ({error}): init will be twice as large"),
    })
}

fn is_there() -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", MUSL]);
    output(&mut rustc).is_ok_and(|printed| {
        let folder = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
        printed.status.success() && Path::new(&folder).is_dir()
    })
}

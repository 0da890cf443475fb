//! The sandboxes that are no machines: what they are made of is installed by `minivm` itself.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cannot_start, shown};
use crate::report::Report;

/// All five, as `minivm` names them, and what they are.
pub(crate) const ALL: [(&str, &str); 5] = [
    ("microvm", "a virtual machine on KVM"),
    ("gvisor", "a kernel in user space"),
    ("monty", "an interpreter in Rust"),
    ("deno", "CPython as WebAssembly in Deno"),
    ("chromium", "CPython as WebAssembly in a browser"),
];

/// Installs runsc, Deno and Pyodide into the cache, where they aren't there.
pub(crate) fn install(minivm: &Path) -> Result<()> {
    let mut doctor = Command::new(minivm);
    doctor.args(["doctor", "--fix"]);
    let output = doctor
        .output()
        .map_err(|error| cannot_start(&doctor, &error))?;
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        print!("{}", String::from_utf8_lossy(&output.stdout));
        bail!("{} failed; it says why above", shown(&doctor));
    }
    Ok(())
}

/// The same as a stage of a report.
pub(crate) fn stage(report: &mut Report, minivm: &Path) -> Result<()> {
    report.stage("sandboxes", || {
        install(minivm).map(|()| ((), "runsc, Deno and Pyodide are there".into()))
    })
}

//! The guest kernels, built by `kernel-config/build.sh` and kept by it in the cache.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::cargo::root;
use crate::process::{cannot_start, output, short, shown};
use crate::report::Report;

/// The kernels that we build ourselves.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kernel {
    /// What minivm's guests run
    Sandbox,
    /// What the lab runs, with KVM
    Lab,
    /// What minivm's guests run on arm64
    SandboxArm64,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Lab => "lab",
            Self::SandboxArm64 => "sandbox-arm64",
        }
    }

    /// The files that its build leaves.
    fn files(self) -> [&'static str; 2] {
        match self {
            Self::Sandbox | Self::Lab => ["vmlinux", "bzImage"],
            Self::SandboxArm64 => ["vmlinux", "Image"],
        }
    }

    fn script(self) -> Command {
        let folder = root().join("kernel-config");
        let mut command = Command::new(folder.join("build.sh"));
        command
            .arg("--fragment")
            .arg(folder.join(format!("{}.config", self.name())));
        command
    }
}

/// The folder with the kernel's files, which are built if they aren't there.
pub(crate) fn ensure(report: &mut Report, kernel: Kernel) -> Result<PathBuf> {
    let step = format!("kernel {}", kernel.name());
    let built = output(kernel.script().arg("--print-path"))?
        .status
        .success();
    if built {
        return report.step(&step, || Ok((build(kernel)?, "already there".to_owned())));
    }
    report.stage(&step, || {
        let folder = build(kernel)?;
        Ok((
            folder.clone(),
            format!("built in {}", short(&folder.to_string_lossy())),
        ))
    })
}

/// Builds (minutes) or finds what is built (at once), and makes it the current one. The script's progress goes to stderr, and
/// the last line of its stdout is the result's folder.
fn build(kernel: Kernel) -> Result<PathBuf> {
    let mut script = kernel.script();
    script.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = script
        .output()
        .map_err(|error| cannot_start(&script, &error))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): it says why above",
            shown(&script),
            output.status
        );
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let folder = PathBuf::from(
        said.lines()
            .last()
            .context("kernel-config/build.sh didn't say where the kernel is")?,
    );
    for file in kernel.files() {
        if !folder.join(file).is_file() {
            bail!(
                "kernel-config/build.sh left no {file} in {}",
                folder.display()
            );
        }
    }
    Ok(folder)
}

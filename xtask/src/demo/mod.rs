//! `cargo xtask demo`: everything from nothing to a virtual machine in which Python answers 4, four other sandboxes, and a machine that is warm.

mod answer;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::cargo;
use crate::kvm;
use crate::process::capture;
use crate::report::Report;
use crate::sandboxes;
use crate::setup::{self, Wanted};
use answer::{PATIENCE, answer};

/// `reboot=t`: the guest's reboot is a triple fault, which ends the machine. `quiet loglevel=0`: nothing but the answer.
const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet loglevel=0";

/// What is run.
const CODE: &str = "print(2+2)";

pub(crate) fn run() -> Result<()> {
    let mut report = Report::new();
    let made = setup::prepare(
        &mut report,
        &Wanted {
            lab: !kvm::runs_kernels(),
            sandboxes: true,
            ..Wanted::default()
        },
    )?;
    let minivm = cargo::stage_minivm(&mut report)?;

    let mut command = Command::new(&minivm);
    command
        .arg("--kernel")
        .arg(made.kernel.join("vmlinux"))
        .arg("--initramfs")
        .arg(&made.initramfs);
    command.args(["--cmdline", CMDLINE, "--memory", "256M"]);
    answer(&mut report, "boot", &mut command)?;

    // The same files as an image, whose initramfs minivm makes and keeps.
    let root = made.initramfs.with_file_name("rootfs");
    let mut command = Command::new(&minivm);
    command
        .args(["run", "--cold", &format!("dir:{}", root.display())])
        .args(["--", "python3", "-c", "print(2+2)"]);
    answer(&mut report, "run", &mut command)?;

    // The same code in all five sandboxes; last in the microVM, whose first run has a template made for the next.
    sandboxes::stage(&mut report, &minivm)?;
    for backend in sandboxes::ALL.iter().rev() {
        let mut command = code_in(&minivm, backend);
        answer(&mut report, backend, &mut command)?;
    }
    wait_for_template(&minivm)?;
    answer(
        &mut report,
        "warm microvm",
        &mut code_in(&minivm, "microvm"),
    )?;
    report.print_table();
    Ok(())
}

/// Code in a sandbox.
fn code_in(minivm: &Path, backend: &str) -> Command {
    let mut command = Command::new(minivm);
    command.args(["run", "--quiet", "--backend", backend, "--code", CODE]);
    // The last run is to be warm, whatever the user likes otherwise.
    command.env_remove("MINIVM_COLD");
    command
}

/// Waits until a machine goes on from a template instead of booting.
fn wait_for_template(minivm: &Path) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let mut command = code_in(minivm, "microvm");
        let report: Value = serde_json::from_str(&capture(command.arg("--json"))?)?;
        if report["warm"] == true {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
    bail!("no run has left a template for the next");
}

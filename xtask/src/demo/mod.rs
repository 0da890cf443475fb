//! `cargo xtask demo`: from nothing to a virtual machine in which Python answers 4, by what is quick to have; then with kernels and a
//! minivm that are made for it, in four other sandboxes, and in a machine that is warm.

mod answer;
mod sides;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::cargo;
use crate::kvm;
use crate::process::{capture, short};
use crate::report::Report;
use crate::sandboxes;
use crate::setup::{self, Fetched};
use answer::{PATIENCE, answer};
use sides::Side;

/// `reboot=t`: the guest's reboot is a triple fault, which ends the machine. `quiet loglevel=0`: nothing but the answer.
const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet loglevel=0";

/// What is run.
const CODE: &str = "print(2+2)";

/// What is quick to have, and a first answer by it; then the same, tuned.
pub(crate) fn run() -> Result<()> {
    let mut report = Report::new();
    let lab = !kvm::runs_kernels();
    println!("First what is quick to have: Debian's kernel, and minivm without optimization.\n");
    let (fetched, stock) = stock(&mut report, lab)?;
    println!(
        "\nThat was the first answer, after {:.0} s. What takes longer follows: kernels made for this, minivm optimized, other sandboxes.\n",
        report.elapsed().as_secs_f64()
    );
    let (minivm, tuned) = tuned(&mut report, lab, &fetched.initramfs)?;
    in_sandboxes(&mut report, &minivm, &fetched.initramfs)?;
    report.print_table();
    sides::print(&stock, &tuned);
    Ok(())
}

/// A boot of Debian's kernel by a minivm that isn't optimized.
fn stock(report: &mut Report, lab: bool) -> Result<(Fetched, Side)> {
    // Before minivm is built, which looks for it.
    setup::rust_target(report)?;
    report.purpose(
        "minivm is being built meanwhile: unoptimized, and without what only other sandboxes need",
    );
    let building = cargo::begin_quick_minivm()?;
    let fetched = setup::fetch(report, lab)?;
    let minivm = report.wait("unoptimized minivm", building.began(), |show| {
        let minivm = cargo::minivm_among(&building.wait(show)?)?;
        Ok((minivm.clone(), short(&minivm.to_string_lossy())))
    })?;
    let kernel = fetched.kernel.join("vmlinuz");
    let mut command = boot(&minivm, &kernel, &fetched.initramfs);
    if lab {
        command.env("MINIVM_LAB_KERNEL", &fetched.kernel);
    }
    let side = Side {
        to_answer: answer(
            report,
            "stock",
            "a virtual machine: Debian's kernel, and files whose /init asks Python",
            &mut command,
        )?,
        kernel: debians(&fetched.kernel)?,
        lab_kernel: lab.then(|| "the same, with modules".to_owned()),
        minivm: sides::program("unoptimized", &minivm)?,
    };
    Ok((fetched, side))
}

/// What a packaged kernel is called here: `Debian's 6.1.192-3, for clouds`.
fn debians(folder: &Path) -> Result<String> {
    let package = std::fs::read_to_string(folder.join("version"))?;
    let version = package.trim().rsplit('=').next().unwrap_or_default();
    Ok(format!("Debian's {version}, for clouds"))
}

/// The same boot, of the kernels that are made for it, by an optimized minivm.
fn tuned(report: &mut Report, lab: bool, initramfs: &Path) -> Result<(PathBuf, Side)> {
    let built = setup::build(report, lab)?;
    report.purpose("minivm, optimized, and minivm-worker, which runs what other sandboxes jail");
    let minivm = cargo::stage_minivm(report)?;
    let mut command = boot(&minivm, &built.kernel.join("vmlinux"), initramfs);
    let side = Side {
        to_answer: answer(
            report,
            "tuned",
            "the machine from above once more, tuned",
            &mut command,
        )?,
        kernel: "kernel-config/sandbox.config".to_owned(),
        lab_kernel: built
            .lab_kernel
            .map(|_| "kernel-config/lab.config".to_owned()),
        minivm: sides::program("optimized", &minivm)?,
    };
    Ok((minivm, side))
}

/// A boot whose guest asks Python.
fn boot(minivm: &Path, kernel: &Path, initramfs: &Path) -> Command {
    let mut command = Command::new(minivm);
    command.arg("--kernel").arg(kernel);
    command.arg("--initramfs").arg(initramfs);
    command.args(["--cmdline", CMDLINE, "--memory", "256M"]);
    command
}

/// The same files as an image, and the same code in all five sandboxes.
fn in_sandboxes(report: &mut Report, minivm: &Path, initramfs: &Path) -> Result<()> {
    // minivm makes its initramfs, and keeps it.
    let root = initramfs.with_file_name("rootfs");
    let mut command = Command::new(minivm);
    command
        .args(["run", "--cold", &format!("dir:{}", root.display())])
        .args(["--", "python3", "-c", CODE]);
    let purpose =
        "those files as an image: minivm makes the guest's files of it, and brings the command in";
    answer(report, "run", purpose, &mut command)?;

    println!();
    setup::sandboxes_packages(report)?;
    report.purpose("gVisor's runsc, Deno and Pyodide, in versions that are known to work");
    sandboxes::stage(report, minivm)?;
    // Last in the microVM, whose first run has a template made for the next.
    for (backend, what) in sandboxes::ALL.iter().rev() {
        let purpose = format!("Python in {what}");
        answer(report, backend, &purpose, &mut code_in(minivm, backend))?;
    }
    wait_for_template(minivm)?;
    let purpose =
        "a microVM again, which goes on from a machine that was saved when Python was ready";
    answer(report, "warm", purpose, &mut code_in(minivm, "microvm"))?;
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

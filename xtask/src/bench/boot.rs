//! The boot, against QEMU's microvm.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::sample::{SampleArgs, Times, Words};
use super::{BootArgs, Contender, guest, memory, sample, table, text, this_program};
use crate::process::capture;
use crate::report::Report;
use crate::setup::{self, Wanted};
use crate::{cargo, kvm};

/// One command line for all kernels.
const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet loglevel=0";
/// QEMU as small as it gets.
pub(super) const QEMU: [&str; 13] = [
    "qemu-system-x86_64",
    "-M",
    "microvm",
    "-accel",
    "kvm",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
    "-serial",
    "stdio",
    "-m",
];
/// Instructions repeat so well that a few runs are enough.
const COUNTED_RUNS: usize = 3;
/// Give up on the lab after this.
const LAB_TIMEOUT: &str = "9m";

pub(crate) fn run(args: &BootArgs) -> Result<()> {
    let mut report = Report::new();
    let wanted = Wanted {
        lab: true,
        debian_kernels: true,
        ..Wanted::default()
    };
    let made = setup::prepare(&mut report, &wanted)?;
    let minivm = cargo::stage_minivm(&mut report)?;
    let folder = tempfile::tempdir_in(cargo::root().join("target"))?;
    if kvm::is_there() {
        native(args, &minivm, folder.path())?;
    } else {
        println!("\nthis host has no /dev/kvm: no figures for the monitor alone");
    }
    if !args.native_only {
        let debian = made
            .debian_kernels
            .context("set-up made Debian's kernels")?;
        lab(args, &minivm, &made.kernel, &debian, folder.path())?;
    }
    Ok(())
}

/// A guest of a few bytes on this host's KVM: what the monitor itself takes.
fn native(args: &BootArgs, minivm: &Path, folder: &Path) -> Result<()> {
    let ends = folder.join("ends.elf");
    let loops = folder.join("loops.elf");
    std::fs::write(&ends, guest::bare(true))?;
    std::fs::write(&loops, guest::bare(false))?;
    let (minivm_path, guest) = (text(minivm), text(&ends));
    let ours = |name: &str, memory: &str| {
        let words = [&minivm_path, "--accel", "kvm", "--kernel", &guest];
        Contender::new(name, &[&words[..], &["--memory", memory]].concat())
    };
    // QEMU's own model, since its `host` fails where KVM lacks an MSR that the processor has.
    let qemu = ["256", "-cpu", "qemu64", "-kernel", &guest];
    let contenders = [
        ours("minivm, 256 MiB", "256M"),
        ours("minivm, 4 GiB", "4G"),
        Contender::new("QEMU microvm, 256 MiB", &[&QEMU[..], &qemu].concat()),
    ];
    let all = sample::run(&sample_args(args.runs, &[], &contenders))?;
    println!(
        "\nOn this host's KVM: a guest that writes a byte and resets, {} runs each",
        args.runs
    );
    print_times(&contenders, &all, "ms");

    let mut looping = Command::new(minivm);
    looping.args(["--accel", "kvm", "--memory", "256M", "--kernel"]);
    let own = memory::resident(looping.arg(&loops))?;
    println!("\nResident in the monitor beside the guest's memory: {own}");
    Ok(())
}

/// Whole kernels, to the first line of `/init`, in the lab.
fn lab(args: &BootArgs, minivm: &Path, kernel: &Path, debian: &Path, folder: &Path) -> Result<()> {
    let initramfs = folder.join("init.cpio");
    std::fs::write(&initramfs, guest::initramfs()?)?;
    let cloud = folder.join("debian-cloud");
    std::fs::copy(debian.join("cloud/vmlinuz"), &cloud)?;
    let files = [
        minivm.to_owned(),
        kernel.join("vmlinux"),
        kernel.join("bzImage"),
        initramfs,
        cloud,
    ];
    let ours = |name: &str, kernel: &str| {
        let words = [
            "./minivm", "--accel", "kvm", "--memory", "256M", "--kernel", kernel,
        ];
        let rest = ["--initramfs", "init.cpio", "--cmdline", CMDLINE];
        Contender::new(name, &[&words[..], &rest].concat())
    };
    let qemu = |name: &str, kernel: &str| {
        let rest = [
            "256",
            "-cpu",
            "host",
            "-kernel",
            kernel,
            "-initrd",
            "init.cpio",
        ];
        Contender::new(name, &[&QEMU[..], &rest, &["-append", CMDLINE]].concat())
    };
    let same_kernel = [
        ours("minivm, our vmlinux", "vmlinux"),
        ours("minivm, our bzImage", "bzImage"),
        qemu("QEMU microvm, our bzImage", "bzImage"),
    ];
    let clocked = sample_args(args.runs, &files, &same_kernel);
    let all = in_lab(minivm, &clocked, false)?;
    println!(
        "\nIn the lab, by the clock: exec to the first word of /init, {} runs each",
        args.runs
    );
    print_times(&same_kernel, &all, "ms");

    let mut counted = same_kernel.to_vec();
    counted.push(ours("minivm, Debian's cloud kernel", "debian-cloud"));
    let all = in_lab(minivm, &sample_args(COUNTED_RUNS, &files, &counted), true)?;
    println!(
        "\nIn the lab, in instructions (one is counted as a nanosecond), {COUNTED_RUNS} runs each"
    );
    print_times(&counted, &all, "million instructions");
    Ok(())
}

pub(super) fn print_times(contenders: &[Contender], all: &[Times], unit: &str) {
    let names: Vec<_> = contenders.iter().map(|one| one.name.clone()).collect();
    table::print("exec → mark", unit, &names, all, |times| &times.to_mark);
    table::print("exec → end", unit, &names, all, |times| &times.to_end);
}

pub(super) fn sample_args(
    runs: usize,
    copy: &[std::path::PathBuf],
    contenders: &[Contender],
) -> SampleArgs {
    SampleArgs {
        runs,
        copy: copy.to_vec(),
        mark: guest::MARK,
        commands: contenders
            .iter()
            .map(|one| Words(one.command.clone()))
            .collect(),
    }
}

/// Lets this program take the samples in the lab.
fn in_lab(minivm: &Path, args: &SampleArgs, icount: bool) -> Result<Vec<Times>> {
    let mut command = Command::new(minivm);
    command.args(["lab", "--memory", "2G", "--timeout", LAB_TIMEOUT]);
    if icount {
        command.arg("--icount");
    }
    command.arg("--").arg(this_program()?).arg("sample");
    command.args(["--runs", &args.runs.to_string()]);
    for file in &args.copy {
        command.arg("--copy").arg(file);
    }
    for Words(words) in &args.commands {
        command.arg("--command").arg(serde_json::to_string(words)?);
    }
    Ok(serde_json::from_str(&capture(&mut command)?)?)
}

//! Warm machines: what it costs to go on from a snapshot, beside what it costs to boot.
//!
//! On this host's own KVM, with a guest of a few bytes: forks within one process, which the benchmark `fork` of the monitor
//! times, and whole processes, from exec to the first byte on stdout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use minivm_vmm::{Builder, Config, Kernel};

use super::boot::{QEMU, sample_args};
use super::sample::Times;
use super::{Contender, guest, sample, table, text};
use crate::process::pass_through;
use crate::report::Report;
use crate::setup::{self, Wanted};
use crate::{cargo, kvm};

/// How much of a saved guest's memory holds something.
const FILLED: u64 = 48 << 20;
/// What half of the restores are to be within, in milliseconds.
const GOAL: f64 = 5.0;

#[derive(Args)]
pub(crate) struct WarmArgs {
    /// Processes of each kind
    #[arg(long, default_value_t = 200)]
    pub(crate) runs: usize,
}

pub(crate) fn run(args: &WarmArgs) -> Result<()> {
    let mut report = Report::new();
    setup::prepare(&mut report, &Wanted::default())?;
    let minivm = cargo::stage_minivm(&mut report)?;
    let forks = cargo::build_bench(&mut report, "minivm-vmm", "fork")?;
    if !kvm::is_there() {
        bail!("this host has no /dev/kvm: nothing can be measured without the lab");
    }
    let folder = tempfile::tempdir_in(cargo::root().join("target"))?;
    native(args, &minivm, &forks, folder.path())
}

/// Guests of a few bytes on this host's KVM: what the monitor itself takes.
fn native(args: &WarmArgs, minivm: &Path, forks: &Path, folder: &Path) -> Result<()> {
    println!("\nOn this host's KVM: forks of a snapshot in one process\n");
    pass_through(&mut Command::new(forks))?;
    processes(args, minivm, folder)
}

/// Whole processes: a guest that writes a byte and resets, saved before its first instruction, and booted.
fn processes(args: &WarmArgs, minivm: &Path, folder: &Path) -> Result<()> {
    let kernel = folder.join("guest.elf");
    std::fs::write(&kernel, guest::bare(true))?;
    let (minivm, guest) = (text(minivm), text(&kernel));
    let mut contenders = Vec::new();
    for (name, memory) in [("64 MiB", 64 << 20), ("4 GiB", 4 << 30)] {
        let saved = text(&save(&kernel, memory, folder)?);
        let words = [&minivm, "restore", "--accel", "kvm", &saved];
        contenders.push(Contender::new(&format!("minivm restore, {name}"), &words));
    }
    let restores = contenders.len();
    for (name, memory) in [("64 MiB", "64M"), ("4 GiB", "4G")] {
        let words = [&minivm, "--accel", "kvm", "--kernel", &guest];
        let words = [&words[..], &["--memory", memory]].concat();
        contenders.push(Contender::new(&format!("minivm --kernel, {name}"), &words));
    }
    // QEMU's own model, since its `host` fails where KVM lacks an MSR that the processor has.
    let qemu = [&QEMU[..], &["64", "-cpu", "qemu64", "-kernel", &guest]].concat();
    contenders.push(Contender::new("QEMU microvm -kernel, 64 MiB", &qemu));

    let all = sample::run(&sample_args(args.runs, &[], &contenders))?;
    println!(
        "\nOn this host's KVM: whole processes with a guest that writes a byte and resets, {} runs each",
        args.runs
    );
    print_to_mark(&contenders, &all, restores);
    Ok(())
}

/// Saves a machine that is about to run its first instruction; tells where.
fn save(kernel: &Path, memory: u64, folder: &Path) -> Result<PathBuf> {
    let config = Config {
        memory,
        ..Config::new(Kernel::File(kernel.into()))
    };
    let machine = Builder::new(config).build()?;
    let filling = [0x5a; 1 << 20];
    for at in (8 << 20..(8 << 20) + FILLED).step_by(1 << 20) {
        machine.memory().write(at, &filling)?;
    }
    let folder = folder.join(format!("saved-{memory}"));
    machine.snapshot(&folder)?;
    Ok(folder)
}

/// Prints a row a contender, with the goal beside the first ones, which are the restores.
fn print_to_mark(contenders: &[Contender], all: &[Times], restores: usize) {
    println!("\nexec → first byte");
    println!("  {:<34} {:>9} {:>9} {:>9}", "ms", "50 %", "90 %", "99 %");
    for (index, (one, times)) in contenders.iter().zip(all).enumerate() {
        let [half, most, nearly_all] =
            [50, 90, 99].map(|hundredths| table::percentile(&times.to_mark, hundredths));
        let goal = match index < restores {
            true if half <= GOAL => format!("   goal: half within {GOAL}: reached"),
            true => format!("   goal: half within {GOAL}: NOT REACHED"),
            false => String::new(),
        };
        println!(
            "  {:<34} {half:>9.2} {most:>9.2} {nearly_all:>9.2}{goal}",
            one.name
        );
    }
}

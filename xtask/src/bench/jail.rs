//! The walls around a machine: what they cost its start, against a start without them, in turn in one run.

use std::process::Command;

use anyhow::{Result, bail};

use super::boot::{print_times, sample_args};
use super::{BootArgs, Contender, guest, memory, sample, text};
use crate::report::Report;
use crate::{cargo, kvm};

pub(crate) fn run(args: &BootArgs) -> Result<()> {
    let mut report = Report::new();
    let minivm = cargo::stage_minivm(&mut report)?;
    if !kvm::is_there() {
        bail!(
            "this host has no /dev/kvm: walls cost what they cost on a processor that is not emulated"
        );
    }
    let folder = tempfile::tempdir_in(cargo::root().join("target"))?;
    let (ends, loops) = (
        folder.path().join("ends.elf"),
        folder.path().join("loops.elf"),
    );
    std::fs::write(&ends, guest::bare(true))?;
    std::fs::write(&loops, guest::bare(false))?;
    let (minivm_path, guest) = (text(&minivm), text(&ends));
    let machine = [minivm_path.as_str(), "--accel", "kvm", "--kernel", &guest];
    let contenders = [
        Contender::new("behind walls", &machine),
        Contender::new("--no-jail", &[&machine[..], &["--no-jail"]].concat()),
    ];
    let all = sample::run(&sample_args(args.runs, &[], &contenders))?;
    println!(
        "\nOn this host's KVM: a guest that writes a byte and resets, {} runs each",
        args.runs
    );
    print_times(&contenders, &all, "ms");
    let mut looping = Command::new(&minivm);
    looping.args(["--accel", "kvm", "--memory", "256M", "--kernel"]);
    let own = memory::resident(looping.arg(&loops))?;
    println!("\nThe monitor's own resident memory beside the guest's: {own} KiB");
    Ok(())
}

//! Kills: how long minivm and its machine take to end, whatever the guest does.
//!
//! On this host's own KVM, with guests of a few bytes: the benchmark `kill` of the command.

use std::process::Command;

use anyhow::{Result, bail};

use super::KillArgs;
use crate::process::pass_through;
use crate::report::Report;
use crate::{cargo, kvm};

pub(crate) fn run(args: &KillArgs) -> Result<()> {
    let mut report = Report::new();
    let kill = cargo::build_bench(&mut report, "minivm", "kill")?;
    if !kvm::is_there() {
        bail!(
            "this host has no /dev/kvm: a kill takes what it takes on a processor that is not emulated"
        );
    }
    println!("\nOn this host's KVM: from the kill to the end of all processes\n");
    pass_through(Command::new(kill).arg(args.runs.to_string()))
}

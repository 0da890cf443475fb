//! Traces: what an observer costs each exit, on the vCPU's thread.
//!
//! On this host's own KVM, with a guest of a few bytes: the benchmark `exit` of the traces' crate.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process::pass_through;
use crate::report::Report;
use crate::{cargo, kvm};

pub(crate) fn run() -> Result<()> {
    let mut report = Report::new();
    let exit = cargo::build_bench(&mut report, "minivm-trace", "exit")?;
    if !kvm::is_there() {
        bail!(
            "this host has no /dev/kvm: a trace costs what it costs on a processor that is not emulated"
        );
    }
    println!("\nOn this host's KVM: an exit to minivm and back, with and without a trace\n");
    pass_through(&mut Command::new(exit))
}

//! `minivm lab-relay`: the end of `minivm run` that is in the lab.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use minivm_machine::{self, Machine};

#[derive(Args)]
pub(super) struct RelayArgs {
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initramfs: PathBuf,
    #[arg(long)]
    memory: u64,
    #[arg(long)]
    cpus: u8,
    #[arg(long)]
    no_rings: bool,
    #[arg(long)]
    show_console: bool,
}

/// Runs the machine with its frames on stdin and stdout.
pub(super) fn run(args: RelayArgs) -> anyhow::Result<ExitCode> {
    let machine = Machine {
        kernel: args.kernel,
        initramfs: args.initramfs,
        memory: args.memory,
        cpus: args.cpus,
        rings: !args.no_rings,
        console: args.show_console,
    };
    let ended = minivm_machine::relay(&machine)?;
    if ended.orderly {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("minivm: {}", ended.how);
    Ok(ExitCode::from(1))
}

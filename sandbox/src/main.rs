//! `minivm`: runs code in small virtual machines.

mod command;

use std::process::ExitCode;

use clap::Parser;
use minivm::backend::monty;

/// It counts where `minivm monty-worker` asks it to.
#[global_allocator]
static ALLOCATOR: monty::Allocator = monty::Allocator;

fn main() -> ExitCode {
    match command::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("minivm: {error:#}");
            ExitCode::from(command::EXIT_ERROR)
        }
    }
}

//! `minivm-worker`: the program that the backends monty, chromium and gvisor run inside their jails.
//!
//! It is a separate program, so that `minivm` contains neither an interpreter nor a browser's protocol. `minivm` starts it; it is of
//! no use by hand.

mod chromium;
mod monty;
mod rootless;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use minivm_guest::inherited;

/// The exit code of a failure of the worker itself.
const EXIT_ERROR: u8 = 125;

/// The allocator that counts memory for the interpreter's limit.
#[global_allocator]
static ALLOCATOR: minivm_sandbox::monty::Allocator = minivm_sandbox::monty::Allocator;

/// The part of minivm's sandboxes that runs inside their jails. `minivm` starts it.
#[derive(Parser)]
enum Cli {
    /// Interpret code in this process
    #[command(name = minivm_sandbox::monty::WORKER_COMMAND)]
    Monty(monty::WorkerArgs),
    /// Drive a browser in whose page code runs
    #[command(name = minivm_sandbox::chromium::WORKER_COMMAND)]
    Chromium(chromium::WorkerArgs),
    /// Become a program as root of a user namespace
    #[command(name = minivm_sandbox::rootless::WORKER_COMMAND)]
    Rootless(rootless::WorkerArgs),
}

fn main() -> ExitCode {
    inherited::signals();
    let ended = match Cli::parse() {
        Cli::Monty(args) => monty::run(&args),
        Cli::Chromium(args) => {
            // The browser inherits no descriptors of the worker's.
            inherited::descriptors();
            chromium::run(&args)
        }
        Cli::Rootless(args) => rootless::run(&args),
    };
    ended.unwrap_or_else(|error| {
        let limit = inherited::limit_behind(error.as_ref());
        let limit = limit.map_or_else(String::new, |limit| format!("; {limit}"));
        let _ = writeln!(io::stderr(), "minivm-worker: {error:#}{limit}");
        ExitCode::from(EXIT_ERROR)
    })
}

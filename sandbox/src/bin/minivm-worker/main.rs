//! `minivm-worker`: what runs inside the jails of sandboxes that need a program of ours there.
//!
//! It is a program of its own, so that the monitor carries neither an interpreter nor a browser's protocol. `minivm` starts it;
//! it is of no use by hand.

mod chromium;
mod monty;
mod rootless;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use minivm_guest::inherited;

/// Our own failure, whatever the code did.
const EXIT_ERROR: u8 = 125;

/// It counts where the interpreter asks it to.
#[global_allocator]
static ALLOCATOR: minivm_sandbox::monty::Allocator = minivm_sandbox::monty::Allocator;

/// The part of minivm's sandboxes that is inside their jails. `minivm` starts it.
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
            // The browser is told nothing.
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

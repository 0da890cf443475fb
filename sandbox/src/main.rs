//! `minivm`: runs code in small virtual machines.

mod command;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match command::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("minivm: {error:#}");
            ExitCode::from(command::EXIT_ERROR)
        }
    }
}

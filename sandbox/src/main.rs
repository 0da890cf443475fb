//! `minivm`: runs code in small virtual machines.

mod command;

use std::process::ExitCode;

use minivm::streams;

fn main() -> ExitCode {
    match command::Cli::understand().run() {
        Ok(code) => code,
        Err(error) => {
            streams::tell(&format!("{error:#}"));
            ExitCode::from(command::EXIT_ERROR)
        }
    }
}

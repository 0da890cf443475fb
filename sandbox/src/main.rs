//! `minivm`: runs code in small virtual machines.

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    match command::Cli::understand().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("minivm: {error:#}");
            ExitCode::from(command::EXIT_ERROR)
        }
    }
}

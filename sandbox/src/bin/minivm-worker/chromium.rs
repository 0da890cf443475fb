//! `minivm-worker chromium`: the part of the backend chromium that runs in its jail.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use minivm_sandbox::chromium::{WORKER_FAILED, worker};

#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// The browser's path
    chromium: PathBuf,
    /// The number of the descriptor to which a failure is written
    failures: u32,
}

/// Runs the jail's task in a page.
pub(crate) fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    match worker::run(&args.chromium) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(failure) => {
            worker::report(args.failures, &failure)?;
            Ok(ExitCode::from(WORKER_FAILED))
        }
    }
}

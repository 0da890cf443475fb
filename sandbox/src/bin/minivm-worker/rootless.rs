//! `minivm-worker rootless`: the first program in gVisor's jail.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use minivm_sandbox::rootless;

#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// Folders to merge: the first one gets what only the second one has
    #[arg(long, num_args = 2, value_names = ["FOLDER", "ADDED"])]
    merge: Vec<PathBuf>,
    /// The program to execute
    program: PathBuf,
    /// The program's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Executes the program as root of a user namespace.
pub(crate) fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    let merged = match &*args.merge {
        [folder, added] => Some((folder.as_path(), added.as_path())),
        _ => None,
    };
    bail!(rootless::exec(merged, &args.program, &args.args))
}

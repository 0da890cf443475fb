//! `cargo xtask intel -- COMMAND`: an emulated Intel processor with real KVM, for the tests alone.
//!
//! The lab's QEMU emulates AMD's SVM, and no VMX. Bochs emulates Intel's processors with it, a hundred times slower than they are, and
//! boots the same kernel: see [`machine`]. What a command needs is named ([`archive`]), and its output and exit code come back over a
//! serial port ([`answer`]).

mod answer;
mod archive;
mod machine;
pub(crate) mod plan;

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::kernels::{self, Kernel};
use crate::report::Report;
use archive::Job;
use machine::Machine;

/// The variables that the command gets beside those of the tests.
const VARIABLES: [&str; 2] = ["RUST_BACKTRACE", "CARGO_MANIFEST_DIR"];
/// The beginning of the names of the tests' variables.
const TESTS_VARIABLES: &str = "MINIVM_";

/// A command, and the machine that it runs in.
#[derive(Args)]
pub(crate) struct Intel {
    /// The processor, one of those that `bochs --help cpu` lists
    #[arg(long, default_value = plan::MODELS[0])]
    cpu: String,
    /// The machine's memory in MiB
    #[arg(long, default_value = "1024")]
    memory: u32,
    /// Kill the machine after so many seconds
    #[arg(long, default_value = "2400")]
    limit: u32,
    /// The lab's kernel as a bzImage; the one in the cache, without
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Words to add to the kernel's command line
    #[arg(long, default_value = "")]
    cmdline: String,
    /// A file or folder of this host's that the command needs, beside its program and libraries
    #[arg(long = "file")]
    files: Vec<PathBuf>,
    /// An empty folder that it needs
    #[arg(long = "folder")]
    folders: Vec<PathBuf>,
    /// The program, and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the command in the machine. Returns its exit code.
pub(crate) fn run(wanted: &Intel) -> Result<u8> {
    let kernel = match &wanted.kernel {
        Some(kernel) => kernel.clone(),
        None => kernels::ensure(&mut Report::new(), Kernel::Lab)?.join("bzImage"),
    };
    let mut folders = wanted.folders.clone();
    folders.push(env::current_dir().context("cannot find the working folder")?);
    let variables = env::vars_os().filter(|(name, _)| is_handed_on(name));
    let job = Job {
        command: &wanted.command,
        folders: &folders,
        variables: &variables.collect::<Vec<_>>(),
        files: &wanted.files,
    };
    let scratch = tempfile::Builder::new()
        .prefix("minivm-intel-")
        .tempdir()
        .context("cannot create a temporary folder")?;
    // The folder's name is as random as the token has to be.
    let name = scratch.path().file_name().unwrap_or_default();
    let token = name.to_string_lossy();
    let initramfs = scratch.path().join("initramfs");
    archive::write(&job, &token, scratch.path(), &initramfs)?;
    let machine = Machine {
        cpu: &wanted.cpu,
        memory_mib: wanted.memory,
        kernel: &kernel,
        initramfs: &initramfs,
        cmdline: &wanted.cmdline,
        folder: scratch.path(),
    };
    let mut running = machine.start(wanted.limit)?;
    let code = answer::copy(&mut running.port, &token, io::stdout())?;
    match code {
        Some(code) => {
            running.wait()?;
            Ok(code)
        }
        None => {
            drop(running);
            eprint!("{}", machine.last_lines());
            bail!(
                "the emulated {} ended before its command, or after {} s: see its last lines above",
                wanted.cpu,
                wanted.limit
            )
        }
    }
}

fn is_handed_on(name: &std::ffi::OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with(TESTS_VARIABLES) || VARIABLES.contains(&name))
}

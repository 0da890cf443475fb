//! `minivm turducken`: Python code in Pyodide, in Deno, in gVisor, in a machine.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use minivm_machine::{kernel, streams};
use minivm_sandbox::{Limits, Microvm, Sandbox, Turducken};

use super::accel::AccelArg;
use super::report::{Captured, RunReport};
use super::{run, units, unwrapped};

/// The most bytes of each output that are passed on: there is no flag for it.
const OUTPUT_MAX: u64 = 16 << 20;

/// A picture of the four sandboxes and their boundaries.
const PICTURE: &str = "\
microVM ▸ gVisor ▸ Deno ▸ Pyodide
   │        │       │       └ CPython as WebAssembly, in a memory of its own
   │        │       └ permissions: no file but Pyodide's, no network, no process
   │        └ a kernel in user space: the code's system calls are answered by it
   └ a Linux of its own, on virtual hardware (KVM)
";

#[derive(Args)]
#[command(
    after_help = "Exit code: the code's own; 124 at the time limit; 125 when minivm failed; 128 when gVisor failed; 137 out of memory."
)]
pub(super) struct TurduckenArgs {
    /// Python code to run
    #[arg(short, long, value_name = "CODE", default_value = "print(2+2)")]
    code: String,
    /// Kill the code this long after gVisor's start
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = units::duration)]
    timeout: Duration,
    /// Guest memory
    #[arg(short, long, value_name = "SIZE", value_parser = units::bytes)]
    memory: Option<u64>,
    /// Guest kernel: an ELF vmlinux or a bzImage; on arm64, an Image
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Print one JSON object with the outputs, the exit code and times, instead of passing the outputs on
    #[arg(long)]
    pub(super) json: bool,
    /// Print no picture and no warnings, only errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    accel: AccelArg,
}

/// Runs it.
pub(super) fn run(args: &TurduckenArgs, verbose: u8) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let captured = args.json.then(|| Arc::new(Captured::new(Some(OUTPUT_MAX))));
    let ended = args.run(verbose > 0, started, captured.as_ref());
    run::finish(ended, started, captured.as_deref(), |printed| {
        printed.tell(args.quiet, verbose > 0, Some(args.timeout));
    })
}

impl TurduckenArgs {
    fn run(
        &self,
        console: bool,
        started: Instant,
        captured: Option<&Arc<Captured>>,
    ) -> anyhow::Result<RunReport> {
        let mut task = Turducken::task(&self.code)?;
        task.limits = Limits {
            time: Some(self.timeout),
            memory: self.memory,
            output: Some(OUTPUT_MAX),
            cpu: None,
        };
        let microvm = self.microvm()?.console(console);
        let opened = started.elapsed();
        run::connect(&mut task, captured, Some(self.timeout))?;
        let finished = microvm.run(task).map_err(unwrapped)?;
        Ok(RunReport::new(
            &finished,
            opened,
            started.elapsed(),
            captured.map(AsRef::as_ref),
        ))
    }

    /// The machine, whose image is made first where it isn't there.
    fn microvm(&self) -> anyhow::Result<Microvm> {
        let cache = super::image::cache_folder()?;
        let watched = stderr().is_terminal() && !self.quiet;
        if watched {
            eprint!("{PICTURE}");
        }
        let turducken = Turducken::open(&cache, || {
            if watched {
                eprintln!("minivm: putting one into another, which is done once");
            }
        })?;
        let kernel = match &self.kernel {
            Some(kernel) => kernel.clone(),
            None => kernel::find()?,
        };
        let accel = self.accel.choose(|why| {
            if !self.quiet {
                streams::tell(why);
            }
        })?;
        Ok(turducken.microvm(kernel, accel))
    }
}

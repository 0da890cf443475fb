//! `minivm turducken`: Python code in Pyodide, in Deno, in gVisor, in a machine.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use minivm_machine::output::Pending;
use minivm_machine::session::{self, BOOT_LIMIT};
use minivm_machine::{Machine, Place, Session};
use minivm_machine::{kernel, streams};
use minivm_sandbox::{CODE_MAX, Task, Turducken};

use super::accel::AccelArg;
use super::report::{Captured, Phases, Printed};
use super::{run, signals, units};

/// How much of each output is passed on: there is no flag for it.
const OUTPUT_MAX: u64 = 16 << 20;

/// What is inside what, and what each keeps the next one from.
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
    /// The Python code
    #[arg(short, long, value_name = "CODE", default_value = "print(2+2)")]
    code: String,
    /// End it after this time, counted from gVisor's start
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = units::duration)]
    timeout: Duration,
    /// Memory of the machine
    #[arg(short, long, value_name = "SIZE", value_parser = units::bytes)]
    memory: Option<u64>,
    /// Another kernel: an ELF vmlinux or a bzImage
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Print one JSON object with the outputs and how it went, instead of passing the outputs on
    #[arg(long)]
    pub(super) json: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    accel: AccelArg,
}

/// Runs it.
pub(super) fn run(args: &TurduckenArgs, verbose: u8) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let captured = args.json.then(|| Captured::new(Some(OUTPUT_MAX)));
    let ended = run_to_end(args, verbose > 0, started, captured.as_ref());
    run::finish(ended, started, captured.as_ref(), |printed| {
        printed.tell(args.quiet, verbose > 0, Some(args.timeout));
    })
}

fn run_to_end(
    args: &TurduckenArgs,
    verbose: bool,
    started: Instant,
    captured: Option<&Captured>,
) -> anyhow::Result<Printed> {
    if args.code.len() > CODE_MAX || args.code.contains('\0') {
        bail!("the code is longer than {CODE_MAX} bytes, or has a zero byte in it");
    }
    let cache = super::image::cache_folder()?;
    let watched = stderr().is_terminal() && !args.quiet;
    if watched {
        eprint!("{PICTURE}");
    }
    let turducken = Turducken::open(&cache, || {
        if watched {
            eprintln!("minivm: putting one into another, which is done once");
        }
    })?;
    let with_image = started.elapsed();
    let archive = &turducken.archive;
    let machine = Machine {
        kernel: match &args.kernel {
            Some(kernel) => kernel.clone(),
            None => kernel::find()?,
        },
        initramfs: archive.path.clone(),
        memory: archive.memory(args.memory)?,
        cpus: 1,
        rings: true,
        console: verbose,
    };
    let place = args.place()?;
    let session = args.session(&turducken, captured)?;
    let link = machine.start(&place)?;
    if let Some(captured) = captured {
        captured.note(&place, None);
    }
    let with_machine = started.elapsed();
    let report = session.run(link)?;
    let phases = Phases {
        image: with_image,
        machine: with_machine,
        total: started.elapsed(),
    };
    Ok(Printed::new(&report, &phases, captured).at(&place))
}

impl TurduckenArgs {
    fn place(&self) -> anyhow::Result<Place> {
        let warn = |why: &str| {
            if !self.quiet {
                streams::tell(why);
            }
        };
        self.accel.place(warn)
    }

    fn session(
        &self,
        turducken: &Turducken,
        captured: Option<&Captured>,
    ) -> anyhow::Result<Session> {
        let (events, happenings) = mpsc::channel();
        let pending = Pending::default();
        signals::listen(events, pending.clone()).context("cannot listen to signals")?;
        let input = Task::code("").with_input(self.code.as_bytes());
        let input = input.context("cannot keep the code in memory")?.stdin;
        let timeout = self.timeout;
        Ok(Session {
            request: turducken.request.clone(),
            stdin: input,
            stdout: run::output(captured.map(|captured| &captured.stdout), std::io::stdout())?,
            stderr: run::output(captured.map(|captured| &captured.stderr), stderr())?,
            pending,
            boot_limit: BOOT_LIMIT,
            timeout: Some(timeout),
            max_output: Some(OUTPUT_MAX),
            copy_in: Vec::new(),
            copy_out: Vec::new(),
            max_copy_out: 0,
            copy_out_grace: None,
            stop_signal: session::TERM,
            events: happenings,
            // Never with --json, whose outputs are taken by memory.
            overdue: Some(Box::new(move || run::machine::end_overdue(timeout))),
        })
    }
}

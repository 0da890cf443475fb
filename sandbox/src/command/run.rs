//! `minivm run`: a command in a machine made from a container image.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use minivm::machine::session::{BOOT_LIMIT, Event};
use minivm::machine::{Machine, Place, Session};
use minivm_guest::channel::Window;
use minivm_guest::image::Source;
use minivm_vmm::{CPUS_MAX, MEMORY_MAX, MEMORY_MIN};

use super::accel::AccelArg;
use super::image::{self, ImageArgs};
use super::report::{Captured, Phases, Printed};
use super::request::RequestArgs;
use super::terminal::{self, RawMode};
use super::{EXIT_TIMEOUT, signals, units};

/// What a guest has of memory beside what its image takes, if nobody says.
const MEMORY: u64 = 256 << 20;
/// What Ctrl-A x counts as.
const SIGINT: u8 = 2;
/// How often an image's size is needed: in the archive, in the file system, and as much again, for a file system in memory
/// takes at most half of it.
const COPIES: u64 = 3;
/// How much of each output a JSON report holds, if nobody says.
const CAPTURED: u64 = 16 << 20;

#[derive(Args)]
#[command(
    after_help = "Exit code: CMD's own; 128+n if signal n killed it; 124 at the time limit; 125 when minivm failed; \
                  126 if CMD can't be executed; 127 if it isn't there; 137 out of memory.\n\
                  Ctrl-C goes to CMD, and a second one ends the machine; with -t, Ctrl-A x ends it."
)]
pub(super) struct RunArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Pass stdin on to CMD
    #[arg(short, long)]
    interactive: bool,
    /// Give CMD a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    request: RequestArgs,
    /// Guest memory [default: 256M and three times the image]
    #[arg(short, long, value_name = "SIZE", value_parser = units::bytes)]
    memory: Option<u64>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=CPUS_MAX as i64))]
    cpus: u8,
    /// End CMD after this time, counted from its start
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    timeout: Option<Duration>,
    /// Pass on at most so much of stdout, and of stderr
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    max_output: Option<u64>,
    /// Another kernel: an ELF vmlinux or a bzImage
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Print one JSON object with the outputs and how it went, instead of passing the outputs on
    #[arg(long, conflicts_with = "tty")]
    json: bool,
    #[command(flatten)]
    accel: AccelArg,
    /// Send every byte through the UART, and none through guest memory
    #[arg(long, hide = true)]
    no_rings: bool,
    /// The command and its arguments; without one, the image's own
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs it.
pub(super) fn run(args: RunArgs, verbose: u8) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    if args.tty && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        bail!("-t needs a terminal, and stdin or stdout is none: leave it out");
    }
    if args.interactive && args.image.image == Source::Stdin {
        bail!("-i and an image on stdin exclude each other: save the archive to a file");
    }
    let shelf = image::shelf()?;
    let found = image::open(&args.image, &shelf)?;
    let mut request = args.request.request(&found.config, &args.command)?;
    let (initramfs, size) = image::archive(&args.image, &found, &shelf)?;
    let with_image = started.elapsed();
    log::debug!("the image's archive is there {with_image:.2?} after the start");
    let machine = Machine {
        kernel: match &args.kernel {
            Some(kernel) => kernel.clone(),
            None => minivm::kernel::find()?,
        },
        initramfs,
        memory: memory(args.memory, size)?,
        cpus: args.cpus,
        rings: !args.no_rings,
        console: verbose > 0,
    };
    let place = match args.accel.why_lab()? {
        None => Place::Here,
        Some(why) => {
            if !args.image.quiet {
                eprintln!("minivm: running in the lab, an emulated machine with real KVM: {why}");
            }
            Place::Lab
        }
    };
    let (events, happenings) = mpsc::channel();
    let stop_signal = signals::number(&found.config.stop_signal)?;
    let stdin = stdin(&args, &events)?;
    if args.tty {
        request.terminal = Some(window());
    }
    let raw = match args.tty {
        true => RawMode::enter_quietly().context("cannot set the terminal to raw mode")?,
        false => None,
    };
    signals::listen(events, stop_signal).context("cannot listen to signals")?;
    let captured = args.json.then(Captured::default);
    let link = machine.start(&place)?;
    log::debug!("the machine runs {:.2?} after the start", started.elapsed());
    let session = Session {
        request,
        stdin,
        stdout: output(&captured, |captured| &captured.stdout, io::stdout())?,
        stderr: output(&captured, |captured| &captured.stderr, io::stderr())?,
        boot_limit: BOOT_LIMIT,
        timeout: args.timeout,
        max_output: args.max_output.or(args.json.then_some(CAPTURED)),
        copy_in: args.request.copy_in,
        copy_out: args.request.copy_out,
        max_copy_out: machine.memory,
        events: happenings,
        overdue: Some(Box::new(|| {
            terminal::restore();
            std::process::exit(EXIT_TIMEOUT.into())
        })),
    };
    let report = session.run(link);
    drop(raw);
    let report = report?;
    let phases = Phases {
        image: with_image,
        total: started.elapsed(),
    };
    let printed = Printed::new(&report, &phases, captured.as_ref());
    if args.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &printed)?;
        writeln!(out)?;
    } else {
        printed.tell(args.image.quiet, verbose > 0, args.timeout);
    }
    Ok(ExitCode::from(printed.exit_code))
}

/// What the guest gets of memory. It has to hold the image.
fn memory(wanted: Option<u64>, image: u64) -> anyhow::Result<u64> {
    let page = 1 << 20;
    match wanted {
        None => Ok((MEMORY + COPIES * image)
            .next_multiple_of(page)
            .min(MEMORY_MAX)),
        Some(wanted) if wanted < MEMORY_MIN.max(2 * image) => bail!(
            "{} MiB of memory are too little: the image needs {} MiB",
            wanted >> 20,
            MEMORY_MIN.max(2 * image).div_ceil(page)
        ),
        Some(wanted) => Ok(wanted),
    }
}

/// CMD's input, if it gets any.
fn stdin(args: &RunArgs, events: &Sender<Event>) -> anyhow::Result<Option<OwnedFd>> {
    if args.tty {
        let events = events.clone();
        // Who ends the machine by its keys has seen enough.
        let end = move || {
            let _ = events.send(Event::Stop(SIGINT));
        };
        return Ok(Some(
            terminal::keys(end).context("cannot read the terminal")?,
        ));
    }
    if !args.interactive {
        return Ok(None);
    }
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    Ok(Some(stdin.context("cannot use stdin")?))
}

/// Where an output goes: to our own of the same name, without a buffer, or into memory.
fn output(
    captured: &Option<Captured>,
    which: impl FnOnce(&Captured) -> &Arc<Mutex<Vec<u8>>>,
    own: impl AsFd,
) -> anyhow::Result<Box<dyn Write + Send>> {
    Ok(match captured {
        Some(captured) => Box::new(super::report::Memory(which(captured).clone())),
        None => {
            let own = own.as_fd().try_clone_to_owned();
            Box::new(std::fs::File::from(own.context("cannot use stdout")?))
        }
    })
}

/// The terminal's size.
pub(super) fn window() -> Window {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    size.map_or(
        Window {
            rows: 24,
            columns: 80,
        },
        |size| Window {
            rows: size.ws_row,
            columns: size.ws_col,
        },
    )
}

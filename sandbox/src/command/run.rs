//! `minivm run`: a command in a machine made from a container image.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use minivm::machine::session::{BOOT_LIMIT, Event};
use minivm::machine::{Machine, Place, Session};
use minivm::printable::printable;
use minivm_guest::channel::{Request, Window};
use minivm_guest::image::Source;
use minivm_vmm::CPUS_MAX;

use super::accel::AccelArg;
use super::image::{self, ImageArgs};
use super::report::{Captured, Memory, Phases, Printed, time_limit_reached};
use super::request::RequestArgs;
use super::terminal::{self, RawMode};
use super::{EXIT_TIMEOUT, signals, units};

/// What Ctrl-A x counts as.
const SIGINT: u8 = 2;
/// How much of each output a JSON report holds, if nobody says.
const CAPTURED: u64 = 16 << 20;

#[derive(Args)]
#[command(
    after_help = "Exit code: CMD's own; 128+n if signal n killed it; 124 at the time limit; 125 when minivm failed; \
                  126 if CMD can't be executed; 127 if it isn't there; 137 out of memory.\n\
                  Ctrl-C goes to CMD, and a second one within ten seconds ends the machine; with -t, Ctrl-A x ends it."
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
    /// Guest memory, at least 64M and three times the image [default: 256M and three times the image]
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
    /// Nothing is kept anyway: container users are used to it
    #[arg(long, hide = true)]
    rm: bool,
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
    let ended = run_to_end(&args, verbose, started);
    if let (Err(error), true) = (&ended, args.json) {
        // Who reads JSON reads of this too. The error itself is told on stderr, as always.
        let _ = Printed::failed(format!("{error:#}"), started.elapsed()).write();
    }
    ended
}

fn run_to_end(args: &RunArgs, verbose: u8, started: Instant) -> anyhow::Result<ExitCode> {
    args.check()?;
    let shelf = image::shelf()?;
    let found = image::open(&args.image, &shelf)?;
    let request = args.request.request(&found.config, &args.command)?;
    // It stays as long as this is held: longer than until the machine has read it.
    let archive = image::archive(&args.image, &found, &shelf)?;
    let with_image = started.elapsed();
    log::debug!("the image's archive is there {with_image:.2?} after the start");
    let machine = args.machine(archive.path.clone(), archive.size, verbose > 0)?;
    let place = args.place()?;
    let (events, happenings) = mpsc::channel();
    let stdin = stdin(args, &events)?;
    let raw = match args.tty {
        true => RawMode::enter_quietly().context("cannot set the terminal to raw mode")?,
        false => None,
    };
    let stop_signal = args.stop_signal(&found.config.stop_signal);
    signals::listen(events, stop_signal).context("cannot listen to signals")?;
    let captured = args.json.then(|| Captured::new(args.max_output()));
    let session = args.session(
        request,
        stdin,
        happenings,
        captured.as_ref(),
        machine.memory,
    )?;
    let link = machine.start(&place)?;
    let with_machine = started.elapsed();
    log::debug!("the machine runs {with_machine:.2?} after the start");
    let report = session.run(link);
    drop(raw);
    let phases = Phases {
        image: with_image,
        machine: with_machine,
        total: started.elapsed(),
    };
    let printed = Printed::new(&report?, &phases, captured.as_ref());
    match args.json {
        true => printed.write().context("cannot write to stdout")?,
        false => printed.tell(args.image.quiet, verbose > 0, args.timeout),
    }
    Ok(ExitCode::from(printed.exit_code))
}

impl RunArgs {
    /// What can be told from the flags alone.
    fn check(&self) -> anyhow::Result<()> {
        if self.tty && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            bail!("-t needs a terminal, and stdin or stdout is none: leave it out");
        }
        if self.interactive && self.image.image == Source::Stdin {
            bail!("-i and an image on stdin exclude each other: save the archive to a file");
        }
        self.request.check()
    }

    fn machine(&self, initramfs: PathBuf, image: u64, console: bool) -> anyhow::Result<Machine> {
        Ok(Machine {
            kernel: match &self.kernel {
                Some(kernel) => kernel.clone(),
                None => minivm::kernel::find()?,
            },
            initramfs,
            memory: minivm::machine::memory_for(image, self.memory)?,
            cpus: self.cpus,
            rings: !self.no_rings,
            console,
        })
    }

    fn place(&self) -> anyhow::Result<Place> {
        let Some(why) = self.accel.why_lab()? else {
            return Ok(Place::Here);
        };
        self.warn(&format!(
            "running in the lab, an emulated machine with real KVM: {why}"
        ));
        Ok(Place::Lab)
    }

    /// What SIGTERM becomes for the image's command.
    fn stop_signal(&self, name: &str) -> u8 {
        signals::number(name).unwrap_or_else(|| {
            let name = printable(name, 40);
            self.warn(&format!(
                "the image's stop signal {name:?} is none: its command gets SIGTERM"
            ));
            signals::TERM
        })
    }

    fn warn(&self, text: &str) {
        if !self.image.quiet {
            eprintln!("minivm: {text}");
        }
    }

    fn max_output(&self) -> Option<u64> {
        self.max_output.or(self.json.then_some(CAPTURED))
    }

    fn session(
        &self,
        mut request: Request,
        stdin: Option<OwnedFd>,
        events: Receiver<Event>,
        captured: Option<&Captured>,
        max_copy_out: u64,
    ) -> anyhow::Result<Session> {
        request.terminal = self.tty.then(window);
        let timeout = self.timeout;
        Ok(Session {
            request,
            stdin,
            stdout: output(captured.map(|captured| &captured.stdout), io::stdout())?,
            stderr: output(captured.map(|captured| &captured.stderr), io::stderr())?,
            boot_limit: BOOT_LIMIT,
            timeout,
            max_output: self.max_output(),
            copy_in: self.request.copy_in.clone(),
            copy_out: self.request.copy_out.clone(),
            max_copy_out,
            events,
            // Never with --json, whose outputs are taken by memory.
            overdue: Some(Box::new(move || end_overdue(timeout.unwrap_or_default()))),
        })
    }
}

/// Ends this process at the time limit, though an output is still to be taken by somebody.
pub(super) fn end_overdue(limit: Duration) {
    terminal::restore();
    let (said, saying) = mpsc::channel();
    // It may be stderr that nobody takes.
    std::thread::spawn(move || {
        eprintln!("minivm: {}", time_limit_reached(limit));
        let _ = said.send(());
    });
    let _ = saying.recv_timeout(Duration::from_millis(100));
    std::process::exit(EXIT_TIMEOUT.into())
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
pub(super) fn output(
    captured: Option<&Memory>,
    own: impl AsFd,
) -> anyhow::Result<Box<dyn Write + Send>> {
    if let Some(memory) = captured {
        return Ok(Box::new(memory.clone()));
    }
    let own = own.as_fd().try_clone_to_owned();
    Ok(Box::new(std::fs::File::from(
        own.context("cannot use stdout")?,
    )))
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

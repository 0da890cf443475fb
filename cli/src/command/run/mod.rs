//! `minivm run`: a command in a machine made from a container image, or in another sandbox.

mod backend;
pub(super) mod machine;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use minivm_image::Source;
use minivm_machine::Place;
use minivm_machine::output::Kept;
use minivm_machine::session::Event;
use minivm_machine::streams;
use minivm_sandbox::Backend;
use minivm_vmm::CPUS_MAX;

use super::accel::{AccelArg, explain};
use super::image::{self, PullArgs};
use super::report::{Captured, Printed};
use super::request::RequestArgs;
use super::{hint, terminal, units};

/// What Ctrl-A x counts as.
const SIGINT: u8 = 2;
/// How much of each output a JSON report holds, if nobody says.
const CAPTURED: u64 = 16 << 20;

#[derive(Args)]
#[command(
    override_usage = "minivm run [OPTIONS] IMAGE [--] [CMD]...\n       minivm run [OPTIONS] [IMAGE] --code PYTHON\n       minivm run [OPTIONS] --template NAME [--] [CMD]...",
    after_help = "Exit code: CMD's own; 128+n if signal n killed it; 124 at the time limit; 125 when minivm failed; \
                  126 if CMD can't be executed; 127 if it isn't there; 137 out of memory.\n\
                  Ctrl-C goes to CMD, and a second one within ten seconds ends the machine; with -t, Ctrl-A x ends it."
)]
pub(super) struct RunArgs {
    /// The image: NAME[:TAG|@DIGEST] in a registry, docker-daemon:NAME, docker-archive:FILE, oci:DIR[:TAG],
    /// oci-archive:FILE, tar:FILE (a `docker export`), dir:FOLDER, or - for an archive on stdin
    /// [default, with --code or `-- CMD`: $MINIVM_IMAGE, or one with Python]
    #[arg(value_name = "IMAGE", value_parser = image::source, required_unless_present_any = ["code", "command", "template"])]
    image: Option<Source>,
    /// Run this Python code instead of a command
    #[arg(long, value_name = "PYTHON", conflicts_with_all = ["command", "words"])]
    code: Option<String>,
    /// Where to run it
    #[arg(long, value_enum, default_value_t = Backend::Microvm, value_name = "BACKEND")]
    backend: Backend,
    #[command(flatten)]
    pull: PullArgs,
    /// Pass stdin on to CMD
    #[arg(short, long)]
    interactive: bool,
    /// Give CMD a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    request: RequestArgs,
    /// Guest memory, at least 64M and three times the image [default: 256M, three times the image, and 8K for each of its
    /// files]
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
    /// Go on from this template, which `minivm template create` has made: its image, kernel, memory and vCPUs
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "cold", "memory", "cpus", "kernel", "backend", "no_rings"])]
    template: Option<String>,
    /// Boot a machine of its own, and don't go on from one that was saved; the variable MINIVM_COLD means the same
    #[arg(long)]
    cold: bool,
    /// Print one JSON object with the outputs and how it went, instead of passing the outputs on
    #[arg(long, conflicts_with = "tty")]
    pub(super) json: bool,
    #[command(flatten)]
    accel: AccelArg,
    /// Nothing is kept anyway: container users are used to it
    #[arg(long, hide = true)]
    rm: bool,
    /// Send every byte through the UART, and none through guest memory
    #[arg(long, hide = true)]
    no_rings: bool,
    #[arg(num_args = 0.., allow_hyphen_values = true, value_name = "CMD", hide = true)]
    words: Vec<OsString>,
    /// The command and its arguments; without one, the image's own
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs it.
pub(super) fn run(args: RunArgs, verbose: u8) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let captured = args.json.then(|| Captured::new(args.max_output()));
    let ended = args.check().and_then(|copied| match args.backend {
        Backend::Microvm => machine::run(&args, copied, verbose, started, captured.as_ref()),
        _ => backend::run(&args, started, captured.as_ref()),
    });
    let ended = ended.map_err(explain).map_err(hint::full);
    finish(ended, started, captured.as_ref(), |printed| {
        printed.tell(args.pull.quiet, verbose > 0, args.timeout);
    })
}

/// Says what came of it: as an object, where outputs were kept for one, or as `tell` does.
pub(super) fn finish(
    ended: anyhow::Result<Printed>,
    started: Instant,
    captured: Option<&Captured>,
    tell: impl FnOnce(&Printed),
) -> anyhow::Result<ExitCode> {
    let Some(captured) = captured else {
        let printed = ended?;
        tell(&printed);
        return Ok(ExitCode::from(printed.exit_code));
    };
    match ended {
        Ok(printed) => {
            printed.tell_losses();
            printed.write().context("cannot write to stdout")?;
            Ok(ExitCode::from(printed.exit_code))
        }
        Err(error) => {
            // Who reads JSON reads of this too. The error itself is told on stderr, as always.
            let printed = Printed::failed(format!("{error:#}"), started.elapsed(), captured);
            printed.tell_losses();
            let _ = printed.write();
            Err(error)
        }
    }
}

impl RunArgs {
    /// What can be told from the flags alone. Says how many bytes of files are to be copied in.
    fn check(&self) -> anyhow::Result<u64> {
        if self.tty && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            bail!("-t needs a terminal, and stdin or stdout is none: leave it out");
        }
        if self.interactive && self.image == Some(Source::Stdin) {
            bail!("-i and an image on stdin exclude each other: save the archive to a file");
        }
        if self.backend == Backend::Microvm {
            self.accel.check()?;
        }
        self.request.check()
    }

    /// The command that was asked for; none where the image's own is. Dashes within it are its own.
    fn command(&self) -> Vec<OsString> {
        match (&*self.words, &*self.command) {
            ([], command) => command.to_vec(),
            (words, []) => words.to_vec(),
            (words, command) => [words, &["--".into()], command].concat(),
        }
    }

    fn image(&self) -> anyhow::Result<Source> {
        match &self.image {
            Some(image) => Ok(image.clone()),
            None => image::python(),
        }
    }

    fn place(&self) -> anyhow::Result<Place> {
        self.accel.place(|why| self.warn(why))
    }

    fn warn(&self, text: &str) {
        if !self.pull.quiet {
            streams::tell(text);
        }
    }

    fn max_output(&self) -> Option<u64> {
        self.max_output.or(self.json.then_some(CAPTURED))
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
pub(super) fn output(
    captured: Option<&Kept>,
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

//! `minivm run`: a command in a machine made from a container image, or in another sandbox.
//!
//! Every backend goes the same way: the arguments become a [`Task`], [`Sandbox::run`] runs it, and a report is made of what it returns.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use minivm_image::{Platform, Source};
use minivm_machine::Accel;
use minivm_machine::fetch::Fetched;
use minivm_machine::output::CaptureBuffer;
use minivm_machine::session::Event;
use minivm_machine::signal::INT;
use minivm_machine::streams;
use minivm_sandbox::{
    Backend, Capability, Error, Host, Limits, Microvm, Program, Sandbox, Task, Warning,
};
use minivm_vmm::CPUS_MAX;

use super::accel::{AccelArg, explain};
use super::image::{self, PullArgs};
use super::jail::JailArg;
use super::limits::QuotaArg;
use super::report::{Captured, RunReport, time_limit_reached};
use super::request::RequestArgs;
use super::terminal::{self, RawMode};
use super::trace::TraceArgs;
use super::{EXIT_TIMEOUT, hint, signals, template, units, unwrapped, worker};

/// The most bytes of each output in a JSON report, without --max-output.
const CAPTURED: u64 = 16 << 20;

#[derive(Args)]
#[command(
    override_usage = "minivm run [OPTIONS] IMAGE [--] [CMD]...\n       minivm run [OPTIONS] [IMAGE] --code PYTHON\n       minivm run [OPTIONS] --template NAME [--] [CMD]...",
    after_help = "Exit code: CMD's own; 128+n if signal n killed it; 124 at the time limit; 125 when minivm failed; \
                  126 if CMD can't be executed; 127 if it isn't there; 137 out of memory.\n\
                  Ctrl-C goes to CMD, and a second one within ten seconds ends the machine; with -t, Ctrl-A x ends it."
)]
pub(super) struct RunArgs {
    /// Container image, such as python:3-alpine [default, with --code or `-- CMD`: $MINIVM_IMAGE, or an image with Python]
    ///
    /// NAME[:TAG|@DIGEST] in a registry, docker-daemon:NAME, docker-archive:FILE, oci:DIR[:TAG], oci-archive:FILE, tar:FILE (a `docker
    /// export`), dir:FOLDER, or - for an archive on stdin.
    #[arg(value_name = "IMAGE", value_parser = image::source, required_unless_present_any = ["code", "command", "template"])]
    image: Option<Source>,
    /// Run this Python code instead of a command
    #[arg(long, value_name = "PYTHON", conflicts_with_all = ["command", "words"], help_heading = "What to run, and where")]
    code: Option<String>,
    /// Sandbox to run it in
    #[arg(long, value_enum, default_value_t = Backend::Microvm, value_name = "BACKEND", help_heading = "What to run, and where")]
    backend: Backend,
    #[command(flatten)]
    pull: PullArgs,
    /// Pass stdin on to CMD
    #[arg(short, long, help_heading = "Input and output")]
    interactive: bool,
    /// Give CMD a terminal
    #[arg(short, long, help_heading = "Input and output")]
    tty: bool,
    #[command(flatten)]
    request: RequestArgs,
    /// Guest memory [default: 256M; for an image that is unpacked, three times the image and 8K for each of its files more]
    ///
    /// At least 64M, and three times an image that is unpacked on top. What the kernel needs to map an image comes on top by itself.
    #[arg(short, long, value_name = "SIZE", value_parser = units::bytes, help_heading = "Limits")]
    memory: Option<u64>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=CPUS_MAX as i64), hide_short_help = true, help_heading = "Machine")]
    cpus: u8,
    /// Kill CMD this long after its start
    #[arg(long, value_name = "DURATION", value_parser = units::duration, help_heading = "Limits")]
    timeout: Option<Duration>,
    /// Most bytes of stdout, and of stderr, that are passed on
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, hide_short_help = true, help_heading = "Limits")]
    max_output: Option<u64>,
    /// Guest kernel: an ELF vmlinux or a bzImage; on arm64, an Image [default: the one that `cargo xtask setup` made]
    #[arg(
        long,
        value_name = "FILE",
        hide_short_help = true,
        help_heading = "Machine"
    )]
    kernel: Option<PathBuf>,
    /// Resume this template, made by `minivm template create`, with its image, kernel, memory and vCPUs
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "cold", "memory", "cpus", "kernel", "backend", "no_rings"], hide_short_help = true, help_heading = "Machine")]
    template: Option<String>,
    /// Boot the machine instead of resuming a saved one; the variable MINIVM_COLD does the same
    #[arg(long, hide_short_help = true, help_heading = "Machine")]
    cold: bool,
    /// Print one JSON object with the outputs, the exit code and times, instead of passing the outputs on
    #[arg(
        long,
        conflicts_with = "tty",
        help_heading = "Input and output",
        hide_short_help = true
    )]
    pub(super) json: bool,
    /// Platform of the image and the guest: linux/amd64 or linux/arm64 [default: this host's]; another than the host's is emulated
    #[arg(
        long,
        value_name = "PLATFORM",
        conflicts_with = "template",
        hide_short_help = true,
        help_heading = "Machine"
    )]
    platform: Option<Platform>,
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    accel: AccelArg,
    #[command(flatten)]
    jail: JailArg,
    #[command(flatten)]
    quota: QuotaArg,
    /// Log to stderr, as `minivm -v run` does
    #[arg(long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Accepted as container users type it: nothing of a run is kept anyway
    #[arg(long, hide = true)]
    rm: bool,
    /// Send every byte through the UART, and none through guest memory
    #[arg(long, hide = true)]
    no_rings: bool,
    #[arg(num_args = 0.., allow_hyphen_values = true, value_name = "CMD", hide = true)]
    words: Vec<OsString>,
    /// Command and its arguments [default: the image's own]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs it.
pub(super) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    args.jail.apply();
    let verbose = args.verbose > 0;
    let captured = args
        .json
        .then(|| Arc::new(Captured::new(args.max_output())));
    let ended = args.run(verbose, started, captured.as_ref());
    let ended = ended.map_err(explain).map_err(hint::full);
    finish(ended, started, captured.as_deref(), |printed| {
        printed.tell(args.pull.quiet, verbose, args.timeout);
    })
}

/// Prints the report: as a JSON object where outputs were captured for one, else by `print`.
pub(super) fn finish(
    ended: anyhow::Result<RunReport>,
    started: Instant,
    captured: Option<&Captured>,
    print: impl FnOnce(&RunReport),
) -> anyhow::Result<ExitCode> {
    let Some(captured) = captured else {
        let printed = ended?;
        print(&printed);
        return Ok(ExitCode::from(printed.exit_code));
    };
    match ended {
        Ok(printed) => {
            printed.tell_losses();
            printed.write().context("cannot write to stdout")?;
            Ok(ExitCode::from(printed.exit_code))
        }
        Err(error) => {
            // A reader of JSON gets this error, too. It goes to stderr as well, as always.
            let printed = RunReport::failed(format!("{error:#}"), started.elapsed(), captured);
            printed.tell_losses();
            let _ = printed.write();
            Err(error)
        }
    }
}

impl RunArgs {
    /// Arguments → task → sandbox → report.
    fn run(
        &self,
        console: bool,
        started: Instant,
        captured: Option<&Arc<Captured>>,
    ) -> anyhow::Result<RunReport> {
        self.check()?;
        let mut task = self.task()?;
        let sandbox = self.open(&task, console)?;
        let reporting = self
            .trace
            .open(self.kernel_file().as_deref())?
            .of(&self.platform())
            .watch(&mut task, started);
        let opened = started.elapsed();
        log::debug!("the sandbox is there {opened:.2?} after the start");
        let events = connect(&mut task, captured, self.timeout)?;
        task.stdin = self.stdin(&events)?;
        let raw = match self.tty {
            true => RawMode::enter().context("cannot set the terminal to raw mode")?,
            false => None,
        };
        let finished = sandbox.run(task);
        drop(raw);
        signals::end_at_once();
        // From here on a signal ends this process, also where the trace's reader takes nothing.
        drop(reporting);
        let finished = finished.map_err(unwrapped)?;
        Ok(RunReport::new(
            &finished,
            opened,
            started.elapsed(),
            captured.map(AsRef::as_ref),
        ))
    }

    /// Checks what can be known from the flags alone.
    fn check(&self) -> anyhow::Result<()> {
        if self.tty && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            bail!("-t needs a terminal, and stdin or stdout is not one: leave it out");
        }
        if self.interactive && self.image == Some(Source::Stdin) {
            bail!("-i and an image on stdin exclude each other: save the archive to a file");
        }
        let (backend, able) = (self.backend, self.backend.capabilities());
        if let (Some(image), false) = (&self.image, backend.needs_image()) {
            bail!("--backend {backend} runs no images: leave {image} out");
        }
        if let Some((flag, what)) = self.given().find(|(_, needs)| !able.contains(needs)) {
            bail!("{flag}: {}", Error::NotSupported { backend, what });
        }
        if !able.contains(&Capability::FolderRules) && self.request.volumes.protects_by_default() {
            bail!(
                "--backend {backend} can't protect .git/hooks, and what else this host runs later: --no-protect shares without that; or take `ro`, or the microVM"
            );
        }
        if able.contains(&Capability::Machine) {
            self.accel.check()?;
        }
        Ok(())
    }

    /// The flags that were given, each with what a backend must be able to do to honour it.
    fn given(&self) -> impl Iterator<Item = (&'static str, Capability)> {
        use Capability::{CpuQuota, Machine, MemoryLimit, Terminal};
        let flags = [
            (self.tty, "-t", Terminal),
            (self.cold, "--cold", Machine),
            (self.cpus != 1, "--cpus", Machine),
            (self.kernel.is_some(), "--kernel", Machine),
            (self.no_rings, "--no-rings", Machine),
            (self.accel.is_set(), "--accel", Machine),
            (self.platform.is_some(), "--platform", Machine),
            (self.trace.is_set(), "--trace", Machine),
            (self.memory.is_some(), "--memory", MemoryLimit),
            (self.quota.get().is_some(), "--cpu-quota", CpuQuota),
        ];
        let given = |(given, flag, needs): (bool, _, _)| given.then_some((flag, needs));
        flags
            .into_iter()
            .filter_map(given)
            .chain(self.request.given())
    }

    /// The task, whose streams are not yet connected. Its files are looked for here: better before an image is fetched.
    fn task(&self) -> anyhow::Result<Task> {
        let able = self.backend.capabilities();
        let is_container = able.contains(&Capability::Container);
        let program = match (&self.code, self.command()) {
            (Some(code), _) => Program::Code(code.clone()),
            (None, words) if words.is_empty() && !is_container => {
                bail!("say what to run: --code, or a command behind `--`")
            }
            (None, words) => Program::Command(words),
        };
        let mut task = Task::new(program);
        self.request.set(&mut task, is_container)?;
        task.limits = Limits {
            time: self.timeout,
            memory: self.memory,
            output: self.max_output(),
            cpu: self.quota.get(),
        };
        task.vm.terminal = self.tty.then(terminal::window);
        Ok(task)
    }

    /// Opens the sandbox, and first what it is made of: an image, its archive or folder, a template.
    fn open(&self, task: &Task, console: bool) -> anyhow::Result<Box<dyn Sandbox>> {
        if let Some(name) = &self.template {
            let microvm = Microvm::of_template(template::folder()?, name).map_err(unwrapped)?;
            task.check(microvm.config()).map_err(unwrapped)?;
            self.accel.allow(microvm.accel())?;
            self.quota.allow(microvm.accel())?;
            return Ok(Box::new(microvm.console(console)));
        }
        if self.backend == Backend::Microvm {
            return Ok(Box::new(self.microvm(task)?.console(console)));
        }
        let image = self.backend.needs_image().then(|| self.image());
        let host = Host {
            worker: worker()?,
            cache: image::cache_folder()?,
            image: image.transpose()?.map(|(_, image)| Arc::new(image) as _),
            kernel: None,
            accel: Accel::Kvm,
        };
        host.open(self.backend).map_err(image::explain_full)
    }

    /// The machine of the image, as the flags want it.
    fn microvm(&self, task: &Task) -> anyhow::Result<Microvm> {
        let (platform, kernel) = (self.platform(), self.kernel.as_deref());
        let is_foreign = platform != Platform::here();
        match is_foreign {
            true => self.quota.refuse_lab(&format!("{platform} guests do"))?,
            false => self.quota.check(&self.accel)?,
        }
        let (source, image) = self.image()?;
        // Before the archive is made, which can take a while.
        task.check(image.config()).map_err(unwrapped)?;
        let accel = || match is_foreign {
            true => self.accel.foreign(&platform, |why| self.warn(why)),
            false => self.accel.choose(|why| self.warn(why)),
        };
        let quiet = self.pull.quiet;
        let microvm = image::microvm_for(&platform, &source, image, kernel, quiet, accel)?;
        let microvm = microvm.cpus(self.cpus).rings(!self.no_rings);
        // No lab keeps machines of another architecture.
        match is_foreign || template::is_unwanted(self.cold) {
            true => Ok(microvm),
            false => Ok(microvm.templates(template::folder()?)),
        }
    }

    /// The kernel's file, whose symbols a trace may need. A named template's isn't known here.
    fn kernel_file(&self) -> Option<PathBuf> {
        let platform = self.platform();
        let default = || {
            let found = image::kernel_for(&platform).ok();
            found.filter(|_| self.template.is_none())
        };
        self.kernel.clone().or_else(default)
    }

    /// The image, and how it was called.
    fn image(&self) -> anyhow::Result<(Source, Fetched)> {
        image::named_or_python(&self.platform(), self.image.as_ref(), &self.pull)
    }

    /// The command that was asked for; none where the image's own is. Dashes within it are its own.
    fn command(&self) -> Vec<OsString> {
        match (&*self.words, &*self.command) {
            ([], command) => command.to_vec(),
            (words, []) => words.to_vec(),
            (words, command) => [words, &["--".into()], command].concat(),
        }
    }

    fn platform(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::here)
    }

    fn warn(&self, text: &str) {
        if !self.pull.quiet {
            streams::tell(text);
        }
    }

    fn max_output(&self) -> Option<u64> {
        self.max_output.or(self.json.then_some(CAPTURED))
    }

    /// CMD's input, if it gets any.
    fn stdin(&self, events: &Sender<Event>) -> anyhow::Result<Option<OwnedFd>> {
        if self.tty {
            let events = events.clone();
            // A user who ends the machine by its keys has seen enough.
            let end = move || {
                let _ = events.send(Event::Stop(INT));
            };
            return Ok(Some(
                terminal::keys(end).context("cannot read the terminal")?,
            ));
        }
        if !self.interactive {
            return Ok(None);
        }
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        Ok(Some(stdin.context("cannot use stdin")?))
    }
}

/// Connects a task's outputs with this process's, or with memory for a report, which also gets to know where its machine runs; and the
/// signals that this process gets with the task's events. Returns a sender of further events.
pub(super) fn connect(
    task: &mut Task,
    captured: Option<&Arc<Captured>>,
    timeout: Option<Duration>,
) -> anyhow::Result<Sender<Event>> {
    task.stdout = output(captured.map(|captured| &captured.stdout), io::stdout())?;
    task.stderr = output(captured.map(|captured| &captured.stderr), io::stderr())?;
    if let Some(captured) = captured.cloned() {
        let note = move |accel: &Accel, warm| captured.note(accel, warm);
        task.vm.started = Some(Box::new(note));
    }
    // It is never called with --json, whose outputs are taken by memory.
    let limit = timeout.unwrap_or_default();
    task.vm.overdue = Some(Box::new(move || end_overdue(limit)));
    let (events, happening) = mpsc::channel();
    task.events = happening;
    let pending = task.vm.pending.clone();
    signals::listen(events.clone(), pending).context("cannot listen to signals")?;
    Ok(events)
}

/// Returns the writer of an output: minivm's own of the same name, without a buffer, or memory.
fn output(
    captured: Option<&CaptureBuffer>,
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

/// Ends this process at the time limit, while an output still waits for its reader.
fn end_overdue(limit: Duration) {
    terminal::leave(
        vec![time_limit_reached(limit), Warning::NotTaken.to_string()],
        EXIT_TIMEOUT,
    );
}

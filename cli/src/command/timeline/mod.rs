//! `minivm timeline`: a machine's start, run and end as phases, in the terminal, as JSON, or as a page.

mod chart;
mod page;
mod text;

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use minivm_guest::channel::Request;
use minivm_image::{Platform, Source};
use minivm_machine::printable::printable;
use minivm_machine::templates::Recipe;
use minivm_machine::timeline::{self, Job, Subject, Timeline};
use minivm_machine::{Accel, arch, streams};
use minivm_sandbox::{Entrypoint, Program, Task};
use minivm_vmm::{CPUS_MAX, Config, Kernel};
use serde::Serialize;
use tempfile::TempDir;

use super::accel::AccelArg;
use super::image::{self, PullArgs};
use super::page::PageFile;
use super::{EXIT_TIMEOUT, signals, units, unwrapped};

/// The memory of a raw machine, as `minivm --kernel`'s.
const RAW_MEMORY: u64 = 256 << 20;
/// The most characters of a machine's name.
const NAME_MAX: usize = 100;

#[derive(Args)]
#[command(
    override_usage = "minivm timeline [OPTIONS] IMAGE [--] [CMD]...\n       minivm timeline [OPTIONS] [IMAGE] --code PYTHON\n       minivm timeline [OPTIONS] --kernel FILE [--initramfs FILE]",
    after_help = "CMD's output is dropped. Without an image, the machine is a raw one, as that of `minivm --kernel`.\n\
                  Exit code: 0 when the machine was measured, whatever its command's end; 124 at the time limit; 125 when minivm failed."
)]
pub(super) struct TimelineArgs {
    /// Container image, as for `minivm run`
    #[arg(value_name = "IMAGE", value_parser = image::source, required_unless_present_any = ["code", "command", "kernel"])]
    image: Option<Source>,
    /// Run this Python code instead of a command
    #[arg(long, value_name = "PYTHON", conflicts_with_all = ["command", "words"], help_heading = "Machine")]
    code: Option<String>,
    /// Resume the machine from a template, which is made first, instead of booting it
    #[arg(long, help_heading = "Machine")]
    warm: bool,
    /// Guest kernel: an ELF vmlinux or a bzImage; on arm64, an Image [default: the one that `cargo xtask setup` made]
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    kernel: Option<PathBuf>,
    /// Guest's first root file system, for a raw machine
    #[arg(long, value_name = "FILE", requires = "kernel", conflicts_with_all = ["image", "code", "command"], help_heading = "Machine")]
    initramfs: Option<PathBuf>,
    /// Kernel command line of a raw machine; without `quiet`, the kernel's lines on the console mark its phases
    #[arg(long, value_name = "TEXT", default_value = arch::CMDLINE, conflicts_with_all = ["image", "code", "command"], hide_short_help = true, help_heading = "Machine")]
    cmdline: String,
    /// Show a second machine beside it, which differs in its kernel
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    vs_kernel: Option<PathBuf>,
    /// Show a second machine beside it, which is resumed from a template
    #[arg(long, conflicts_with_all = ["warm", "vs_kernel", "initramfs"], help_heading = "Comparison")]
    vs_warm: bool,
    /// Guest memory, as for `minivm run`; 256M for a raw machine
    #[arg(short, long, value_name = "SIZE", value_parser = units::bytes, hide_short_help = true, help_heading = "Machine")]
    memory: Option<u64>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=CPUS_MAX as i64), hide_short_help = true, help_heading = "Machine")]
    cpus: u8,
    /// End CMD, or a raw machine, this long after its start
    #[arg(long, value_name = "DURATION", value_parser = units::duration, default_value = "60s", help_heading = "Machine")]
    timeout: Duration,
    /// Print a JSON array with an object for each machine; times are in seconds
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write an HTML page with charts, in one file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    #[command(flatten)]
    pull: PullArgs,
    #[command(flatten)]
    accel: AccelArg,
    #[arg(num_args = 0.., allow_hyphen_values = true, value_name = "CMD", hide = true)]
    words: Vec<OsString>,
    /// Command and its arguments [default: the image's own]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// A machine that was measured.
#[derive(Serialize)]
struct Measured {
    /// What it is called beside another one.
    name: String,
    /// `kvm` or `lab`.
    accel: &'static str,
    #[serde(flatten)]
    timeline: Timeline,
}

/// Measures one machine, or two, and shows them.
pub(super) fn run(args: &TimelineArgs) -> anyhow::Result<ExitCode> {
    // Better now than after a minute.
    let file = args.html.as_deref().map(PageFile::open).transpose()?;
    let (accel, jobs) = args.jobs()?;
    let folder = folder_for_templates(&accel, &jobs)?;
    let path = folder
        .as_ref()
        .map_or_else(std::env::temp_dir, |folder| folder.path().to_owned());
    let mut measured = Vec::new();
    for job in &jobs {
        measured.push(args.measure(job, &accel, &path)?);
    }
    drop(folder);
    name(&mut measured, &jobs);
    args.print(&measured, file)?;
    let timed_out = measured.iter().any(|one| one.timeline.timed_out);
    Ok(match timed_out {
        true => ExitCode::from(EXIT_TIMEOUT),
        false => ExitCode::SUCCESS,
    })
}

/// Makes a folder for machines that are saved and resumed on this host, if there are any. It is removed when it is dropped, or when a
/// signal ends this process.
fn folder_for_templates(accel: &Accel, jobs: &[Job]) -> anyhow::Result<Option<TempDir>> {
    let mut subjects = jobs.iter().map(|job| &job.subject);
    if *accel != Accel::Kvm || !subjects.any(|subject| matches!(subject, Subject::Warm(..))) {
        return Ok(None);
    }
    let folder = tempfile::tempdir().context("cannot make a folder for temporary files")?;
    let path = folder.path().to_owned();
    signals::before_death(move || drop(fs::remove_dir_all(path)))
        .context("cannot listen to signals")?;
    Ok(Some(folder))
}

/// `minivm timeline-measure`: the process of one machine.
pub(super) fn run_measured() -> anyhow::Result<ExitCode> {
    timeline::run_measured()?;
    Ok(ExitCode::SUCCESS)
}

/// A machine, before it is decided whether it boots.
enum Machine {
    Raw(Config),
    Command(Box<(Recipe, Request)>),
}

impl Machine {
    /// Returns the machine with another kernel, where one is given, that boots or is resumed.
    fn subject(&self, kernel: Option<&Path>, warm: bool) -> anyhow::Result<Subject> {
        match self {
            Machine::Raw(_) if warm => {
                bail!("a raw machine has no template: name an image for --warm and --vs-warm")
            }
            Machine::Raw(config) => {
                let mut config = config.clone();
                if let Some(kernel) = kernel {
                    config.kernel = Kernel::File(kernel.to_owned());
                }
                Ok(Subject::Raw(config))
            }
            Machine::Command(plan) => {
                let (mut recipe, request) = (**plan).clone();
                if let Some(kernel) = kernel {
                    kernel.clone_into(&mut recipe.machine.kernel);
                }
                Ok(match warm {
                    true => Subject::Warm(Box::new(recipe), request),
                    false => Subject::Cold(recipe.machine, request),
                })
            }
        }
    }
}

impl TimelineArgs {
    /// Returns where machines run, and those that are measured.
    fn jobs(&self) -> anyhow::Result<(Accel, Vec<Job>)> {
        let is_raw = self.image.is_none() && self.code.is_none() && self.command.is_empty();
        let (accel, machine) = match (is_raw, &self.kernel) {
            (true, Some(kernel)) => self.raw(kernel)?,
            _ => self.command()?,
        };
        let mut subjects = vec![machine.subject(None, self.warm)?];
        if let Some(kernel) = &self.vs_kernel {
            subjects.push(machine.subject(Some(kernel), self.warm)?);
        } else if self.vs_warm {
            subjects.push(machine.subject(None, true)?);
        }
        let job = |subject| Job {
            subject,
            timeout: self.timeout,
        };
        Ok((accel, subjects.into_iter().map(job).collect()))
    }

    /// Returns the machine of `minivm --kernel`.
    fn raw(&self, kernel: &Path) -> anyhow::Result<(Accel, Machine)> {
        let config = Config {
            initramfs: self.initramfs.clone(),
            cmdline: self.cmdline.clone(),
            memory: self.memory.unwrap_or(RAW_MEMORY),
            cpus: self.cpus,
            ..Config::new(Kernel::File(kernel.to_owned()))
        };
        config.check()?;
        Ok((self.choose_accel()?, Machine::Raw(config)))
    }

    /// Returns the machine of `minivm run`.
    fn command(&self) -> anyhow::Result<(Accel, Machine)> {
        self.accel.check()?;
        let program = match &self.code {
            Some(code) => Program::Code(code.clone()),
            None => Program::Command(words(&self.words, &self.command)),
        };
        let mut task = Task::new(program);
        task.vm.entrypoint = Entrypoint::Image;
        task.limits.memory = self.memory;
        let (source, image) =
            image::named_or_python(&Platform::here(), self.image.as_ref(), &self.pull)?;
        task.check(image.config()).map_err(unwrapped)?;
        let (kernel, quiet) = (self.kernel.as_deref(), self.pull.quiet);
        let microvm = image::microvm(&source, image, kernel, quiet, || self.choose_accel())?;
        let microvm = microvm.cpus(self.cpus);
        let plan = microvm.plan(&task).map_err(unwrapped)?;
        Ok((microvm.accel().clone(), Machine::Command(Box::new(plan))))
    }

    fn choose_accel(&self) -> anyhow::Result<Accel> {
        self.accel.choose(|why| {
            if !self.pull.quiet {
                streams::tell(why);
            }
        })
    }

    fn measure(&self, job: &Job, accel: &Accel, folder: &Path) -> anyhow::Result<Measured> {
        let spinner = match self.pull.quiet || !stderr().is_terminal() {
            true => ProgressBar::hidden(),
            false => ProgressBar::new_spinner(),
        };
        spinner.set_message("measuring a machine");
        spinner.enable_steady_tick(Duration::from_millis(100));
        let timeline = timeline::measure(job, accel, folder);
        spinner.finish_and_clear();
        Ok(Measured {
            name: String::new(),
            accel: accel.name(),
            timeline: timeline?,
        })
    }

    fn print(&self, measured: &[Measured], file: Option<PageFile>) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        let written = match self.json {
            true => serde_json::to_vec(measured).map_err(io::Error::from),
            false => {
                let mut text = text::render(measured, text::width());
                // A lab has sent names and texts, and a hostile guest may be in it.
                text.retain(|c| c == '\n' || !c.is_control());
                Ok(text.into_bytes())
            }
        };
        let written = written.and_then(|mut text| {
            if self.json {
                text.push(b'\n');
            }
            streams::write_all(&mut out, &text)
        });
        written.context("cannot write to stdout")?;
        if let (Some(file), Some(path)) = (file, &self.html) {
            file.write(&page::render(measured)?)?;
            if !self.pull.quiet {
                eprintln!("minivm: wrote {}", path.display());
            }
        }
        Ok(())
    }
}

/// Returns the command, as `minivm run` reads it. Dashes within it are its own.
fn words(words: &[OsString], command: &[OsString]) -> Vec<OsString> {
    match (words, command) {
        ([], command) => command.to_vec(),
        (words, []) => words.to_vec(),
        (words, command) => [words, &["--".into()], command].concat(),
    }
}

/// Names what was measured: by its kind of start, or by its kernel where that is the difference.
fn name(measured: &mut [Measured], jobs: &[Job]) {
    let differs = |a: &Measured, b: &Measured| a.timeline.start != b.timeline.start;
    let by_start = match &*measured {
        [first, second] => differs(first, second),
        _ => true,
    };
    for (one, job) in measured.iter_mut().zip(jobs) {
        one.name = match (by_start, &one.timeline.kernel) {
            (true, _) => one.timeline.start.name().to_owned(),
            (false, Some(kernel)) => kernel.trim_start_matches("Linux version ").to_owned(),
            (false, None) => kernel_file(&job.subject),
        };
    }
    if let [first, second] = measured
        && first.name == second.name
    {
        for (one, job) in [first, second].into_iter().zip(jobs) {
            one.name = kernel_file(&job.subject);
        }
    }
}

/// Returns the path of a machine's kernel.
fn kernel_file(subject: &Subject) -> String {
    let path = match subject {
        Subject::Raw(config) => match &config.kernel {
            Kernel::File(path) => path,
            Kernel::Code(_) => return "machine code".into(),
        },
        Subject::Cold(machine, _) => &machine.kernel,
        Subject::Warm(recipe, _) => &recipe.machine.kernel,
    };
    printable(&path.to_string_lossy(), NAME_MAX)
}

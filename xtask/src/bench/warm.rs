//! Warm machines: what it costs to go on from a snapshot, beside what it costs to boot.
//!
//! On this host's own KVM, with a guest of a few bytes: forks within one process, which the benchmark `fork` of the monitor
//! times, and whole processes, from exec to the first byte on stdout. In the lab, Python in a Linux: `minivm run --code` that goes
//! on from a template, that boots, and QEMU's microvm that boots the same.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use minivm_vmm::{Builder, Config, Kernel, SaveFiles};
use serde_json::Value;

use super::boot::{QEMU, sample_args};
use super::sample::Times;
use super::{Contender, guest, sample, table, text};
use crate::process::{cannot_start, capture, pass_through, shown};
use crate::report::Report;
use crate::setup::{self, Made, Wanted};
use crate::{cargo, kvm};

/// How much of a saved guest's memory holds something.
const FILLED: u64 = 48 << 20;
/// What half of the restores are to be within, in milliseconds.
const GOAL: f64 = 5.0;

/// How many times faster than a boot a run from a template is to be, half of the time.
const LAB_GOAL: f64 = 20.0;
/// How long a template may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is run, and what it says.
const CODE: &str = "print(2+2)";
const ANSWER: u8 = b'4';

#[derive(Args)]
pub(crate) struct WarmArgs {
    /// Processes of each kind
    #[arg(long, default_value_t = 200)]
    pub(crate) runs: usize,
    /// The same in the lab
    #[arg(long, default_value_t = 20)]
    pub(crate) lab_runs: usize,
    /// Leave out the lab
    #[arg(long)]
    pub(crate) native_only: bool,
}

pub(crate) fn run(args: &WarmArgs) -> Result<()> {
    let mut report = Report::new();
    let wanted = Wanted {
        lab: !args.native_only,
        ..Wanted::default()
    };
    let made = setup::prepare(&mut report, &wanted)?;
    let minivm = cargo::stage_minivm(&mut report)?;
    let forks = cargo::build_bench(&mut report, "minivm-machine", "fork")?;
    let folder = tempfile::tempdir_in(cargo::root().join("target"))?;
    if kvm::is_there() {
        native(args, &minivm, &forks, folder.path())?;
    } else {
        println!("\nthis host has no /dev/kvm: no figures for the monitor alone");
    }
    if !args.native_only {
        lab(args.lab_runs, &minivm, &made)?;
    }
    Ok(())
}

/// Python in a Linux, from exec on this host to the answer.
fn lab(runs: usize, minivm: &Path, made: &Made) -> Result<()> {
    let minivm = &text(minivm);
    let rootfs = format!("dir:{}", text(&made.initramfs.with_file_name("rootfs")));
    let run = [minivm, "run", "--accel", "lab", "--quiet"];
    let warm = [&run[..], &[&rootfs, "--code", CODE]].concat();
    let cold = [&run[..], &["--cold", &rootfs, "--code", CODE]].concat();
    let kernel = text(&made.kernel.join("bzImage"));
    let initramfs = text(&made.initramfs);
    let files = ["-kernel", &kernel, "-initrd", &initramfs];
    let rest = [
        "-append",
        "console=ttyS0 reboot=t panic=-1 quiet loglevel=0",
    ];
    let qemu = [&QEMU[..], &["354", "-cpu", "host"], &files, &rest].concat();
    let qemu = [&[minivm, "lab", "--memory", "2G", "--"], &qemu[..]].concat();
    let contenders = [
        Contender::new("minivm run, from a template", &warm),
        Contender::new("minivm run --cold", &cold),
        Contender::new("QEMU microvm", &qemu),
    ];
    wait_for_template(&warm)?;
    let mut args = sample_args(runs, &[], &contenders);
    args.mark = ANSWER;
    let all = sample::run(&args)?;
    println!("\nIn the lab: Python in a Linux prints 2+2, {runs} runs each");
    let half = table::percentile(&all[0].to_mark, 50);
    for (title, pick) in [
        (
            "exec → answer",
            (|times| &times.to_mark) as fn(&Times) -> &Vec<f64>,
        ),
        ("exec → end", |times| &times.to_end),
    ] {
        print_in_lab(title, &contenders, &all, pick);
    }
    let ratio = table::percentile(&all[1].to_mark, 50) / half;
    let verdict = match ratio >= LAB_GOAL {
        true => "reached",
        false => "NOT REACHED",
    };
    println!(
        "\n  a run from a template is {ratio:.0} times faster than one that boots; goal: {LAB_GOAL}: {verdict}"
    );
    phases(runs, &warm)
}

/// Runs the command until it goes on from a template, which the first run has made.
fn wait_for_template(words: &[&str]) -> Result<()> {
    let began = Instant::now();
    while report_of(words)?["warm"] != true {
        if began.elapsed() > PATIENCE {
            bail!("there is no template after {PATIENCE:?}");
        }
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// What `--json` says of a run.
fn report_of(words: &[&str]) -> Result<Value> {
    let mut command = Command::new(words[0]);
    // Behind `run`.
    command.arg(words[1]).arg("--json").args(&words[2..]);
    Ok(serde_json::from_str(&capture(&mut command)?)?)
}

fn print_in_lab(
    title: &str,
    contenders: &[Contender],
    all: &[Times],
    pick: fn(&Times) -> &Vec<f64>,
) {
    println!("\n{title}");
    println!("  {:<34} {:>9} {:>9}  {:>6}", "ms", "50 %", "99 %", "ratio");
    let first = table::percentile(pick(&all[0]), 50);
    for (one, times) in contenders.iter().zip(all) {
        let [half, nearly_all] = [50, 99].map(|part| table::percentile(pick(times), part));
        let ratio = half / first;
        println!(
            "  {:<34} {half:>9.1} {nearly_all:>9.1}  {ratio:>6.1}",
            one.name
        );
    }
}

/// Where the time of a run from a template goes, as it says itself.
fn phases(runs: usize, words: &[&str]) -> Result<()> {
    let names = [
        ("image", "the image and its template's name are found"),
        (
            "build",
            "this host's KVM is tried; a waiting clone is handed over",
        ),
        ("setup", "request → the clone's code begins"),
        ("run", "the code runs"),
        ("end", "the command ends"),
        ("total", "all of it, as minivm sees it"),
    ];
    let mut all = vec![Vec::new(); names.len()];
    for _ in 0..runs {
        let report = report_of(words)?;
        for ((name, _), times) in names.iter().zip(&mut all) {
            let seconds = report["phases"][name].as_f64().context("no such phase")?;
            times.push(seconds * 1e6);
        }
    }
    println!("\nIts phases\n  {:<60} {:>9} {:>9}", "µs", "50 %", "99 %");
    for ((_, what), times) in names.iter().zip(&all) {
        let [half, nearly_all] = [50, 99].map(|part| table::percentile(times, part));
        println!("  {what:<75} {half:>9.0} {nearly_all:>9.0}");
    }
    Ok(())
}

/// Guests of a few bytes on this host's KVM: what the monitor itself takes.
fn native(args: &WarmArgs, minivm: &Path, forks: &Path, folder: &Path) -> Result<()> {
    println!("\nOn this host's KVM: forks of a snapshot in one process\n");
    pass_through(&mut Command::new(forks))?;
    processes(args, minivm, folder)
}

/// Whole processes: a guest that writes a byte and resets, saved before its first instruction, and booted.
fn processes(args: &WarmArgs, minivm: &Path, folder: &Path) -> Result<()> {
    let kernel = folder.join("guest.elf");
    std::fs::write(&kernel, guest::bare(true))?;
    let (minivm, guest) = (text(minivm), text(&kernel));
    let mut contenders = Vec::new();
    for (name, memory) in [("64 MiB", 64 << 20), ("4 GiB", 4 << 30)] {
        let saved = text(&save(&kernel, memory, folder)?);
        let words = [&minivm, "restore", "--accel", "kvm", &saved];
        contenders.push(Contender::new(&format!("minivm restore, {name}"), &words));
    }
    let restores = contenders.len();
    for (name, memory) in [("64 MiB", "64M"), ("4 GiB", "4G")] {
        let words = [&minivm, "--accel", "kvm", "--kernel", &guest];
        let words = [&words[..], &["--memory", memory]].concat();
        contenders.push(Contender::new(&format!("minivm --kernel, {name}"), &words));
    }
    // QEMU's own model, since its `host` fails where KVM lacks an MSR that the processor has.
    let qemu = [&QEMU[..], &["64", "-cpu", "qemu64", "-kernel", &guest]].concat();
    contenders.push(Contender::new("QEMU microvm -kernel, 64 MiB", &qemu));

    let all = sample::run(&sample_args(args.runs, &[], &contenders))?;
    println!(
        "\nOn this host's KVM: whole processes with a guest that writes a byte and resets, {} runs each",
        args.runs
    );
    print_to_mark(&contenders, &all, restores);
    let small = &contenders[0];
    println!("\n{}: where its time goes", small.name);
    steps(args.runs, &small.command)
}

/// What `minivm -v restore` says, or does, and what it has done by then.
pub(super) const STEPS: [(&str, &str); 5] = [
    ("command line is understood", "exec, and the command line"),
    (
        "machine is there",
        "the monitor starts behind its walls, checks the snapshot, makes the machine",
    ),
    (FIRST_BYTE, "it runs: the guest's first byte"),
    (
        "machine is gone",
        "the guest ends, the machine is taken down",
    ),
    (LAST, "the process ends"),
];
pub(super) const FIRST_BYTE: &str = "first byte on stdout";
pub(super) const LAST: &str = "the end";

/// Times a restore step by step, and prints how long each step takes.
fn steps(runs: usize, command: &[String]) -> Result<()> {
    let mut all = vec![Vec::new(); STEPS.len()];
    for _ in 0..runs {
        let mut before = 0.0;
        for (took, at) in all.iter_mut().zip(step_times(command)?) {
            took.push(at - before);
            before = at;
        }
    }
    println!("  {:<75} {:>9} {:>9}", "µs", "50 %", "99 %");
    for ((_, what), took) in STEPS.iter().zip(&all) {
        let [half, nearly_all] = [50, 99].map(|part| table::percentile(took, part));
        println!("  {what:<75} {half:>9.0} {nearly_all:>9.0}");
    }
    Ok(())
}

/// Microseconds from exec to each step of one restore.
fn step_times(words: &[String]) -> Result<Vec<f64>> {
    let mut command = Command::new(&words[0]);
    command.arg(&words[1]).arg("-v").args(&words[2..]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let micros = move || started.elapsed().as_secs_f64() * 1e6;
    let mut child = command
        .spawn()
        .map_err(|error| cannot_start(&command, &error))?;
    let mut stdout = child.stdout.take().context("its stdout is not a pipe")?;
    let stderr = child.stderr.take().context("its stderr is not a pipe")?;
    let first = thread::spawn(move || stdout.read_exact(&mut [0]).map(|()| micros()));
    let mut said: Vec<f64> = Vec::new();
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        if !STEPS.iter().any(|(step, _)| line.contains(step)) {
            continue;
        }
        // Its own word counts: a line can wait in the pipe until this process is on again.
        let start = said.first().copied();
        let own = line
            .strip_suffix(" µs")
            .and_then(|line| line.rsplit(' ').next());
        let since = own.and_then(|digits| digits.parse::<f64>().ok());
        said.push(
            start
                .zip(since)
                .map_or_else(micros, |(start, since)| start + since),
        );
    }
    child.wait()?;
    let end = micros();
    let first = first
        .join()
        .ok()
        .context("a thread panicked")?
        .with_context(|| format!("{} wrote nothing", shown(&command)))?;
    let [understood, there, gone] = said[..] else {
        bail!("{} did not say all of its steps", shown(&command));
    };
    Ok(vec![understood, there, first, gone, end])
}

/// Saves a machine that is about to run its first instruction; returns where.
fn save(kernel: &Path, memory: u64, folder: &Path) -> Result<PathBuf> {
    let config = Config {
        memory,
        ..Config::new(Kernel::File(kernel.into()))
    };
    let machine = Builder::new(config).build()?;
    let filling = [0x5a; 1 << 20];
    for at in (8 << 20..(8 << 20) + FILLED).step_by(1 << 20) {
        machine.memory().write(at, &filling)?;
    }
    let folder = folder.join(format!("saved-{memory}"));
    fs::create_dir(&folder)?;
    let name = SaveFiles::memory_name(0);
    machine.snapshot_into(&SaveFiles {
        state: File::create_new(folder.join(SaveFiles::STATE))?,
        memory: File::create_new(folder.join(&name))?,
        name,
    })?;
    Ok(folder)
}

/// Prints a row a contender, with the goal beside the first ones, which are the restores.
fn print_to_mark(contenders: &[Contender], all: &[Times], restores: usize) {
    println!("\nexec → first byte");
    println!("  {:<34} {:>9} {:>9} {:>9}", "ms", "50 %", "90 %", "99 %");
    for (index, (one, times)) in contenders.iter().zip(all).enumerate() {
        let [half, most, nearly_all] =
            [50, 90, 99].map(|hundredths| table::percentile(&times.to_mark, hundredths));
        let goal = match index < restores {
            true if half <= GOAL => format!("   goal: half within {GOAL}: reached"),
            true => format!("   goal: half within {GOAL}: NOT REACHED"),
            false => String::new(),
        };
        println!(
            "  {:<34} {half:>9.2} {most:>9.2} {nearly_all:>9.2}{goal}",
            one.name
        );
    }
}

//! The walls around a machine: what they cost its start and its exits, against the same without them, in turn in one run; and what a
//! monitor has resident.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::boot::{print_times, sample_args};
use super::sample::Times;
use super::table::median;
use super::{BootArgs, Contender, guest, memory, sample, text};
use crate::report::Report;
use crate::{cargo, kvm};

/// How much longer a start may take behind walls: so many times, and so many milliseconds.
const START_RATIO: f64 = 1.5;
const START_MS: f64 = 2.0;
/// The exits of a guest whose exits are timed.
const EXITS: u32 = 50_000;
/// The most KiB that monitors may have resident: that of a raw machine, and that of `run`.
const RAW_KIB: u64 = 3 << 10;
const RUN_KIB: u64 = 4 << 10;

pub(crate) fn run(args: &BootArgs) -> Result<()> {
    let mut report = Report::new();
    let minivm = cargo::stage_minivm(&mut report)?;
    if !kvm::is_there() {
        bail!(
            "this host has no /dev/kvm: walls cost what they cost on a processor that is not emulated"
        );
    }
    let folder = tempfile::tempdir_in(cargo::root().join("target"))?;
    times(args.runs, &minivm, folder.path())?;
    resident(&minivm, folder.path())
}

fn times(runs: usize, minivm: &Path, folder: &Path) -> Result<()> {
    let [ends, exits] = ["ends.elf", "exits.elf"].map(|name| folder.join(name));
    std::fs::write(&ends, guest::bare(true))?;
    std::fs::write(&exits, guest::exits(EXITS))?;
    let minivm = text(minivm);
    let contender = |name: &str, kernel: &Path, flags: &[&str]| {
        let kernel = text(kernel);
        let words = [&minivm, "--accel", "kvm", "--kernel", &kernel];
        Contender::new(name, &[&words[..], flags].concat())
    };
    let without = ["--no-jail"];
    let contenders = [
        contender(&format!("{EXITS} exits, behind walls"), &exits, &[]),
        contender(&format!("{EXITS} exits, --no-jail"), &exits, &without),
        contender("behind walls", &ends, &[]),
        contender("--no-jail", &ends, &without),
    ];
    let all = sample::run(&sample_args(runs, &[], &contenders))?;
    println!(
        "\nOn this host's KVM: a guest that writes a byte and resets, and one with exits before, {runs} runs each"
    );
    print_times(&contenders, &all, "ms");
    let to_mark = |times: &Times| median(&times.to_mark);
    let [exits, exits_without, start, start_without] = [0, 1, 2, 3].map(|at| to_mark(&all[at]));
    let (more, ratio) = (start - start_without, start / start_without);
    println!(
        "\n  the walls cost a start {more:.2} ms, {ratio:.2} times; goal: at most {START_MS} ms and {START_RATIO} times: {}",
        verdict(more <= START_MS && ratio <= START_RATIO)
    );
    let each = |with: f64, start: f64| (with - start) * 1e6 / f64::from(EXITS);
    let (walls, none) = (each(exits, start), each(exits_without, start_without));
    println!(
        "  an exit takes {walls:.0} ns behind walls, and {none:.0} ns without: {:.1} % more; goal: nothing that shows",
        (walls / none - 1.0) * 100.0
    );
    Ok(())
}

/// Monitors of guests that go on for ever: of a raw machine and of `run`.
fn resident(minivm: &Path, folder: &Path) -> Result<()> {
    let [loops, session, image] =
        ["loops.elf", "session.elf", "image"].map(|name| folder.join(name));
    std::fs::write(&loops, guest::bare(false))?;
    std::fs::write(&session, guest::session())?;
    std::fs::create_dir(&image)?;
    let mut raw = Command::new(minivm);
    raw.args(["--accel", "kvm", "--memory", "256M", "--kernel"]);
    raw.arg(loops);
    let mut run = Command::new(minivm);
    run.args(["run", "--accel", "kvm", "--cold", "--kernel"]);
    run.arg(session);
    run.args([&format!("dir:{}", text(&image)), "--", "true"]);
    println!("\nResident in a monitor, beside the guest's memory");
    for (name, command, most) in [
        ("a raw machine's", &mut raw, RAW_KIB),
        ("that of `run`", &mut run, RUN_KIB),
    ] {
        let resident = memory::resident(command)?;
        println!(
            "  {name}: {resident}; goal: at most {most} KiB: {}",
            verdict(resident.all() <= most)
        );
    }
    Ok(())
}

fn verdict(is_reached: bool) -> &'static str {
    match is_reached {
        true => "reached",
        false => "NOT REACHED",
    }
}

//! `cargo xtask bench boot`: what a boot costs, side by side with QEMU's microvm in one run. `cargo xtask bench image`:
//! what images cost, side by side with the shell's tools. `cargo xtask bench compare`: what the sandboxes' adapters cost, side
//! by side with the tools driven by hand. `cargo xtask bench warm`: what it costs to go on from a snapshot, side by side with
//! a boot. `cargo xtask bench trace`: what a trace costs each exit. `cargo xtask bench jail`: what the walls around a machine cost
//! its start. `cargo xtask bench kill`: how long the end of a machine takes that doesn't want to end.
//!
//! Two places. On this host's own KVM a guest of a few bytes shows what the monitor itself takes. In the lab, which has
//! real KVM, whole kernels boot: by the clock, and in instructions, which repeat to a tenth of a percent on any machine.

mod boot;
mod compare;
mod guest;
mod image;
mod jail;
mod kill;
mod memory;
mod sample;
mod table;
mod trace;
mod warm;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

pub(crate) use sample::SampleArgs;

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// From exec to the guest's first word and to the end of the process
    Boot(BootArgs),
    /// From an image to an initramfs, to a running machine, to its command, and in and out of it
    Image(image::ImageArgs),
    /// From a snapshot to the guest's next word: forks in one process, and whole processes
    Warm(warm::WarmArgs),
    /// The sandboxes, each against the same tool driven by hand
    Compare(compare::CompareArgs),
    /// A guest's exits, with and without a trace
    Trace,
    /// The start of a machine, behind walls and without them
    Jail(BootArgs),
    /// The end of a machine whose guest spins, halts or floods, by a signal and by a stop
    Kill(KillArgs),
}

#[derive(Args)]
pub(crate) struct KillArgs {
    /// Kills of each kind
    #[arg(long, default_value_t = 100)]
    pub(crate) runs: usize,
}

#[derive(Args)]
pub(crate) struct BootArgs {
    /// Boots of each kind
    #[arg(long, default_value_t = 20)]
    pub(crate) runs: usize,
    /// Leave out the lab
    #[arg(long)]
    pub(crate) native_only: bool,
}

/// Measures and prints tables.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Boot(args) => boot::run(args),
        Bench::Image(args) => image::run(args),
        Bench::Warm(args) => warm::run(args),
        Bench::Compare(args) => compare::run(args),
        Bench::Trace => trace::run(),
        Bench::Jail(args) => jail::run(args),
        Bench::Kill(args) => kill::run(args),
    }
}

/// Runs commands in turn and prints their times as JSON: the part of a benchmark that runs in the lab.
pub(crate) fn sample(args: &SampleArgs) -> Result<()> {
    println!("{}", serde_json::to_string(&sample::run(args)?)?);
    Ok(())
}

/// A command to measure, with the name that it has in the tables.
#[derive(Clone)]
pub(crate) struct Contender {
    name: String,
    command: Vec<String>,
}

impl Contender {
    fn new(name: &str, words: &[&str]) -> Self {
        Contender {
            name: name.to_owned(),
            command: words.iter().map(|&word| word.to_owned()).collect(),
        }
    }
}

/// A path as an argument of a command.
fn text(path: &std::path::Path) -> String {
    path.display().to_string()
}

/// This program itself, to be run in the lab.
fn this_program() -> Result<PathBuf> {
    Ok(std::env::current_exe()?)
}

#[cfg(test)]
mod tests {
    use super::{image, warm};

    /// The code that logs the steps for which benchmarks wait.
    const LOGGING: [&str; 4] = [
        include_str!("../../../cli/src/command/console.rs"),
        include_str!("../../../cli/src/command/run.rs"),
        include_str!("../../../cli/src/command/snapshot.rs"),
        include_str!("../../../sandbox/src/microvm.rs"),
    ];

    #[test]
    fn the_steps_that_are_waited_for_are_logged() {
        let seen = [warm::FIRST_BYTE, warm::LAST];
        let steps = warm::STEPS.iter().map(|(step, _)| *step);
        for step in steps.filter(|step| !seen.contains(step)).chain(image::SAYS) {
            let is_logged = |source: &&str| {
                let lines = source.lines();
                lines
                    .filter(|line| line.contains("log"))
                    .any(|line| line.contains(step))
            };
            assert!(LOGGING.iter().any(is_logged), "{step}");
        }
    }
}

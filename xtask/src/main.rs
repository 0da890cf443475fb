//! `cargo xtask …`: set-up and the chores of the workspace. No product code lives here.
//!
//! | command | what it does | file |
//! |---|---|---|
//! | `setup` | Debian packages, kernels, the demo's root file system | [`setup`] |
//! | `demo` | builds minivm and lets Python in a virtual machine answer `4` | [`demo`] |
//! | `test` | everything that checks the project, or what is named; ends with the count | [`mod@test`] |
//! | `soak` | the tests again and again, beside busy processors | [`soak`] |
//! | `advisories` | the dependencies against a database of known faults | [`advisories`] |
//! | `intel` | a command on an emulated Intel processor with real KVM, as some tests run | [`intel`] |
//! | `bench` | measures, side by side with a peer | [`mod@bench`] |
//! | `kernel`, `rootfs` | the single steps of `setup` | [`kernels`], [`rootfs`] |
//!
//! Whatever is made is kept in `~/.cache/minivm` under a key of all that went into it, and made again only when the key
//! changes: see [`cache`].

mod advisories;
mod arm64;
mod bench;
mod building;
mod cache;
mod cargo;
mod choice;
mod coding_image;
mod debian;
mod debian_arm64;
mod debian_kernels;
mod debian_python;
mod demo;
mod failures;
mod intel;
mod kernels;
mod kvm;
mod modules;
mod packages;
mod place;
mod process;
mod queue;
mod registry;
mod report;
mod rootfs;
mod sandboxes;
mod setup;
mod soak;
mod suite;
mod tally;
mod target;
mod test;
mod times;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up and chores of the minivm workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make everything that minivm needs on a fresh Debian machine
    Setup(setup::Wanted),
    /// Boot a virtual machine in which Python answers 4
    Demo,
    /// Run everything that checks the project, or the tests that are named
    Test(test::Test),
    /// Run the tests again and again, stress tests with large counts, beside threads that keep the processors busy
    Soak(soak::Soak),
    /// Check the dependencies with cargo-deny, for known faults too where their database can be fetched
    Advisories,
    /// Run a command on an emulated Intel processor with real KVM, as some of the tests do
    Intel(intel::Intel),
    /// Measure, side by side with a peer
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Time commands: the part of a benchmark that runs in the lab
    #[command(hide = true)]
    Sample(bench::SampleArgs),
    /// Build a kernel, or find it built
    Kernel {
        /// Which one
        #[arg(value_enum, default_value = "sandbox")]
        which: kernels::Kernel,
    },
    /// Make the demo's root file system and its initramfs, or find them made
    Rootfs,
}

fn main() -> ExitCode {
    let worked = match Arguments::parse().task {
        Task::Intel(wanted) => return ended(intel::run(&wanted)),
        Task::Setup(wanted) => setup::run(&wanted),
        Task::Demo => demo::run(),
        Task::Test(wanted) => test::run(&wanted),
        Task::Soak(wanted) => soak::run(&wanted),
        Task::Advisories => advisories::run(),
        Task::Bench(what) => bench::run(&what),
        Task::Sample(args) => bench::sample(&args),
        Task::Kernel { which } => setup::kernel(which),
        Task::Rootfs => setup::rootfs(),
    };
    ended(worked.map(|()| 0))
}

/// The exit code of what was done, or of its failure, which is printed.
fn ended(worked: anyhow::Result<u8>) -> ExitCode {
    worked.map_or_else(
        |error| {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

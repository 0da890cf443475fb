//! `minivm --kernel …`: boots a kernel with the terminal as its console.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use minivm_machine::lab_machine::LabMachine;
use minivm_machine::monitor::Spec;
use minivm_machine::output::{Cut, Limited};
use minivm_machine::{arch, lab};
use minivm_vmm::{CPUS_MAX, Config, Kernel};

use super::accel::{AccelArg, running_in_lab};
use super::jail::JailArg;
use super::limits::LimitArgs;
use super::terminal;
use super::trace::{TraceArgs, Tracing};
use super::{console, units};

#[derive(Args)]
pub(super) struct BootArgs {
    /// Linux kernel: an ELF vmlinux or a bzImage; on arm64, an Image
    #[arg(long, required = true, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Guest's first root file system: a cpio archive, plain or compressed
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// File that the guest reads in place, as /dev/pmem0, on x86-64: an EROFS image for example, mounted with `-o dax`
    #[arg(long, value_name = "FILE")]
    pmem: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = arch::CMDLINE)]
    cmdline: String,
    /// Guest memory; `size=256M` is accepted, too
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory)]
    memory: u64,
    /// Number of vCPUs; `boot=1` is accepted, too
    #[arg(long, value_name = "N", default_value = "1", value_parser = cpus)]
    cpus: u8,
    /// The serial port is the terminal's: nothing else can be asked for
    #[arg(long, value_parser = ["tty"], hide = true)]
    serial: Option<String>,
    /// There is no other console: nothing else can be asked for
    #[arg(long, value_parser = ["off"], hide = true)]
    console: Option<String>,
    /// Unix socket at which `minivm snapshot` can save the machine while it runs; it is removed at the end
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    accel: AccelArg,
    #[command(flatten)]
    jail: JailArg,
    #[command(flatten)]
    limits: LimitArgs,
}

impl BootArgs {
    /// Returns whether this host's KVM was asked for.
    pub(super) fn is_on_kvm(&self) -> bool {
        self.accel.is_kvm()
    }
}

/// A size, also as Cloud Hypervisor's users write it, whose command lines work here.
fn memory(text: &str) -> Result<u64, String> {
    units::bytes(text.strip_prefix("size=").unwrap_or(text))
}

/// A number of vCPUs, also as Cloud Hypervisor's users write it.
fn cpus(text: &str) -> Result<u8, String> {
    let number = text.strip_prefix("boot=").unwrap_or(text);
    number
        .parse()
        .map_err(|_| format!("expected a number from 1 to {CPUS_MAX}"))
}

/// Boots as `args` say, here or in the lab.
pub(super) fn run(args: BootArgs, verbose: u8) -> anyhow::Result<ExitCode> {
    args.jail.apply();
    let kernel = args.kernel.context("no kernel given: --kernel FILE")?;
    let config = Config {
        initramfs: args.initramfs,
        pmem: args.pmem,
        cmdline: args.cmdline,
        memory: args.memory,
        cpus: args.cpus,
        ..Config::new(Kernel::File(kernel))
    };
    config.check()?;
    let Some(why) = args.accel.why_lab()? else {
        return run_here(config, &args.limits, args.control.as_deref(), args.trace);
    };
    args.limits.quota.refuse_lab(&why)?;
    if let Some(socket) = args.control {
        bail!(
            "--control {} needs this host's KVM, and the machine would run in the lab: {why}; run both there: \
             `minivm lab -- sh -c 'minivm --kernel … --control … & …'`",
            socket.display()
        );
    }
    // What is wrong with the files is better said at once, with their names here.
    Spec::boot(config.clone()).check()?;
    let tracing = args.trace.open(kernel_of(&config))?;
    eprintln!("minivm: {}", running_in_lab(&why));
    run_in_lab(config, args.limits.max_output, tracing, verbose)
}

/// Runs the machine on this host's KVM.
fn run_here(
    config: Config,
    limits: &LimitArgs,
    socket: Option<&Path>,
    trace: TraceArgs,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    if trace.is_set() {
        // Before a file is made for the trace.
        Spec::boot(config.clone()).check()?;
    }
    let tracing = trace.open(kernel_of(&config))?;
    let machine = limits.of(Spec::boot(config));
    tracing.run(machine, started, |machine| {
        console::run(machine, socket, started)
    })
}

fn kernel_of(config: &Config) -> Option<&Path> {
    match &config.kernel {
        Kernel::File(path) => Some(path),
        Kernel::Code(_) => None,
    }
}

/// Runs the machine in the lab, which gets the files and nothing else.
fn run_in_lab(
    config: Config,
    max_output: Option<u64>,
    tracing: Tracing,
    verbose: u8,
) -> anyhow::Result<ExitCode> {
    let mut request = LabMachine::Console(config).request(verbose)?;
    let cut = Cut::default();
    let stdout = Limited::new(console::stdout()?, max_output, &cut);
    request.stdout = lab::Output::To(Box::new(stdout));
    let raw = console::raw_mode(true)?;
    if raw.is_some() {
        let (traced, stop) = (tracing.is_on(), request.stop.clone());
        let keys = terminal::keys(move || {
            if traced {
                return stop.stop();
            }
            // Ends this process, and with it the lab.
            terminal::restore();
            std::process::exit(0)
        });
        request.stdin = lab::Input::From(keys.context("cannot read the terminal")?);
    }
    let (finished, counts) = tracing.run_in_lab(request)?;
    drop(raw);
    drop(counts);
    if let Some(warning) = lab::unjailed_warning() {
        eprintln!("minivm: {warning}");
    }
    let code = match finished {
        Err(lab::Error::Stopped) => 0,
        finished => u8::try_from(finished?.code).unwrap_or(super::EXIT_ERROR),
    };
    Ok(ExitCode::from(console::with_loss(code, cut.is_set())))
}

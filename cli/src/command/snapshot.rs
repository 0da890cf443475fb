//! `minivm snapshot` saves a raw machine, and `minivm restore` resumes it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use minivm_machine::monitor::Spec;

use super::accel::AccelArg;
use super::jail::JailArg;
use super::limits::LimitArgs;
use super::trace::TraceArgs;
use super::{console, control};

#[derive(Args)]
#[command(
    after_help = "The guest pauses while its memory is written to the disk, then runs on; it notices nothing.\n\
                  A guest is saved between two instructions, so an output that waits for its reader holds the snapshot up.\n\
                  A snapshot is as secret as the machine's memory: its files are readable by their owner only.\n\
                  Exit code: 0 when the machine is saved, 125 when it is not; then it runs on, with --stop as well."
)]
pub(super) struct SnapshotArgs {
    /// Socket that the machine was started with, by --control SOCKET
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Folder for the snapshot, created if missing; a snapshot in it is replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// End the machine once it is saved
    #[arg(long)]
    stop: bool,
}

#[derive(Args)]
#[command(
    after_help = "The terminal is the machine's serial console; in a terminal, Ctrl-A x ends the machine.\n\
                  The guest does not know that it was saved. Over the console it can be told what has changed:\n  \
                  - the time: its clock shows when it was saved (date -s);\n  \
                  - entropy: its random numbers are those of every machine of this snapshot until its kernel gets some\n    \
                  (write to /dev/urandom, then the ioctl RNDRESEEDCRNG); what programs have drawn before stays the same;\n  \
                  - its identity: host name, machine ID and keys are those of every machine of this snapshot.\n\
                  Exit code: 0 when the guest shut down, 1 when it crashed, 125 when minivm failed, 2 for wrong usage."
)]
pub(super) struct RestoreArgs {
    /// Folder with the snapshot
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// File that the machine was started with by --pmem, of which the snapshot has no copy
    #[arg(long, value_name = "FILE")]
    pmem: Option<PathBuf>,
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

impl RestoreArgs {
    /// Returns whether this host's KVM was asked for.
    pub(super) fn is_on_kvm(&self) -> bool {
        self.accel.is_kvm()
    }
}

/// Asks a running machine to save itself, and prints where.
pub(super) fn snapshot(args: SnapshotArgs) -> anyhow::Result<ExitCode> {
    // The machine has a working folder of its own.
    let folder = std::path::absolute(&args.folder)
        .with_context(|| format!("cannot use {}", args.folder.display()))?;
    let request = control::Request {
        snapshot: folder,
        stop: args.stop,
    };
    let saved = control::ask(&args.socket, &request)?;
    writeln!(
        io::stdout(),
        "saved in {}: {:.1} MiB on disk; the guest stood still for {:.1?}",
        request.snapshot.display(),
        saved.mebibytes(),
        saved.pause()
    )
    .context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a machine from where the snapshot's was.
pub(super) fn restore(args: RestoreArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    log::debug!("the command line is understood");
    args.jail.apply();
    let machine = Spec::restore(&args.folder, args.pmem.as_deref(), None);
    if let Some(why) = args.accel.why_lab()? {
        // A damaged snapshot is reported even where no machine can run.
        machine.check()?;
        bail!(
            "cannot restore {} outside the lab, an emulated machine with real KVM: {why}; \
             run `minivm lab -- minivm restore …` there, or restore it on a host with KVM",
            args.folder.display()
        );
    }
    let tracing = args.trace.open(None)?;
    let machine = args.limits.of(machine);
    tracing.run(machine, started, |machine| {
        console::run(machine, args.control.as_deref(), started)
    })
}

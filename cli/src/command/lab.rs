//! `minivm lab`: runs a command of this host's where there is real KVM.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use minivm_machine::lab::{self, Error, LabRequest, Processor, Root};
use minivm_machine::lab_machine::LabMachine;
use minivm_machine::{monitor, templates, timeline};
use minivm_vmm::Builder;

use super::{EXIT_ERROR, EXIT_TIMEOUT, console, trace, units};

#[derive(Args)]
#[command(
    after_help = "The command sees this host's files, and QEMU has your rights: it is for code that you trust.\n\
                  With --private it sees none, and QEMU runs in a jail; an emulator is no wall against hostile code even then."
)]
pub(super) struct LabArgs {
    /// Number of the lab's CPUs; more do not speed up its start
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u32,
    /// Memory of the lab
    #[arg(long, default_value = "1G", value_name = "SIZE", value_parser = mebibytes)]
    memory: u32,
    /// Kill the lab after this time
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    timeout: Option<Duration>,
    /// Make the lab's clock count instructions, one a nanosecond, instead of time
    #[arg(long)]
    icount: bool,
    /// Processor to emulate: epyc (x86-64), cortex-a72 or arm-max (arm64, for programs of arm64's) [default: this host's architecture]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    processor: Option<Processor>,
    /// Share none of the host's files
    #[arg(long)]
    private: bool,
    /// Copy a file into a private lab
    #[arg(long, value_name = "HOST:LAB", value_parser = file, requires = "private")]
    file: Vec<(PathBuf, PathBuf)>,
    /// Print to stderr how long it took
    #[arg(long)]
    times: bool,
    /// Command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the command and passes its exit code on.
pub(super) fn run(args: LabArgs) -> anyhow::Result<ExitCode> {
    let root = if args.private {
        Root::Private
    } else {
        Root::Host
    };
    let mut request = LabRequest::new(root, args.command);
    request.processor = args.processor.unwrap_or_default();
    request.program = lab::find_program(request.processor)?;
    request.cpus = args.cpus;
    request.memory_mib = args.memory;
    request.timeout = args.timeout;
    request.icount = args.icount;
    request.files = args.file;
    let finished = match request.run() {
        Ok(finished) => finished,
        Err(error @ Error::Timeout { .. }) => {
            eprintln!("minivm: {error}");
            return Ok(ExitCode::from(EXIT_TIMEOUT));
        }
        Err(error) => return Err(error.into()),
    };
    if args.times {
        eprintln!(
            "minivm: boot {:.3?}, total {:.3?}",
            finished.boot, finished.total
        );
    }
    Ok(ExitCode::from(
        u8::try_from(finished.code).unwrap_or(EXIT_ERROR),
    ))
}

/// A size in MiB. A lab with less than 128 can't start.
fn mebibytes(text: &str) -> Result<u32, String> {
    let mebibytes = u32::try_from(units::bytes(text)? >> 20).ok();
    mebibytes
        .filter(|size| (128..=1 << 20).contains(size))
        .ok_or_else(|| "the lab takes from 128M to 1024G".into())
}

fn file(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (host, lab) = text
        .rsplit_once(':')
        .ok_or("expected HOST:LAB, a path here and a path in the lab")?;
    Ok((host.into(), lab.into()))
}

#[derive(Args)]
pub(super) struct LabMachineArgs {
    /// Port for the events of the machine's trace
    #[arg(long, value_name = "PORT")]
    trace_to: Option<PathBuf>,
}

/// `minivm lab-machine`: runs the machine that this lab was sent, for what it was sent for.
pub(super) fn run_machine(args: &LabMachineArgs) -> anyhow::Result<ExitCode> {
    let port = args.trace_to.as_deref();
    // A lab is no wall, and another process there takes time.
    monitor::do_without();
    match LabMachine::receive()? {
        LabMachine::Console(config) => trace::forwarded(port, |observer| {
            let builder = Builder::new(config);
            let builder = match observer {
                Some(observer) => builder.observer(observer),
                None => builder,
            };
            console::run_here(builder)
        }),
        LabMachine::Template(recipe) => {
            templates::lab::run_agent(&recipe)?;
            Ok(ExitCode::SUCCESS)
        }
        LabMachine::Timeline(job) => {
            timeline::answer(&job)?;
            Ok(ExitCode::SUCCESS)
        }
        LabMachine::Session(machine) => {
            let ended = trace::forwarded(port, |observer| {
                Ok(minivm_machine::relay(&machine, observer)?)
            })?;
            if ended.orderly {
                return Ok(ExitCode::SUCCESS);
            }
            eprintln!("minivm: {}", ended.how);
            Ok(ExitCode::from(1))
        }
    }
}

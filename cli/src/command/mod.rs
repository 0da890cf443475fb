//! The command line: `minivm`'s subcommands, and the module of each.

mod accel;
mod boot;
mod build;
mod compare;
mod console;
mod control;
mod doctor;
mod guest_path;
mod hint;
mod image;
mod images;
mod jail;
mod lab;
mod limits;
mod logging;
mod page;
mod report;
mod request;
mod run;
mod save;
mod signals;
mod snapshot;
mod template;
mod terminal;
mod timeline;
mod tmpfs;
mod trace;
mod turducken;
mod units;
mod variables;
mod volume;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use minivm_guest::inherited::Refused;
use minivm_machine::monitor::Hooks;
use minivm_machine::{cache, monitor};
use minivm_sandbox::Host;

use report::{Captured, RunReport};

/// minivm's own error, whatever the guest did.
pub(crate) const EXIT_ERROR: u8 = 125;
/// A time limit was reached.
const EXIT_TIMEOUT: u8 = 124;

/// Runs code in small virtual machines: a Linux kernel, RAM and a serial port on KVM.
#[derive(Parser)]
#[command(
    version,
    subcommand_negates_reqs = true,
    override_usage = "minivm [OPTIONS] --kernel <FILE>\n       minivm [-v] <COMMAND>",
    after_help = "The terminal is the machine's serial console; in a terminal, Ctrl-A x ends the machine.\n\
                  Exit code: 0 when the guest shut down, 1 when it crashed, 125 when minivm failed, 2 for wrong usage."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    boot: boot::BootArgs,
    /// Log to stderr; -vv also logs accesses to unmapped addresses
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command or Python code in a machine made from a container image, or in another sandbox
    Run(Box<run::RunArgs>),
    /// Run the same code in all sandboxes and compare them
    Compare(compare::CompareArgs),
    /// Show a machine's start, run and end as phases, with its exits
    Timeline(Box<timeline::TimelineArgs>),
    /// Make an initramfs or an EROFS image from a container image
    Build(build::BuildArgs),
    /// Save an image as an OCI archive, which `docker load` and skopeo read
    ///
    /// An image that has a manifest keeps it, its configuration and its layers byte for byte. A folder has no layers, and is refused.
    Save(save::SaveArgs),
    /// List cached images, and what was made of them
    ///
    /// STORED is what layers and documents take as they are stored, shared ones in each image that has them; MADE what its initramfs, root
    /// folder and unnamed templates take. An image without a name here is one of an archive or folder of this host's, or its tag has moved
    /// on.
    Images(images::ImagesArgs),
    /// Remove cached images, and what was made of them
    ///
    /// An image that has other names as well loses the given one alone. One that is in use stays: a line says so, and the exit code is 125.
    /// `minivm prune` removes all images that aren't in use.
    Rmi(images::RmiArgs),
    /// Create, list and remove templates: saved machines that are ready to run a command
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Save a running machine, started with --control SOCKET, in a folder
    Snapshot(snapshot::SnapshotArgs),
    /// Resume a machine from the folder that it was saved in
    Restore(snapshot::RestoreArgs),
    /// Run Python code in Pyodide, in Deno, in gVisor, in a machine: four sandboxes around it
    Turducken(turducken::TurduckenArgs),
    /// Remove cached images, archives and unnamed templates, and end idle labs
    ///
    /// Names what it can't remove, and exits with code 125 then. Without it the cache stays within MINIVM_CACHE_SIZE, 10G if that isn't
    /// set: a new entry evicts those that were used longest ago.
    Prune,
    /// Check what works on this host, with the reason and the command that mends what doesn't
    Doctor(doctor::DoctorArgs),
    /// Run one of this host's commands on an emulated machine with real KVM, with your rights and no jail
    Lab(lab::LabArgs),
    /// The lab's process 1
    #[command(name = minivm_machine::lab::INIT_COMMAND, hide = true)]
    LabInit,
    /// Makes a template for the next run
    #[command(name = minivm_machine::templates::MAKE_COMMAND, hide = true)]
    TemplateMake,
    /// Keeps a lab for the next run
    #[command(name = minivm_machine::templates::lab::KEEPER_COMMAND, hide = true)]
    LabKeep,
    /// Runs the machine that this lab was sent
    #[command(name = minivm_machine::lab_machine::COMMAND, hide = true)]
    LabMachine(lab::LabMachineArgs),
    /// Reads the image of another minivm process, which gives it a socket as stdin
    #[command(name = minivm_machine::fetch::COMMAND, hide = true)]
    Fetch,
    /// Runs the machine of another minivm process, which gives it a socket as stdin
    #[command(name = minivm_machine::monitor::COMMAND, hide = true)]
    Monitor,
    /// Unpacks the files of a guest of another minivm process, which gives it a socket as stdin
    #[command(name = minivm_machine::copy_out::COMMAND, hide = true)]
    Unpack,
    /// Runs a machine for its timeline
    #[command(name = minivm_machine::timeline::COMMAND, hide = true)]
    TimelineMeasure,
}

impl Cli {
    /// Parses the command line. Where that is wrong, ends this process with the reason and code 2.
    pub(crate) fn parse_line() -> Self {
        let mut command = Cli::command();
        let args: Vec<_> = std::env::args_os().collect();
        let matches = command.try_get_matches_from_mut(&args);
        let matches = matches.unwrap_or_else(|error| match error.kind() {
            ErrorKind::InvalidUtf8 => not_utf8(&mut command, args).exit(),
            ErrorKind::InvalidValue => volume::with_tip(error).exit(),
            _ => error.exit(),
        });
        if let (Some(name), Some(flag)) = (matches.subcommand_name(), boot_flag(&matches)) {
            let wrong = format!("--{flag} is for `minivm --kernel FILE`, and not before `{name}`");
            command.error(ErrorKind::ArgumentConflict, wrong).exit();
        }
        Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }

    /// Runs the command, unless this process inherited something that it can't work with.
    pub(crate) fn run(self, inherited: Result<(), Refused>) -> anyhow::Result<ExitCode> {
        logging::to_stderr(match self.verbose {
            0 => log::LevelFilter::Warn,
            1 => log::LevelFilter::Debug,
            _ => log::LevelFilter::Trace,
        });
        if let Err(error) = self.check(inherited) {
            if self.command.as_ref().is_some_and(Command::tells_json) {
                // A reader of JSON gets this error, too.
                let nothing = Captured::new(None);
                let _ = RunReport::failed(format!("{error:#}"), Duration::ZERO, &nothing).write();
            }
            return Err(error);
        }
        match self.command {
            None => boot::run(self.boot, self.verbose),
            Some(Command::Run(args)) => run::run(*args),
            Some(Command::Compare(args)) => compare::run(&args),
            Some(Command::Timeline(args)) => timeline::run(&args).map_err(hint::full),
            Some(Command::TimelineMeasure) => {
                monitor::do_without();
                timeline::run_measured()
            }
            // With this argument alone `main` has returned before.
            Some(Command::Monitor) => anyhow::bail!("`monitor` takes no arguments"),
            Some(Command::Fetch) => anyhow::bail!("`fetch` takes no arguments"),
            Some(Command::Unpack) => anyhow::bail!("`unpack` takes no arguments"),
            Some(Command::Build(args)) => build::run(&args),
            Some(Command::Save(args)) => save::run(&args),
            Some(Command::Images(args)) => images::list(&args),
            Some(Command::Rmi(args)) => images::remove(&args),
            Some(Command::Template(command)) => template::run(command).map_err(accel::explain),
            Some(Command::TemplateMake) => template::make_in_background(),
            Some(Command::LabKeep) => template::keep_lab(),
            Some(Command::Snapshot(args)) => snapshot::snapshot(args),
            Some(Command::Restore(args)) => snapshot::restore(args),
            Some(Command::Turducken(args)) => {
                turducken::run(&args, self.verbose).map_err(accel::explain)
            }
            Some(Command::Prune) => image::prune(),
            Some(Command::Doctor(args)) => doctor::run(&args),
            Some(Command::Lab(args)) => lab::run(args),
            Some(Command::LabInit) => minivm_machine::lab::run_as_init(),
            Some(Command::LabMachine(args)) => lab::run_machine(&args),
        }
    }
}

impl Cli {
    fn check(&self, inherited: Result<(), Refused>) -> anyhow::Result<()> {
        inherited?;
        match self.uses_cache() {
            true => Ok(cache::check()?),
            false => Ok(()),
        }
    }

    /// Returns whether the command reads the cache. A raw machine needs it only for the record of this host's KVM.
    fn uses_cache(&self) -> bool {
        match &self.command {
            None => !self.boot.is_on_kvm(),
            Some(Command::Restore(args)) => !args.is_on_kvm(),
            // The lab has no cache yet; a machine that is saved is asked over its socket.
            Some(
                Command::Fetch
                | Command::LabInit
                | Command::LabMachine(_)
                | Command::Monitor
                | Command::TimelineMeasure
                | Command::Snapshot(_)
                | Command::Unpack,
            ) => false,
            Some(_) => true,
        }
    }
}

impl Command {
    /// Returns whether it prints a JSON object in the end, whatever that is.
    fn tells_json(&self) -> bool {
        match self {
            Command::Run(args) => args.json,
            Command::Turducken(args) => args.json,
            _ => false,
        }
    }
}

/// Returns the error that names the argument that has to be UTF-8 and isn't: clap's own names none.
fn not_utf8(command: &mut clap::Command, mut args: Vec<OsString>) -> clap::Error {
    let mut named = OsString::new();
    for number in 0..args.len() {
        if args[number].to_str().is_some() {
            continue;
        }
        let text = args[number].to_string_lossy().into_owned().into();
        named = std::mem::replace(&mut args[number], text);
        // Other arguments, such as a command's own, may have any bytes.
        let parsed = command.try_get_matches_from_mut(&args);
        if !parsed.is_err_and(|error| error.kind() == ErrorKind::InvalidUtf8) {
            break;
        }
    }
    let text = format!("the argument {named:?} is not UTF-8, as it has to be\n");
    clap::Error::raw(ErrorKind::InvalidUtf8, text)
}

/// A flag of a machine that is booted without a command, if one was given. clap can refuse these itself, but then `-v` too.
fn boot_flag(matches: &ArgMatches) -> Option<&str> {
    let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let mut ids = matches.ids().map(clap::Id::as_str);
    ids.find(|id| !["verbose", "BootArgs"].contains(id) && given(id))
}

/// The program that belongs beside this one.
fn worker() -> anyhow::Result<PathBuf> {
    let minivm = std::env::current_exe().context("cannot find minivm's own program file")?;
    Ok(Host::worker_beside(&minivm))
}

/// The error that a sandbox's error passes on, or the error itself: only so can its kind be found in an error's chain.
fn unwrapped(error: minivm_sandbox::Error) -> anyhow::Error {
    use minivm_sandbox::Error::{Images, Kernel, Machine, Template};
    match error {
        Machine(error) => error.into(),
        Template(error) => error.into(),
        Kernel(error) => error.into(),
        Images(error) => error.into(),
        error => error.into(),
    }
}

/// Ends this process, which could not write to stdout.
pub(crate) fn cannot_print(error: &std::io::Error) -> ! {
    let code = match error.kind() {
        std::io::ErrorKind::BrokenPipe => console::EXIT_BROKEN_PIPE,
        _ => {
            eprintln!("minivm: cannot write to stdout: {error}");
            EXIT_ERROR
        }
    };
    std::process::exit(code.into())
}

/// What a monitor of this program's needs.
pub(crate) const MONITOR: Hooks = Hooks {
    observe: trace::observe,
    log: logging::to_stderr,
};

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use minivm_tests::stress::{self, Random};

    use super::*;

    /// Values that parsers stumble over.
    const VALUES: [&[u8]; 24] = [
        b"",
        b"-",
        b"--",
        b"0",
        b"1",
        b"-1",
        b"18446744073709551616",
        b"1.5G",
        b"16777216T",
        b"0s",
        b"18446744073709551615h",
        b"=",
        b":",
        b"/",
        b"a:b:c",
        b"a=b=c",
        b"size=",
        b"linux/amd64/v1/x",
        b"docker://",
        b"oci::",
        b"\xff",
        b"a\0b",
        b"\x1b[2J\n",
        "\u{202e}\u{1f600}".as_bytes(),
    ];

    /// Returns an argument of a command line: a flag of the command's, with or without a value, or a value.
    fn argument(flags: &[String], random: &mut Random) -> OsString {
        let value = VALUES[random.below(VALUES.len())];
        let flag = flags[random.below(flags.len())].as_bytes();
        OsString::from_vec(match random.below(4) {
            0 => value.to_vec(),
            1 => [flag, b"=", value].concat(),
            2 => [flag, value].concat(),
            _ => flag.to_vec(),
        })
    }

    /// Whatever the arguments are, there is a command to run or an error that says why not.
    #[test]
    fn no_command_line_panics() {
        let mut command = Cli::command();
        command.build();
        let flags = |command: &clap::Command| -> Vec<String> {
            let long = |argument: &clap::Arg| argument.get_long().map(|name| format!("--{name}"));
            let short = |argument: &clap::Arg| argument.get_short().map(|name| format!("-{name}"));
            let arguments = command.get_arguments();
            arguments
                .flat_map(|argument| [long(argument), short(argument)])
                .flatten()
                .collect()
        };
        let named = command
            .get_subcommands()
            .map(|command| (command.get_name().to_owned(), flags(command)));
        let commands: Vec<_> = named.collect();
        let of_boot = flags(&command);
        let mut random = Random::default();
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..stress::count(3000, 300_000) {
            let mut args = vec![OsString::from("minivm")];
            let flags = match random.below(commands.len() + 1) {
                0 => &of_boot,
                number => {
                    let (name, flags) = &commands[number - 1];
                    args.push(name.into());
                    if flags.is_empty() { &of_boot } else { flags }
                }
            };
            args.extend((0..random.below(6)).map(|_| argument(flags, &mut random)));
            match command.try_get_matches_from_mut(&args) {
                Ok(matches) => {
                    let _ = Cli::from_arg_matches(&matches);
                    let _ = boot_flag(&matches);
                    taken += 1;
                }
                Err(error) => {
                    let error = match error.kind() {
                        ErrorKind::InvalidUtf8 => not_utf8(&mut command, args),
                        _ => error,
                    };
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        }
        assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    }

    /// The most flags that `-h` shows of a command, -v and -h beside them.
    const FIRST_NEEDED: usize = 10;

    #[test]
    fn short_help_shows_the_flags_that_people_need_first() {
        for command in Cli::command().get_subcommands() {
            let shown = command.get_arguments().filter(|argument| {
                !argument.is_positional()
                    && argument.get_id() != "verbose"
                    && !argument.is_hide_set()
                    && !argument.is_hide_short_help_set()
            });
            let shown: Vec<_> = shown.map(clap::Arg::get_id).collect();
            assert!(
                shown.len() <= FIRST_NEEDED,
                "{}: {shown:?}",
                command.get_name()
            );
        }
    }
}

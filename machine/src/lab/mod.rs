//! The lab: an emulated machine with real KVM, for hosts without.
//!
//! QEMU emulates a processor with its virtualization (`-accel tcg`; AMD's SVM, or an arm64 processor's EL2), and a Linux kernel with KVM
//! runs on it. So the lab has a `/dev/kvm` that does exactly what it does on hardware, only slowly. The processor need not be of the
//! host's architecture ([`Processor`]): then the programs in the lab are those of the other. A lab is started for one command and ends
//! with it:
//!
//! 1. `initramfs` packs this very program, or its like for the other architecture, the job and the given files into memory; a large file
//!    that a guest maps stays where it is, and is a disk in the lab;
//! 2. `qemu` starts the machine, which boots into that program as process 1;
//! 3. [`run_as_init`] makes the root file system there, and runs the command;
//! 4. `channel` here and a relay there carry stdin, stdout, stderr and the exit code, in frames;
//! 5. QEMU is killed. It is also killed at the time limit, and by the kernel if this process dies.
//!
//! The lab is a tool for development, and no wall against hostile code: QEMU's authors promise none where it emulates. A lab that
//! shows the host's files ([`Root::Host`]) has its user's rights. A filter of system calls and a jail (`jail`) hold the QEMU of a
//! private lab, and a guest that escapes into it.

pub(crate) mod channel;
mod error;
mod initramfs;
mod jail;
mod kernel;
mod processor;
mod qemu;
mod stop;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use minivm_guest::lab::job::LabJob;
use minivm_image::io_error::cannot;

pub use error::Error;
pub use jail::unjailed_warning;
pub(crate) use jail::{set_unjailed, unjailed};
pub use kernel::{find as find_kernel, find_program};
pub(crate) use minivm_guest::lab::frame;
pub use minivm_guest::lab::{INIT_COMMAND, Root, run_as_init};
pub use processor::{Processor, UnknownProcessor};
pub use stop::Stop;

use channel::Answer;
use qemu::{Qemu, QemuConfig};

/// The flag of `minivm lab-machine` that names the port for the events of its machine's trace.
const TRACE_TO: &str = "--trace-to";

/// Returns whether this process runs in a lab.
pub(crate) fn is_inside() -> bool {
    let init = std::fs::read("/proc/1/cmdline").unwrap_or_default();
    rustix::process::geteuid().is_root()
        && init.split(|&byte| byte == 0).nth(1) == Some(INIT_COMMAND.as_bytes())
}

/// The path in the lab of the block device of [`LabRequest::disk`].
pub const DISK: &str = "/dev/vda";
/// The port for a machine's folders in the lab: the first beside the lab's own.
pub(crate) const FOLDERS_PORT: &str = "/dev/vport0p2";

/// The memory in bytes that a lab needs beside a guest's and its files: for its kernel, this program, the monitor, page tables.
const OVERHEAD: u64 = 256 << 20;

/// The most starts of a lab whose kernel finds no reliable timer, see [`clock`].
const STARTS_MAX: u32 = 10;

/// The source of the command's input.
#[derive(Debug)]
pub enum Input {
    /// None: the input ends at once.
    Null,
    /// This process's stdin.
    Inherit,
    /// A file or pipe.
    From(OwnedFd),
}

/// The destination of one of the command's outputs.
pub enum Output {
    /// None: the output is dropped.
    Null,
    /// This process's stream of the same name.
    Inherit,
    /// A writer.
    To(Box<dyn Write + Send>),
}

/// A command to run in a lab of its own.
///
/// ```no_run
/// use minivm_machine::lab::{LabRequest, Root};
///
/// let mut request = LabRequest::new(Root::Host, ["ls", "-l", "/dev/kvm"]);
/// request.timeout = Some(std::time::Duration::from_secs(60));
/// let finished = request.run()?;
/// assert_eq!(finished.code, 0);
/// # Ok::<(), minivm_machine::lab::Error>(())
/// ```
pub struct LabRequest {
    /// The processor that is emulated.
    pub processor: Processor,
    /// The `minivm` that runs as the lab's init: this process's program, unless a caller that isn't `minivm` sets another, or the
    /// processor needs another, see [`find_program`].
    pub program: PathBuf,
    /// The command's file system.
    pub root: Root,
    /// The program, looked up in the `PATH` of `env`, and its arguments. It runs as root.
    pub command: Vec<OsString>,
    /// Files to copy into a private root: their paths here, and there.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Files to make in a private root: their bytes, and their paths there.
    pub contents: Vec<(Vec<u8>, PathBuf)>,
    /// The command's whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The command's working folder.
    pub cwd: PathBuf,
    /// The command's stdin.
    pub stdin: Input,
    /// The command's stdout.
    pub stdout: Output,
    /// The command's stderr.
    pub stderr: Output,
    /// A file that the lab reads as the block device [`DISK`], and never writes. It is read as the lab needs it, and never copied as a
    /// whole, as [`files`](Self::files) are.
    pub disk: Option<PathBuf>,
    /// Sockets that become ports in the lab, beside its own: `/dev/vport0p2` and on.
    pub ports: Vec<OwnedFd>,
    /// Number of CPUs in the lab. More do not speed up its start.
    pub cpus: u32,
    /// The lab's memory in MiB. The host's is taken as the lab uses it.
    pub memory_mib: u32,
    /// The time limit, counted from the call of [`run`](Self::run).
    pub timeout: Option<Duration>,
    /// Whether the lab's clock counts instructions, one a nanosecond, instead of time: slower, and repeatable.
    pub icount: bool,
    /// Ends the lab early.
    pub stop: Stop,
}

/// The end of a command in a lab.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// The exit code: 128 plus the signal's number if the command was killed, 126 if it can't be executed, 127 if it wasn't found.
    pub code: i32,
    /// Time from [`LabRequest::run`] to the command's start.
    pub boot: Duration,
    /// Time from [`LabRequest::run`] to the command's end.
    pub total: Duration,
}

impl LabRequest {
    /// Makes a request for a lab of one CPU and 1 GiB, without a time limit, with this process's standard streams. A command on the
    /// host's files has its environment and working folder as well.
    pub fn new<A: Into<OsString>>(root: Root, command: impl IntoIterator<Item = A>) -> LabRequest {
        let (env, cwd) = match root {
            Root::Host => (std::env::vars_os().collect(), std::env::current_dir().ok()),
            Root::Private => (Vec::new(), None),
        };
        LabRequest {
            processor: Processor::default(),
            program: "/proc/self/exe".into(),
            root,
            command: command.into_iter().map(Into::into).collect(),
            files: Vec::new(),
            contents: Vec::new(),
            disk: None,
            env,
            cwd: cwd.unwrap_or_else(|| "/".into()),
            stdin: Input::Inherit,
            stdout: Output::Inherit,
            stderr: Output::Inherit,
            ports: Vec::new(),
            cpus: 1,
            memory_mib: 1024,
            timeout: None,
            icount: false,
            stop: Stop::default(),
        }
    }

    /// Gives the lab's command, which is `minivm lab-machine`, a port for the messages of its machine's folders: the first one.
    pub(crate) fn folders_to(&mut self, folders: UnixStream) {
        self.ports.insert(0, folders.into());
    }

    /// Has the lab's command, which is `minivm lab-machine`, send the events of its machine's trace to `events`, over a port. The other end
    /// of the stream sees its end when the lab has ended.
    pub fn trace_to(&mut self, events: UnixStream) {
        self.ports.push(events.into());
        // The first is the lab's own.
        let path = format!("/dev/vport0p{}", self.ports.len() + 1);
        self.command.extend([TRACE_TO.into(), path.into()]);
    }

    /// Sets the lab's memory to what a guest of `guest` bytes needs in it, together with the files that the request has by now.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where a file can't be read; [`Error::TooLarge`] where the host has less memory than that.
    pub(crate) fn make_room(&mut self, guest: u64) -> Result<(), Error> {
        let mut bytes = guest.saturating_add(OVERHEAD);
        for (file, _) in &self.files {
            let metadata =
                std::fs::metadata(file).map_err(cannot(format!("read {}", file.display())))?;
            // Each is in the lab's memory twice, in the initramfs and unpacked.
            bytes = bytes.saturating_add(metadata.len().saturating_mul(2));
        }
        let needed = bytes.div_ceil(1 << 20);
        let system = rustix::system::sysinfo();
        let there = ((system.totalram + system.totalswap) * u64::from(system.mem_unit)) >> 20;
        if needed > there {
            return Err(Error::TooLarge { needed, there });
        }
        self.memory_mib = u32::try_from(needed)
            .map_err(io::Error::other)
            .map_err(cannot("give the lab that much memory"))?;
        Ok(())
    }

    /// Runs the command to its end. A command whose stdout has lost its reader ends with code 141, as if by SIGPIPE.
    ///
    /// # Errors
    ///
    /// [`Error`], whose variants say what the lab lacks or how it failed.
    pub fn run(self) -> Result<Finished, Error> {
        let start = Instant::now();
        let config = QemuConfig {
            processor: self.processor,
            kernel: kernel::find(self.processor)?,
            root: self.root,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            icount: self.icount,
            disk: self.disk,
        };
        config.check_disk()?;
        let job = LabJob {
            root: self.root,
            command: self.command,
            env: self.env,
            cwd: self.cwd.into(),
        };
        let files = [self.files, kernel::modules(&config.kernel)?].concat();
        let initramfs = initramfs::build(&self.program, &job, &files, &self.contents)?;
        let input = self.stdin.open().map_err(cannot("duplicate stdin"))?;
        let mut stdout = self
            .stdout
            .open(io::stdout())
            .map_err(cannot("duplicate stdout"))?;
        let mut stderr = self
            .stderr
            .open(io::stderr())
            .map_err(cannot("duplicate stderr"))?;

        let mut starts = 1;
        let (qemu, channel, limit, early) = loop {
            let files = initramfs.try_clone();
            let files = files.map_err(cannot("duplicate a file"))?;
            let ports = self.ports.iter().map(OwnedFd::try_clone);
            let ports = ports.collect::<io::Result<_>>();
            let ports = ports.map_err(cannot("duplicate a socket"))?;
            let jails = unjailed().is_none();
            let (mut qemu, channel) = match Qemu::start(&config, files, ports) {
                Err(error) if jails && unjailed().is_some() => {
                    log::debug!("the lab is started without a jail: {error}");
                    continue;
                }
                started => started?,
            };
            let ours = channel.try_clone().map_err(cannot("duplicate a socket"))?;
            self.stop.set_channel(ours);
            let limit = self
                .timeout
                .map(|limit| qemu.kill_after(limit.saturating_sub(start.elapsed())));
            match channel::begin(&channel).map_err(cannot("talk to the lab"))? {
                Some(Answer::Retry(why)) if starts < STARTS_MAX => {
                    log::debug!("the lab is started again: {why}");
                    starts += 1;
                }
                Some(Answer::None)
                    if !self.stop.was_called()
                        && let Some(why) = qemu.jail_failed() =>
                {
                    log::debug!("the lab is started again, without a jail: {why}");
                    set_unjailed(why);
                }
                early => break (qemu, channel, limit, early),
            }
        };
        // From here on only QEMU has these open: the other ends of the ports see it end.
        drop((initramfs, self.ports));
        let boot = start.elapsed();
        let answer = match early {
            Some(answer) => Ok(answer),
            None => channel::serve(&channel, input, None, &mut *stdout, &mut *stderr),
        };
        // Before the outputs are closed: the reader that sees their end may call `stop` on a lab that has ended by itself.
        let stopped = self.stop.was_called();
        drop((stdout, stderr));
        let timed_out = limit.is_some_and(qemu::Limit::reached);
        let console = qemu.end();

        match answer.map_err(cannot("talk to the lab"))? {
            Answer::Exit(code) => Ok(Finished {
                code,
                boot,
                total: start.elapsed(),
            }),
            Answer::NotWritten(output, error) => {
                Err(cannot(format!("write the command's {output}"))(error).into())
            }
            Answer::Failed(message) => Err(Error::Refused { message }),
            Answer::Retry(why) => Err(Error::Refused {
                message: format!(
                    "has no reliable timer after {STARTS_MAX} starts ({why}): run it again while this host is less busy"
                ),
            }),
            Answer::None if stopped => Err(Error::Stopped),
            Answer::None => match self.timeout {
                Some(limit) if timed_out => Err(Error::Timeout { limit }),
                _ => Err(Error::Died { console }),
            },
        }
    }
}

impl Input {
    fn open(self) -> io::Result<Option<OwnedFd>> {
        match self {
            Input::Null => Ok(None),
            Input::Inherit => io::stdin().as_fd().try_clone_to_owned().map(Some),
            Input::From(fd) => Ok(Some(fd)),
        }
    }
}

impl Output {
    /// Opens the destination. It never writes through `own` itself, whose buffer would hold output back.
    fn open(self, own: impl AsFd) -> io::Result<Box<dyn Write + Send>> {
        match self {
            Output::Null => Ok(Box::new(io::sink())),
            Output::Inherit => Ok(Box::new(std::fs::File::from(
                own.as_fd().try_clone_to_owned()?,
            ))),
            Output::To(writer) => Ok(writer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_larger_than_this_host_is_refused_with_both_sizes() {
        let mut request = LabRequest::new(Root::Private, ["true"]);
        for size in [1 << 50, u64::MAX] {
            let error = request.make_room(size).unwrap_err().to_string();
            assert!(error.contains("and this host has "), "{error}");
        }
        request.make_room(64 << 20).unwrap();
        assert_eq!(request.memory_mib, 64 + 256);
    }
}

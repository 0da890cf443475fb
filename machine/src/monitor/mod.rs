//! The monitor: a process of its own that makes a machine, runs it, and can do nothing else.
//!
//! A guest that breaks out of KVM or of the devices is in the monitor's process. So that process has the machine's memory, and the
//! descriptors that it needs, and walls around it ([`crate::confine`]): it can't open a file, reach a network, start a program or see other
//! processes. The process that has started it has the user's rights; it opens and publishes files, has the terminal, and runs sessions,
//! and never touches a guest's memory.
//!
//! ```text
//!  minivm run, minivm --kernel, …                       minivm monitor
//!  ──────────────────────────────                       ──────────────
//!  clone: a PID namespace, no environment ────────────▶ one thread
//!  job: the machine, its paths; the ports' ends ──────▶ opens the files, and reads none
//!                                                       walls
//!                                                       reads the kernel or snapshot, makes the machine
//!  ◀─────────────────────────────────────────── built   vCPUs' threads: a narrower filter each
//!  ◀──────────────────────────── frames, or a console ─▶
//!  save: a new state file, a new memory file ─────────▶ pauses the machine, writes to them
//!  ◀─────────────────────────────────────────── saved
//!  stop ──────────────────────────────────────────────▶ ends the machine
//!  ◀────────────────────────────── ended: the outcome
//! ```
//!
//! - `protocol`: the messages, which `child` sends;
//! - `process`: its parent's side; `serve`: its own side.
//!
//! A program has monitors if its `main` begins with [`answer`]: the monitor is the same program. Without that, machines run in the
//! program's own process.

mod process;
mod protocol;
mod serve;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use log::LevelFilter;
use minivm_image::io_error::cannot;
use minivm_vmm::{Config, Observer, WorkingSet};

use process::WeakMonitor;
pub use process::{MachineEnd, Monitor};
use protocol::{Job, Source, Wiring};

use crate::child::Role;
use crate::jail::{CpuGroup, CpuQuota};
use crate::local::Greeted;
use crate::{Ended, Error, Events, Link, StopOnDrop, confine};

/// The argument with which this program is a monitor.
pub const COMMAND: &str = "monitor";
/// The monitor as a child of this program.
const ROLE: Role = Role {
    command: c"monitor",
    duty: "runs the machine",
    variables: &[],
    is_apart: true,
    has_stderr: true,
};

/// Whether this program answers as a monitor.
static ANSWERS: AtomicBool = AtomicBool::new(false);

/// What a monitor needs of its program.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Returns the observer of the machine, which sends its events, with times since the instant, to the stream. On a vCPU's thread it
    /// may write to a descriptor, and makes no other calls: their filter would end the process.
    pub observe: fn(UnixStream, Instant) -> io::Result<Observation>,
    /// Logs messages up to this level to stderr.
    pub log: fn(LevelFilter),
}

/// The observer of a monitor's machine.
pub struct Observation {
    /// The observer.
    pub observer: Arc<dyn Observer>,
    /// Waits until all events are sent.
    pub finish: Box<dyn FnOnce() + Send>,
}

/// Runs this process as a monitor, if its command line is that of one, and returns its exit code then. Otherwise lets this program's
/// machines run in monitors. A program's `main` calls it first, while it has one thread.
pub fn answer(command_line: impl IntoIterator<Item = OsString>, hooks: Hooks) -> Option<ExitCode> {
    if ROLE.is_named_by(command_line) {
        return Some(serve::run(hooks));
    }
    ANSWERS.store(true, Ordering::Relaxed);
    None
}

/// Lets this program's machines run in its own process from now on.
pub fn do_without() {
    ANSWERS.store(false, Ordering::Relaxed);
}

/// Returns whether this program's machines run in monitors.
pub(crate) fn is_there() -> bool {
    ANSWERS.load(Ordering::Relaxed)
}

/// A machine to run in a monitor.
pub struct Spec {
    source: Source,
    events: Option<UnixStream>,
    /// Whether the end reports which pages were touched.
    pub(crate) rehearsal: bool,
    began: Instant,
    stopper: Stopper,
    cpu_quota: Option<CpuQuota>,
    max_output: Option<u64>,
}

/// A handle that ends a machine from any thread, once it is started.
#[derive(Clone, Default)]
pub struct Stopper(Arc<OnceLock<WeakMonitor>>);

impl Stopper {
    /// Ends the machine, if it was started and hasn't ended.
    pub fn stop(&self) {
        if let Some(monitor) = self.0.get() {
            monitor.stop();
        }
    }

    /// Kills the machine's monitor, if it was started and hasn't ended, and waits until nothing of it is left.
    pub fn kill(&self) {
        if let Some(monitor) = self.0.get() {
            monitor.kill();
        }
    }
}

impl Spec {
    /// A machine that boots.
    pub fn boot(config: Config) -> Spec {
        Spec::of(Source::boot(config))
    }

    /// A machine that continues from the snapshot in `folder`, with the file that it has as persistent memory. The pages are present
    /// before it runs.
    pub fn restore(folder: &Path, pmem: Option<&Path>, pages: Option<WorkingSet>) -> Spec {
        Spec::of(Source::snapshot(folder, pmem, pages))
    }

    fn of(source: Source) -> Spec {
        Spec {
            source,
            events: None,
            rehearsal: false,
            began: Instant::now(),
            stopper: Stopper::default(),
            cpu_quota: None,
            max_output: None,
        }
    }

    /// Returns a handle that ends the machine.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Sends the machine's events this way.
    pub fn events(mut self, events: Option<Events>) -> Spec {
        if let Some(Events { stream, began }) = events {
            self.events = Some(stream);
            self.began = began;
        }
        self
    }

    /// Bounds the processor time of the monitor, and so of the machine.
    pub fn cpu_quota(mut self, quota: Option<CpuQuota>) -> Spec {
        self.cpu_quota = quota;
        self
    }

    /// Limits the bytes that a console passes on. The rest is dropped, and the machine's end reports that.
    pub fn max_output(mut self, bytes: Option<u64>) -> Spec {
        self.max_output = bytes;
        self
    }

    /// Returns whether the monitor gets a control group, which stays where this process ends before it.
    pub fn is_bounded(&self) -> bool {
        self.cpu_quota.is_some()
    }

    /// Reads what the machine would be made of, in a monitor that makes none.
    ///
    /// # Errors
    ///
    /// As [`start_console`](Self::start_console)'s, but those that KVM is needed for.
    pub fn check(self) -> Result<(), Error> {
        self.start(Wiring::Nothing, Vec::new()).map(drop)
    }

    /// Makes the machine, with its console at `input` and `output`. [`Monitor::run`] starts it.
    ///
    /// # Errors
    ///
    /// [`Error::Monitor`] where the machine can't be built, [`Error::Quota`] where its processor time can't be bounded, [`Error::Host`] and
    /// [`Error::MonitorDied`] where there can't be a monitor.
    pub fn start_console(self, input: OwnedFd, output: OwnedFd) -> Result<Monitor, Error> {
        let limit = self.max_output;
        self.start(Wiring::Console { limit }, vec![input, output])
    }

    /// Starts the machine, with its channels at the link's ends. `greeted` is for a guest that was greeted before.
    pub(crate) fn start_session(
        self,
        console: bool,
        greeted: Option<Greeted>,
    ) -> Result<(Link, Monitor), Error> {
        let (frames, theirs) = UnixStream::pair().map_err(cannot("create a socket"))?;
        let to_guest = frames.try_clone().map_err(cannot("duplicate a socket"))?;
        let (folders, for_folders) = UnixStream::pair().map_err(cannot("create a socket"))?;
        let wiring = Wiring::Channels { console, greeted };
        let monitor = self.start(wiring, vec![theirs.into(), for_folders.into()])?;
        let (stop, end) = (monitor.clone(), monitor.clone());
        let link = Link {
            greeted: greeted.is_some(),
            walls: monitor.walls(),
            from_guest: Box::new(monitor.frames(frames)),
            to_guest: Box::new(to_guest),
            folders: Some(folders),
            stop: StopOnDrop::boxed(move || stop.stop()),
            end: Box::new(move || {
                let end = end.end()?;
                Ok(Ended::of(end.outcome?, end.console, end.memory))
            }),
        };
        Ok((link, monitor))
    }

    fn start(self, wiring: Wiring, mut files: Vec<OwnedFd>) -> Result<Monitor, Error> {
        let observed = self.events.is_some();
        files.extend(self.events.map(OwnedFd::from));
        let job = Job {
            source: self.source,
            wiring,
            confined: confine::is_wanted(),
            observed,
            rehearsal: self.rehearsal,
            began: self.began.elapsed(),
            log: log::max_level(),
        };
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let group = self.cpu_quota.map(CpuGroup::create).transpose()?;
        let monitor = Monitor::start(&job, &files, group)?;
        let _ = self.stopper.0.set(monitor.downgrade());
        Ok(monitor)
    }
}

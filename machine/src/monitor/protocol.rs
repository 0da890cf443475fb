//! The messages between a monitor and the process that started it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use minivm_vmm::{Config, Kernel, Outcome, WorkingSet};
use serde::{Deserialize, Serialize};

use crate::confine::Walls;
use crate::local::Greeted;

/// The machine that a monitor makes, and what is done with it. Its descriptors come with it, see [`Wiring`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) source: Source,
    pub(super) wiring: Wiring,
    /// Whether the monitor puts walls around itself.
    pub(super) confined: bool,
    /// Whether a stream for the machine's events comes with the job.
    pub(super) observed: bool,
    /// Whether the end reports which pages of a restored machine were touched.
    pub(super) rehearsal: bool,
    /// How long ago the command began, from which the events' times count.
    pub(super) began: Duration,
    /// The most detailed messages that are logged.
    #[serde(with = "crate::child::level")]
    pub(super) log: LevelFilter,
}

/// The state that the machine begins with. Paths may have any bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Source {
    Boot {
        kernel: Code,
        initramfs: Option<Vec<u8>>,
        pmem: Option<Vec<u8>>,
        cmdline: String,
        memory: u64,
        cpus: u8,
        com3: bool,
    },
    Snapshot {
        folder: Vec<u8>,
        pmem: Option<Vec<u8>>,
        /// The pages that are present before the machine runs.
        pages: Option<WorkingSet>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Code {
    File(Vec<u8>),
    Bare(Vec<u8>),
}

impl Source {
    pub(super) fn boot(config: Config) -> Source {
        let bytes = |path: PathBuf| path.into_os_string().into_vec();
        Source::Boot {
            kernel: match config.kernel {
                Kernel::File(path) => Code::File(bytes(path)),
                Kernel::Code(code) => Code::Bare(code),
            },
            initramfs: config.initramfs.map(bytes),
            pmem: config.pmem.map(bytes),
            cmdline: config.cmdline,
            memory: config.memory,
            cpus: config.cpus,
            com3: config.com3,
        }
    }

    pub(super) fn snapshot(
        folder: &Path,
        pmem: Option<&Path>,
        pages: Option<WorkingSet>,
    ) -> Source {
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        Source::Snapshot {
            folder: bytes(folder),
            pmem: pmem.map(bytes),
            pages,
        }
    }
}

/// Returns the path that was sent as these bytes.
pub(super) fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// The ends of the machine's serial ports.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Wiring {
    /// There is no machine: what it would be made of is read, to find out what is wrong with it.
    Nothing,
    /// COM1 is a console. With the job come its input and its output.
    Console {
        /// The most bytes of output that are passed on.
        limit: Option<u64>,
    },
    /// COM2 is the control channel, and COM3 the folders'. With the job comes a stream for each one's messages of both directions.
    Channels {
        /// Whether the console goes to stderr. If not, its last lines are kept.
        console: bool,
        /// Where the guest's hello was read before the machine was saved.
        greeted: Option<Greeted>,
    },
}

/// A message to a monitor that has its job.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Run the machine, whose console is ready now.
    Run,
    /// Pause the machine and save it. With the order come the new state file and the new memory file, whose name this is. The machine
    /// stays paused.
    Save(String),
    /// Let a paused machine run on.
    Resume,
    /// End the machine.
    Stop,
}

/// A message from a monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum News {
    /// The machine is built, and runs; or nothing is wrong with what it would be made of. The monitor is behind these walls, if any.
    Built(Option<Walls>),
    /// The machine could not be built, or run; it is the last message.
    Failed(Failure),
    /// The answer to [`Order::Save`].
    Saved(Result<(), Failure>),
    /// No frames come any more, because of this error if there is one.
    FramesEnded(Option<String>),
    /// The machine has ended; it is the last message.
    Ended(Box<Ending>),
}

/// An error of a monitor's.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    /// The machine's.
    Machine(minivm_vmm::Error),
    /// Another one, with its causes.
    Other(String),
}

/// The end of a monitor's machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ending {
    pub(super) outcome: Result<Outcome, Failure>,
    /// The console's last lines, without control characters, where they were kept.
    pub(super) console: Option<String>,
    /// Whether some of the console's output was dropped.
    pub(super) truncated: bool,
    /// The touched pages, where the job asks for them.
    pub(super) touched: Option<WorkingSet>,
}

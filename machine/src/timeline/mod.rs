//! One machine's life as phases: from the start of the process that runs it until its memory is given back.
//!
//! The machine is made, runs and ends in a process of its own ([`COMMAND`]), which [`measure`] starts next to KVM: on this host, or in a
//! lab. So a timeline has one monitor's clock, whatever the machine runs on, and each measurement begins alike.
//!
//! | clock | of | compared at |
//! |---|---|---|
//! | monitor | the process beside KVM (`CLOCK_MONOTONIC`) | – |
//! | guest | init (`CLOCK_MONOTONIC` in the guest) | two bytes that init writes to COM2: the monitor sees the exits, init knows the time before and after |
//! | log | the guest's kernel, in its log | a line that init writes to the log: the log has its time, init knows the time before and after |
//! | console | the monitor, when a line came to COM1 | – |
//!
//! A comparison gives the difference of two clocks and its error (`align`). Without one, the phases are those that the monitor sees by
//! itself: when the guest's messages came.
//!
//! | module | what it has |
//! |---|---|
//! | `process` | the process around the measured one, here or in a lab |
//! | `run` | the measured process: the machine, its observer, its session |
//! | `record` | what the observer keeps: steps, exits, a console's lines |
//! | `align` | the comparison of two clocks |
//! | `kernel` | the kernel's lines, and the parts of a boot that they mark |
//! | `phases` | from all of these to phases |
//! | `model` | the result |

mod align;
mod kernel;
mod model;
mod phases;
mod process;
mod record;
mod run;

use std::time::Duration;

use minivm_guest::channel::Request;
use minivm_vmm::Config;
use serde::{Deserialize, Serialize};

use crate::MachineSpec;
use crate::templates::Recipe;

pub use model::{Clock, Exits, Line, Nanos, Phase, Start, Timeline};
pub use process::{answer, measure};
pub use run::run_measured;

/// The argument that makes this program run the machine that is described on its stdin. The command line must call [`run_measured`] for it.
pub const COMMAND: &str = "timeline-measure";

/// A machine to measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The machine.
    pub subject: Subject,
    /// The time limit: of a raw machine, from its start; else of the command, from its start.
    pub timeout: Duration,
}

/// A machine, and what it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// A kernel and an initramfs without minivm's init.
    Raw(Config),
    /// A command in a machine that boots.
    Cold(MachineSpec, Request),
    /// A command in a machine that is resumed. It is made and saved before.
    Warm(Box<Recipe>, Request),
}

//! The task of a worker and its outcome, for host and worker alike. The host needs no interpreter for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::ToWorker;
use crate::Call;

/// The path of the task's file in the jail.
pub(super) const TASK_FILE: &str = "/task";
/// The path in the jail of the state to resume.
pub(super) const STATE_FILE: &str = "/state";
/// The largest state of a suspended interpreter in bytes.
pub(super) const STATE_MAX: usize = 16 << 20;
/// The largest call in bytes of JSON.
pub(super) const CALL_MAX: usize = 4 << 20;
/// The exit code of a worker that would have gone beyond its memory limit.
pub(super) const OVER: u8 = 66;

/// The task of a worker.
#[derive(Serialize, Deserialize)]
pub(super) struct WorkerTask {
    pub(super) program: WorkerProgram,
    pub(super) scope: Scope,
}

/// The program of a worker's task.
#[derive(Serialize, Deserialize)]
pub(super) enum WorkerProgram {
    Code(String),
    /// The state in [`STATE_FILE`], with the result of its call.
    State(ToWorker),
}

/// The functions, variables and limits of the code.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Scope {
    /// Names of the functions of the host.
    pub(super) functions: BTreeSet<String>,
    /// Names of the functions whose call suspends the code.
    pub(super) suspend_at: BTreeSet<String>,
    /// The environment.
    pub(super) env: BTreeMap<String, String>,
    /// The time limit, which includes the time that functions of the host take.
    pub(super) time: Option<Duration>,
    /// The limit on allocated bytes, which the program's allocator counts.
    pub(super) memory: Option<u64>,
}

/// The end of the code.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Exited(u8),
    TimedOut,
    OutOfMemory,
    Suspended { call: Call, state: Vec<u8> },
}

//! What a worker is to do, and how it may end: what the host says of it, without an interpreter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::ToWorker;
use crate::Call;

/// The task's file in the jail.
pub(super) const TASK_FILE: &str = "/task";
/// The file of the state that is to be resumed.
pub(super) const STATE_FILE: &str = "/state";
/// The most bytes of a suspended interpreter.
pub(super) const STATE_MAX: usize = 16 << 20;
/// The most bytes of a call, as JSON.
pub(super) const CALL_MAX: usize = 4 << 20;
/// The exit code of a process that would have gone beyond its memory.
pub(super) const OVER: u8 = 66;

/// What a worker is to do.
#[derive(Serialize, Deserialize)]
pub(super) struct WorkerTask {
    pub(super) program: WorkerProgram,
    pub(super) scope: Scope,
}

/// What is to be interpreted.
#[derive(Serialize, Deserialize)]
pub(super) enum WorkerProgram {
    Code(String),
    /// The state in [`STATE_FILE`], with what its call returned.
    State(ToWorker),
}

/// With what.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Scope {
    /// The functions that are there.
    pub(super) functions: BTreeSet<String>,
    /// Those at whose call it is suspended.
    pub(super) suspend_at: BTreeSet<String>,
    pub(super) env: BTreeMap<String, String>,
    /// How long it may run, without the time in which its host answers.
    pub(super) time: Option<Duration>,
    /// Bytes that it may allocate, where [`super::memory`] counts them.
    pub(super) memory: Option<u64>,
}

/// How it ended.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Exited(u8),
    TimedOut,
    OutOfMemory,
    Suspended { call: Call, state: Vec<u8> },
}

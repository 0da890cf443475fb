//! The messages between an unpacker and the process that started it.

use serde::{Deserialize, Serialize};

use super::Budget;

/// What an unpacker does. With it come the open place, and a stream with the archive.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) place: Kind,
    /// The place's path, as messages show it.
    pub(super) path: Vec<u8>,
    pub(super) budget: Budget,
    /// Whether the unpacker puts walls around itself.
    pub(super) confined: bool,
}

/// The kind of the open place.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Kind {
    /// A file, or whatever stands in a file's place.
    File {
        /// Whether it is a file that gets its name later.
        is_new: bool,
    },
    Folder,
}

/// The unpacker's only message: all is written, or nothing more.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// What was left out, or the error that ended it.
    pub(super) filled: Result<Vec<String>, String>,
    /// The rest of the budget.
    pub(super) budget: Budget,
}

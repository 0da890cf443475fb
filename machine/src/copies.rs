//! Files to copy between the host and a sandbox.

use std::path::PathBuf;

/// Files to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The file or folder.
    pub from: PathBuf,
    /// Where it goes.
    pub to: PathBuf,
}

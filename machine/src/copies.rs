//! Files that are copied between the host and a sandbox: what all modules that copy agree on.

use std::path::PathBuf;

/// A file or folder to copy, with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Its path on the side that it comes from.
    pub from: PathBuf,
    /// Its path on the other side.
    pub to: PathBuf,
}

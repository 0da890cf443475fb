//! Wrappers for I/O errors that name what was tried, for the host's crates and the lab's init.

use std::io;
use std::path::{Path, PathBuf};

/// A system call on a file or folder failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried, such as `open`.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

/// A system call failed, and what was tried is more, or less, than an action on one file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct HostError {
    /// What was tried, with all that it was tried on: `copy a into the guest`.
    pub action: String,
    /// The system's error.
    pub source: io::Error,
}

impl From<FileError> for HostError {
    fn from(error: FileError) -> Self {
        HostError {
            action: format!("{} {}", error.action, error.path.display()),
            source: error.source,
        }
    }
}

/// Names the action and the file in the error of a system call.
///
/// ```
/// use minivm_guest::io_error::failed;
///
/// let path = std::path::Path::new("/nowhere/at/all");
/// let error = std::fs::File::open(path).map_err(failed("open", path)).unwrap_err();
/// assert_eq!(error.to_string(), "cannot open /nowhere/at/all");
/// ```
pub fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError {
        action,
        path,
        source,
    }
}

/// Names the action in the error of a system call.
pub fn cannot(action: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
    let action = action.into();
    move |source| HostError { action, source }
}

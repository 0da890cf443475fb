//! Errors of fetching programs.

use minivm_image::io_error::{FileError, HostError};

/// A reason why a program can't be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program that is needed to fetch it isn't installed.
    #[error("cannot fetch {what}: {program} is not installed; {hint}")]
    NoTool {
        /// The program that was to be fetched.
        what: &'static str,
        /// The program that isn't installed.
        program: &'static str,
        /// The remedy.
        hint: &'static str,
    },
    /// A source doesn't provide it.
    #[error("cannot fetch {what} from {from}: {why}; {hint}")]
    Fetch {
        /// The program that was to be fetched.
        what: &'static str,
        /// The source.
        from: String,
        /// The message of the tool that asked the source.
        why: String,
        /// The remedy.
        hint: &'static str,
    },
    /// npm isn't installed.
    #[error("npm is not installed: `sudo apt-get install npm` installs it")]
    NoNpm,
    /// The packages are for another processor.
    #[error("the package of Deno that minivm installs is for x86-64 Linux, and this is {0}")]
    Architecture(&'static str),
    /// The npm registry was not reached, or didn't have what the lock file names.
    #[error("npm cannot install Deno and Pyodide: {0}")]
    Npm(String),
    /// A file can't be kept, or a program can't be run.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<FileError> for crate::Error {
    fn from(error: FileError) -> Self {
        HostError::from(error).into()
    }
}

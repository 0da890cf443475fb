//! What goes wrong when programs are fetched.

use minivm_image::io_error::{FileError, HostError};

/// Why a program can't be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program that fetches it isn't there itself.
    #[error("cannot fetch {what}: {program} is not installed; {hint}")]
    NoTool {
        /// What was to be fetched.
        what: &'static str,
        /// What isn't there.
        program: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// It can't be had from there.
    #[error("cannot fetch {what} from {from}: {why}; {hint}")]
    Fetch {
        /// What was to be fetched.
        what: &'static str,
        /// From where.
        from: String,
        /// What was said.
        why: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// There is no npm.
    #[error("npm is not installed: `sudo apt-get install npm` installs it")]
    NoNpm,
    /// The packages are for another processor.
    #[error("the package of Deno that minivm installs is for x86-64 Linux, and this is {0}")]
    Architecture(&'static str),
    /// The npm registry was not reached, or didn't have what the lock file names.
    #[error("npm cannot install Deno and Pyodide: {0}")]
    Npm(String),
    /// It can't be kept, or a program can't be run.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<FileError> for crate::Error {
    fn from(error: FileError) -> Self {
        let HostError { action, source } = error.into();
        crate::Error::Host { action, source }
    }
}

//! Why there is no template.

use std::io;
use std::path::{Path, PathBuf};

/// The longest name.
pub(super) const NAME_MAX: usize = 64;

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine can't be made, saved or restored.
    #[error(transparent)]
    Machine(#[from] crate::Error),
    /// The snapshot isn't good, or this host can't go on from it.
    #[error(transparent)]
    Snapshot(#[from] minivm_vmm::Error),
    /// A name that is none.
    #[error(
        "{0:?} is no template's name: it has 1 to {NAME_MAX} letters, digits, `-` and `_`, and isn't 32 hexadecimal digits"
    )]
    Name(String),
    /// The name is taken.
    #[error("there is a template {0} already: `minivm template rm {0}` removes it")]
    Exists(String),
    /// There is no template of that name.
    #[error("there is no template {0}: `minivm template ls` shows those that are there")]
    Missing(String),
    /// Somebody else is at it.
    #[error("the template {0} is being made or removed by another process")]
    Busy(String),
    /// Its record isn't what was written.
    #[error("the template {0} is damaged: `minivm template rm {0}` removes it")]
    Damaged(String),
    /// What it is to be made of in a lab is gone.
    #[error(
        "the archive of the template's image is gone, {}: `minivm template rm` removes the template, and then it can be created again",
        .0.display()
    )]
    Archive(PathBuf, #[source] io::Error),
    /// A file can't be written or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether it is about the template itself, and will be the same the next time.
    pub(super) fn is_of_template(&self) -> bool {
        use minivm_vmm::Error::{File, HostLacks, Snapshot};
        match self {
            Error::Damaged(_) => true,
            Error::Snapshot(error) | Error::Machine(crate::Error::Monitor(error)) => {
                match error {
                    Snapshot { .. } | HostLacks(_) => true,
                    // Not there, or no file at all; too many open files are another matter.
                    File { source, .. } => {
                        matches!(
                            source.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::Other
                        )
                    }
                    _ => false,
                }
            }
            _ => false,
        }
    }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

//! Errors of templates.

use std::io;
use std::path::PathBuf;

use minivm_image::io_error::FileError;

use crate::images;

/// The most characters of a name.
pub(super) const NAME_MAX: usize = 64;

/// An error of a template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine can't be made, saved or restored.
    #[error(transparent)]
    Machine(#[from] crate::Error),
    /// The snapshot is damaged, or this host can't restore it.
    #[error(transparent)]
    Snapshot(#[from] minivm_vmm::Error),
    /// The name isn't valid for a template that a user names.
    #[error(
        "{0:?} is not a valid template name: use 1 to {NAME_MAX} letters, digits, `-` and `_`, but not 32 hexadecimal digits"
    )]
    Name(String),
    /// The name is taken.
    #[error("there is a template {0} already: `minivm template rm {0}` removes it")]
    Exists(String),
    /// There is no template of that name.
    #[error("there is no template {0}: `minivm template ls` shows those that are there")]
    Missing(String),
    /// Another process makes or removes it.
    #[error("the template {0} is being made or removed by another process")]
    Busy(String),
    /// Its record can't be read.
    #[error("the template {0} is damaged: `minivm template rm {0}` removes it")]
    Damaged(String),
    /// The image's archive, of which a lab would make it, or the EROFS image that its guest maps, is gone.
    #[error(
        "the template's image is gone from the cache, {}: `minivm template rm` removes the template, and then it can be created again",
        .0.display()
    )]
    Image(PathBuf, #[source] io::Error),
    /// The image that the template's guest maps can't be opened.
    #[error(transparent)]
    Cache(Box<images::Error>),
    /// A file or folder can't be read, written or locked.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Error {
    /// Returns whether the template itself is at fault, so that the next try would fail as well.
    pub(super) fn is_of_template(&self) -> bool {
        use minivm_vmm::Error::{File, HostLacks, Snapshot};
        match self {
            Error::Damaged(_) => true,
            Error::Snapshot(error) | Error::Machine(crate::Error::Monitor(error)) => {
                match error {
                    Snapshot { .. } | HostLacks(_) => true,
                    // The file isn't there, or isn't a file. Too many open files, for example, are not the template's fault.
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

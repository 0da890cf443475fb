//! Names: one part of a path each.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

/// Bytes of a name, at most (NAME_MAX).
pub(super) const NAME_MAX: usize = 255;

/// The name of something in a folder: never a path, so a step by it leads one level down, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name(Arc<OsStr>);

impl Name {
    /// Takes bytes for a name.
    ///
    /// # Errors
    ///
    /// ENAMETOOLONG, or EINVAL for what is empty, `.`, `..`, or has a `/` or NUL in it.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, Errno> {
        if bytes.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let is_path = bytes.iter().any(|byte| matches!(byte, b'/' | 0));
        if is_path || matches!(bytes, b"" | b"." | b"..") {
            return Err(Errno::INVAL);
        }
        Ok(Name(Arc::from(OsStr::from_bytes(bytes))))
    }

    pub(super) fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    pub(super) fn is(&self, other: &str) -> bool {
        self.0.eq_ignore_ascii_case(other)
    }
}

impl From<&Name> for OsString {
    fn from(name: &Name) -> OsString {
        name.0.to_os_string()
    }
}

impl AsRef<Path> for Name {
    fn as_ref(&self) -> &Path {
        Path::new(&*self.0)
    }
}

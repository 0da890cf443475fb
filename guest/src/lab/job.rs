//! The job of the lab's init: a file in its initramfs, written on the host and read there.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use super::Root;

/// The file's name in the initramfs.
pub const PATH: &str = "/job.json";

/// A command to run in the lab, and its environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabJob {
    /// The command's file system.
    pub root: Root,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The command's whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The command's working folder. Not a `PathBuf`: serde writes these as text.
    pub cwd: OsString,
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn a_job_keeps_bytes_that_are_not_utf_8() {
        let odd = OsString::from_vec(b"\xff\n\"\\".to_vec());
        let job = LabJob {
            root: Root::Host,
            command: vec![odd.clone()],
            env: vec![(OsString::from("A"), odd.clone())],
            cwd: odd,
        };
        let json = serde_json::to_vec(&job).unwrap();
        assert_eq!(serde_json::from_slice::<LabJob>(&json).unwrap(), job);
    }
}

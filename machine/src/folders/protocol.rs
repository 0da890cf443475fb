//! The messages between a process that serves folders and the one that started it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Access, Folder, Limits, Volume};

/// What the process does. With it comes the stream to the machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    folders: Vec<Described>,
    /// Whether the process puts walls around itself.
    pub(super) confined: bool,
    /// Whether the user is root, whom the permissions of others' files don't bind.
    pub(super) as_root: bool,
}

/// A [`Folder`] as bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Described {
    source: Vec<u8>,
    writable: bool,
    hide: Vec<String>,
    protect: Vec<String>,
    owner: (u32, u32),
    nodes: usize,
    open: usize,
    growth: u64,
}

impl Job {
    pub(super) fn new(volumes: &[Volume], confined: bool, as_root: bool) -> Job {
        let described = |volume: &Volume| {
            let folder = &volume.folder;
            Described {
                source: bytes(&folder.source),
                writable: folder.access == Access::ReadWrite,
                hide: folder.hide.clone(),
                protect: folder.protect.clone(),
                owner: folder.owner,
                nodes: folder.limits.nodes,
                open: folder.limits.open,
                growth: folder.limits.growth,
            }
        };
        Job {
            folders: volumes.iter().map(described).collect(),
            confined,
            as_root,
        }
    }

    pub(super) fn folders(&self) -> Vec<Folder> {
        let folder = |described: &Described| Folder {
            source: PathBuf::from(OsString::from_vec(described.source.clone())),
            access: match described.writable {
                true => Access::ReadWrite,
                false => Access::ReadOnly,
            },
            hide: described.hide.clone(),
            protect: described.protect.clone(),
            owner: described.owner,
            limits: Limits {
                nodes: described.nodes,
                open: described.open,
                growth: described.growth,
            },
        };
        self.folders.iter().map(folder).collect()
    }
}

/// The process's messages, in their order: `Ready`, of each folder its repositories, `Ended`; or `Failed` alone.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum News {
    /// The folders can't be served: an error in one line.
    Failed(String),
    /// They are served, behind the walls. Of each, whether it is a single file.
    Ready(Vec<bool>),
    /// The paths of repositories that the guest has made in the next folder.
    Repositories(Vec<Vec<u8>>),
    /// The stream has ended, by the machine or by a fault.
    Ended(Option<String>),
}

/// The bytes of a path.
pub(super) fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

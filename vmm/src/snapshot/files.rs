//! The files of a snapshot's folder, opened before any is read.
//!
//! The state file names the memory file, and is not read yet. So all memory files in the folder are opened: the snapshot's own,
//! and what a saver has begun or left behind when it was killed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::state::State;
use super::{SaveFiles, Snapshot, SnapshotError, file, unreadable};
use crate::error::{Error, Result};
use crate::opened::{HostFiles, OpenFile};

/// The most attempts to open a snapshot that is replaced while it is being opened.
const ATTEMPTS: u8 = 5;
/// More memory files than any saver leaves: each deletes those of savers before it.
const MEMORY_FILES_MAX: usize = 16;

/// The files of a snapshot's folder, open and not read yet, with those of the host that its machines need: a process can confine
/// itself between [`open`](Self::open) and [`read`](Self::read), before it looks at files that may be hostile.
pub struct SnapshotFiles {
    folder: PathBuf,
    state: File,
    /// The memory files that the folder has, or why one can't be opened.
    memory: Vec<(String, io::Result<File>)>,
    pmem: Option<Arc<OpenFile>>,
    host: Option<HostFiles>,
}

impl SnapshotFiles {
    /// Opens the files in `folder`, `/dev/kvm` and `/proc/self/pagemap`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where a file of the snapshot can't be opened; [`Error::KvmMissing`], [`Error::KvmPermission`],
    /// [`Error::KvmLacks`] or [`Error::Kvm`] where there is no usable KVM.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let mut files = Self::in_folder(folder)?;
        files.host = Some(HostFiles::open()?);
        Ok(files)
    }

    /// Opens the files in `folder` alone: enough to find them good or not, and not for a machine in a process that can open no more.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where a file of the snapshot can't be opened.
    pub fn in_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(SaveFiles::STATE);
        let mut attempt = 1;
        loop {
            let state = open_regular(&path).map_err(unreadable(&path))?;
            let memory = memory_files(folder).map_err(unreadable(folder))?;
            // A saver renames its state file before it deletes the old memory file. So this state's was there if it still is.
            if attempt == ATTEMPTS || is_still(&state, &path).map_err(unreadable(&path))? {
                return Ok(SnapshotFiles {
                    folder: folder.into(),
                    state,
                    memory,
                    pmem: None,
                    host: None,
                });
            }
            attempt += 1;
        }
    }

    /// Opens the file that the machine has as persistent memory, of which the snapshot has no copy.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where it can't be opened, or is no file for persistent memory.
    pub fn pmem(mut self, path: impl AsRef<Path>) -> Result<Self> {
        self.pmem = Some(OpenFile::pmem(path.as_ref())?);
        Ok(self)
    }

    /// Returns the descriptors of all files: a process that closes all but the descriptors it needs keeps these.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let memory = self
            .memory
            .iter()
            .filter_map(|(_, file)| file.as_ref().ok());
        let pmem = self.pmem.iter().map(|pmem| &pmem.file);
        let files = memory.chain([&self.state]).chain(pmem).map(AsFd::as_fd);
        let host = self.host.iter().flat_map(HostFiles::descriptors);
        files.chain(host).collect()
    }

    /// Reads the files, and finds them good or not, as [`Snapshot::open`] does. Opens nothing.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where a file of the snapshot can't be read, [`Error::Snapshot`] where one isn't what was saved, or the machine's
    /// persistent memory was not given.
    pub fn read(self) -> Result<Snapshot> {
        let state = read_state(&self.state, &self.folder)?;
        let named = |(name, _): &(String, _)| *name == state.memory.name;
        let memory = match self.memory.into_iter().find(named) {
            Some((_, memory)) => memory,
            None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        };
        let memory = memory.map_err(unreadable(&self.folder.join(&state.memory.name)))?;
        Snapshot::of(&self.folder, state, memory, self.pmem, self.host)
    }
}

/// Opens all memory files in `folder`.
fn memory_files(folder: &Path) -> io::Result<Vec<(String, io::Result<File>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| SaveFiles::is_memory_name(name)) else {
            continue;
        };
        if files.len() == MEMORY_FILES_MAX {
            return Err(io::Error::other(format!(
                "it has more than {MEMORY_FILES_MAX} memory files: save the snapshot anew"
            )));
        }
        files.push((name.to_owned(), open_regular(&folder.join(name))));
    }
    Ok(files)
}

/// Returns whether the file at `path` is the one that is open. As long as it is, no other file has its inode's number.
fn is_still(file: &File, path: &Path) -> io::Result<bool> {
    let (ours, theirs) = (file.metadata()?, path.metadata()?);
    Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
}

/// Reads a state file; `folder` is for messages.
pub(super) fn read_state(file: &File, folder: &Path) -> Result<State> {
    let mut bytes = Vec::new();
    // One byte more than the longest, so that a longer one shows.
    file.take(file::LEN_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable(&folder.join(SaveFiles::STATE)))?;
    file::decode(&bytes).map_err(|source: SnapshotError| Error::Snapshot {
        path: folder.into(),
        source,
    })
}

/// Opens a regular file, and nothing else: a pipe would have no end.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    File::open(path)
}

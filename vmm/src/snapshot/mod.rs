//! Snapshots: a paused machine in two files, from which any number of machines continue.
//!
//! - `files` opens a snapshot's files before they are read;
//! - `state` holds a machine's state in plain data, with the format in `file`;
//! - `memory_file` holds its RAM; a restore maps it, and neither reads nor copies it;
//! - `save` writes both, into files that may be another process's;
//! - `capture` takes the state of a machine that is at rest;
//! - `restore` makes a machine in KVM and puts the state into it;
//! - `working_set` records the pages that a clone touches.
//!
//! `arch` reads and sets a vCPU's state, and explains the order.
//!
//! # A restored guest's view
//!
//! No time has passed: the time stamp counter and kvm-clock continue where they were. So the guest's date is wrong until the
//! host sends the right one. All machines of one snapshot are identical, down to the random number generator: the host has to
//! give each an identity and random bytes of its own before it does anything that must differ.
//!
//! A snapshot is as secret as its machine's memory, and is trusted like a kernel: its code runs in the guest, and does no more
//! than a guest can. Its files are readable by their owner only.

pub(crate) mod capture;
pub(crate) mod error;
pub(crate) mod file;
mod files;
mod memory_file;
pub(crate) mod restore;
pub(crate) mod save;
mod sparse;
pub(crate) mod state;
mod working_set;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub use error::SnapshotError;
pub use files::SnapshotFiles;
pub use restore::Prepared;
pub use save::SaveFiles;
pub use working_set::WorkingSet;

use crate::arch::create;
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::observer::Steps;
use crate::opened::{HostFiles, OpenFile};
use crate::pmem::Record;
use memory_file::Identity;
use state::State;

/// A snapshot that has been opened and found good: machines can be made from it, at once or ahead of time, until it is
/// dropped, also when its folder is replaced or deleted meanwhile. Cheap to clone.
///
/// ```no_run
/// use minivm_vmm::{Builder, Snapshot};
///
/// let snapshot = Snapshot::open("warm")?;
/// let outcome = Builder::restore(&snapshot).console_output(std::io::stdout()).build()?.run()?;
/// # minivm_vmm::Result::Ok(())
/// ```
#[derive(Clone)]
pub struct Snapshot(Arc<Opened>);

struct Opened {
    folder: PathBuf,
    state: State,
    memory: Arc<File>,
    pmem: Option<Arc<OpenFile>>,
    /// The memory file's identity when its content was found good.
    identity: Identity,
    /// The ranges in which the memory file holds nothing.
    holes: Vec<Range<u64>>,
    /// The host's files, once they are open.
    host: OnceLock<HostFiles>,
    /// Set once this host's KVM is known to have what the snapshot needs.
    fits: OnceLock<()>,
}

impl Snapshot {
    /// Opens the snapshot in `folder`, which has files of [`Control::snapshot_into`](crate::Control::snapshot_into). Its time
    /// doesn't grow with the memory, unless the memory file is a copy of the one that was saved: a copy is read through once.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where a file of the snapshot can't be read, [`Error::Snapshot`] where one isn't what was saved.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        SnapshotFiles::in_folder(folder.as_ref())?.read()
    }

    /// Returns the name of the memory file of the snapshot in `folder`, of which only the state file is read.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where it can't be read, [`Error::Snapshot`] where it isn't what was saved.
    pub fn memory_file(folder: &Path) -> Result<String> {
        let path = folder.join(SaveFiles::STATE);
        let state = files::open_regular(&path).map_err(unreadable(&path))?;
        Ok(files::read_state(&state, folder)?.memory.name)
    }

    /// Makes a snapshot of its parts, which are checked. `host` may not be open yet.
    fn of(
        folder: &Path,
        state: State,
        memory: File,
        pmem: Option<Arc<OpenFile>>,
        host: Option<HostFiles>,
    ) -> Result<Self> {
        let wrap = |source| Error::Snapshot {
            path: folder.into(),
            source,
        };
        let identity = Identity::of(&memory).map_err(unreadable(folder))?;
        let (expected, found) = (state.memory.bytes, identity.length());
        if found != expected {
            return Err(wrap(SnapshotError::MemorySize { expected, found }));
        }
        check_pmem(state.pmem.as_ref(), pmem.as_deref())?.map_err(wrap)?;
        let snapshot = Snapshot(Arc::new(Opened {
            folder: folder.into(),
            host: host.map_or_else(OnceLock::new, OnceLock::from),
            fits: OnceLock::new(),
            // Where the file system doesn't report holes, all of the file is mapped.
            holes: sparse::holes(&memory, found).unwrap_or_default(),
            memory: Arc::new(memory),
            pmem,
            identity,
            state,
        }));
        if snapshot.0.identity != snapshot.0.state.memory.identity {
            snapshot.verify()?;
        }
        Ok(snapshot)
    }

    /// Reads the whole memory file and compares it with its checksum: a test of the disk, which [`open`](Self::open) does only
    /// for a copy.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] where the content differs from what was saved, [`Error::File`] where it can't be read.
    pub fn verify(&self) -> Result<()> {
        let digest = memory_file::digest(&self.0.memory).map_err(unreadable(&self.0.folder))?;
        if digest != self.0.state.memory.digest {
            return Err(self.error(SnapshotError::MemoryDamaged));
        }
        self.check_unchanged()
    }

    /// Returns the machine's memory in bytes.
    pub fn memory(&self) -> u64 {
        self.0.state.memory.bytes
    }

    /// Returns the machine's number of vCPUs.
    pub fn cpus(&self) -> u8 {
        u8::try_from(self.0.state.vcpus.len()).expect("checked against CPUS_MAX")
    }

    /// Checks that this host has all that the snapshot needs. The first success is remembered, also for
    /// [`prepare`](Self::prepare).
    ///
    /// # Errors
    ///
    /// [`Error::HostLacks`] names the feature that the host lacks; [`Error::KvmMissing`], [`Error::KvmPermission`],
    /// [`Error::KvmLacks`] or [`Error::Kvm`] where there is no usable KVM.
    pub fn check_host(&self) -> Result<()> {
        self.host().map(drop)
    }

    /// Makes a machine of the snapshot in KVM, with all that can be done before the machine is needed;
    /// [`Builder::restore_prepared`](crate::Builder::restore_prepared) does the rest.
    ///
    /// # Errors
    ///
    /// Those of [`check_host`](Self::check_host); [`Error::Snapshot`] where the memory file has changed since it was opened,
    /// [`Error::File`] where it can't be checked; [`Error::Host`] where the host has no memory for the guest.
    pub fn prepare(&self) -> Result<Prepared> {
        restore::prepare(self, Steps::default())
    }

    /// Returns the host's files once its KVM is known to have what the snapshot needs.
    fn host(&self) -> Result<&HostFiles> {
        let host = self.host_files()?;
        if self.0.fits.get().is_none() {
            create::check_host(&host.kvm, &self.0.state.vcpus)?;
            let _ = self.0.fits.set(());
        }
        Ok(host)
    }

    /// Returns the host's files, which are opened if they are not open yet.
    pub(crate) fn host_files(&self) -> Result<&HostFiles> {
        if let Some(host) = self.0.host.get() {
            return Ok(host);
        }
        let host = HostFiles::open()?;
        Ok(self.0.host.get_or_init(|| host))
    }

    /// Returns the descriptors of the snapshot's and the host's files that are open.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let host = self.0.host.get().into_iter();
        let host = host.flat_map(HostFiles::descriptors);
        let pmem = self.0.pmem.iter().map(|pmem| pmem.file.as_fd());
        pmem.chain([self.0.memory.as_fd()]).chain(host).collect()
    }

    /// Maps RAM for one machine, with the memory file's content.
    fn ram(&self) -> Result<GuestRam> {
        GuestRam::of_file(self.memory(), self.0.memory.clone(), &self.0.holes)?
            .with_pmem(self.0.pmem.clone())
    }

    /// Checks that the memory file is still what it was when it was opened.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] where it has changed, [`Error::File`] where it can't be checked.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = Identity::of(&self.0.memory).map_err(unreadable(&self.0.folder))?;
        if !self.0.identity.still_holds(&now) {
            return Err(self.error(SnapshotError::MemoryChanged));
        }
        Ok(())
    }

    fn error(&self, source: SnapshotError) -> Error {
        Error::Snapshot {
            path: self.0.folder.clone(),
            source,
        }
    }
}

/// Compares the file that was given for persistent memory with the one that the machine has.
fn check_pmem(
    saved: Option<&Record>,
    given: Option<&OpenFile>,
) -> Result<std::result::Result<(), SnapshotError>> {
    let found = given.map(|file| Record::of(file).map_err(|error| file.unreadable(error)));
    Ok(match (saved, found.transpose()?) {
        (None, None) => Ok(()),
        (Some(saved), Some(found))
            if found.digest == saved.digest && found.bytes == saved.bytes =>
        {
            Ok(())
        }
        (Some(saved), Some(found)) => Err(SnapshotError::OtherPmem {
            given: found.path,
            saved: saved.path.clone(),
        }),
        (Some(saved), None) => Err(SnapshotError::PmemMissing(saved.path.clone())),
        (None, Some(_)) => Err(SnapshotError::NoPmem),
    })
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File {
        what: "snapshot".into(),
        path,
        source,
    }
}

#[cfg(test)]
pub(crate) mod tests;

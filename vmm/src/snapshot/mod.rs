//! Snapshots: a paused machine in two files, from which any number of machines go on.
//!
//! - `state` holds a machine's state in plain data, with the format in `file`;
//! - `memory_file` holds its RAM; a restore maps it, and neither reads nor copies it;
//! - `save` writes both so that a folder holds a whole snapshot or none;
//! - `capture` takes the state of a machine that is at rest;
//! - `restore` makes a machine in KVM and puts the state into it;
//! - `working_set` is what a clone touches of its memory.
//!
//! How a vCPU's state is read and set, and in which order, stands in `arch`.
//!
//! # What a restored guest sees
//!
//! No time has passed: the time stamp counter and kvm-clock go on where they were. So its date is wrong until somebody tells
//! it. All machines of one snapshot are the same, down to the random number generator: somebody has to tell each who it is
//! before it does anything that must differ.
//!
//! A snapshot is as secret as its machine's memory, and is trusted like a kernel: what it holds runs in the guest, and does
//! no more than a guest can. Its files are readable by their owner only.

pub(crate) mod capture;
mod error;
mod file;
mod memory_file;
pub(crate) mod restore;
mod save;
mod sparse;
pub(crate) mod state;
mod working_set;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use kvm_ioctls::{Cap, Kvm};

pub use error::SnapshotError;
pub use restore::Prepared;
use save::save;
pub use working_set::WorkingSet;

use crate::arch::features;
use crate::error::{Error, Result};
use crate::kvm::open_kvm;
use crate::memory::GuestRam;
use memory_file::Identity;
use state::State;

/// How often a snapshot is opened again that was replaced while it was being opened.
const ATTEMPTS: u8 = 5;

/// A snapshot that has been opened and found good: machines can be made from it, at once or ahead of time, until it is
/// dropped, also when its folder is replaced or deleted meanwhile. Cheap to clone.
///
/// ```no_run
/// use minivm_vmm::{Builder, Config, Kernel, Snapshot};
///
/// let machine = Builder::new(Config::new(Kernel::File("vmlinux".into()))).build()?;
/// let control = machine.control();
/// let running = std::thread::spawn(move || machine.run());
/// // … when the guest has come to where its clones are to start:
/// control.pause();
/// control.snapshot("warm")?;
/// control.stop();
/// running.join().expect("it doesn't panic")?;
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
    /// What the memory file was known as when its content was found good.
    identity: Identity,
    /// Where it holds nothing.
    holes: Vec<Range<u64>>,
    /// This host's KVM, once it is known to have what the snapshot needs.
    kvm: OnceLock<Kvm>,
}

impl Snapshot {
    /// Opens the snapshot in `folder`, which [`Machine::snapshot`](crate::Machine::snapshot) or
    /// [`Control::snapshot`](crate::Control::snapshot) has saved there. It takes no longer for more memory, unless the memory
    /// file isn't the very file that was saved but a copy of it: that one is read through once.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where a file of it can't be read, [`Error::Snapshot`] where it isn't what was saved.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let (state, memory) = open_files(folder)?;
        let wrap = |source| Error::Snapshot {
            path: folder.into(),
            source,
        };
        let identity = Identity::of(&memory).map_err(unreadable(folder))?;
        let (expected, found) = (state.memory.bytes, identity.length());
        if found != expected {
            return Err(wrap(SnapshotError::MemorySize { expected, found }));
        }
        let snapshot = Snapshot(Arc::new(Opened {
            folder: folder.into(),
            kvm: OnceLock::new(),
            // Where the file system doesn't tell, all of it is mapped.
            holes: sparse::holes(&memory, found).unwrap_or_default(),
            memory: Arc::new(memory),
            identity,
            state,
        }));
        if snapshot.0.identity != snapshot.0.state.memory.identity {
            snapshot.verify()?;
        }
        Ok(snapshot)
    }

    /// Reads the whole memory file and compares it with its checksum, which [`open`](Self::open) has no reason to do: this
    /// is for finding out whether the disk still holds what was written to it.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] where it doesn't, [`Error::File`] where it can't be read.
    pub fn verify(&self) -> Result<()> {
        let digest = memory_file::digest(&self.0.memory).map_err(unreadable(&self.0.folder))?;
        if digest != self.0.state.memory.digest {
            return Err(self.error(SnapshotError::MemoryDamaged));
        }
        self.check_unchanged()
    }

    /// The machine's memory in bytes.
    pub fn memory(&self) -> u64 {
        self.0.state.memory.bytes
    }

    /// The machine's number of vCPUs.
    pub fn cpus(&self) -> u8 {
        u8::try_from(self.0.state.vcpus.len()).expect("checked against CPUS_MAX")
    }

    /// How many bytes its files take on the disk, which is less than the machine's memory: what is zero takes none.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where the file system doesn't tell.
    pub fn disk_size(&self) -> Result<u64> {
        let memory = self.0.memory.metadata();
        let memory = memory.map_err(unreadable(&self.0.folder))?.blocks() * 512;
        Ok(memory + file::encode(&self.0.state).len() as u64)
    }

    /// Finds out whether this host has what the snapshot needs, as [`prepare`](Self::prepare) does, once.
    ///
    /// # Errors
    ///
    /// [`Error::HostLacks`] names what it hasn't; otherwise as [`Builder::build`](crate::Builder::build), where there is no
    /// usable KVM.
    pub fn check_host(&self) -> Result<()> {
        self.kvm().map(drop)
    }

    /// Makes a machine for it in KVM, and everything else that doesn't need to wait until a machine is wanted; see
    /// [`Builder::restore_prepared`](crate::Builder::restore_prepared).
    ///
    /// # Errors
    ///
    /// As [`check_host`](Self::check_host), [`Error::Snapshot`] where the memory file has changed since it was opened, and
    /// where KVM or the host refuse something.
    pub fn prepare(&self) -> Result<Prepared> {
        restore::prepare(self)
    }

    /// This host's KVM, which has what the snapshot needs.
    fn kvm(&self) -> Result<&Kvm> {
        if let Some(kvm) = self.0.kvm.get() {
            return Ok(kvm);
        }
        let kvm = open_kvm()?;
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        for vcpu in &self.0.state.vcpus {
            if let Some(feature) = features::missing(&vcpu.cpuid, &supported, deadline) {
                return Err(Error::HostLacks(feature));
            }
        }
        Ok(self.0.kvm.get_or_init(|| kvm))
    }

    /// RAM of a machine's own that holds what the memory file does.
    fn ram(&self) -> Result<GuestRam> {
        GuestRam::of_file(self.memory(), self.0.memory.clone(), &self.0.holes)
    }

    /// Checks that the memory file is still what it was when it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
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

/// Reads the state file, and opens the memory file that it names. If that is gone, another snapshot has taken its place, and
/// is opened instead.
fn open_files(folder: &Path) -> Result<(State, File)> {
    let mut attempt = 1;
    loop {
        let state = read_state(folder)?;
        match open_regular(&folder.join(&state.memory.name)) {
            Ok(memory) => return Ok((state, memory)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {
                attempt += 1
            }
            Err(error) => return Err(unreadable(&folder.join(&state.memory.name))(error)),
        }
    }
}

fn read_state(folder: &Path) -> Result<State> {
    let path = folder.join(save::STATE);
    let mut bytes = Vec::new();
    // One byte more than the largest, so that a larger one is seen to be.
    open_regular(&path)
        .and_then(|file| file.take(file::LEN_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(unreadable(&path))?;
    file::decode(&bytes).map_err(|source| Error::Snapshot {
        path: folder.into(),
        source,
    })
}

/// Opens a file that is one: a pipe would have no end.
fn open_regular(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    File::open(path)
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File {
        what: "snapshot",
        path,
        source,
    }
}

#[cfg(test)]
mod forged;
#[cfg(test)]
mod tests;

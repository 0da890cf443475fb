//! The files that a machine is made of, opened before any is read: a process can give up its right to open files in between.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use kvm_ioctls::Kvm;

use crate::config::{Config, Kernel};
use crate::error::{Error, Result};
use crate::kvm::open_kvm;
use crate::pmem;

/// The roles of files, in messages.
pub(crate) const INITRAMFS: &str = "initramfs";
const PMEM: &str = "persistent memory";

/// The open files of a machine that boots.
pub(crate) struct Opened {
    pub(crate) kernel: Option<OpenFile>,
    pub(crate) initramfs: Option<OpenFile>,
    pub(crate) pmem: Option<Arc<OpenFile>>,
    /// The host's, where it is known early that a machine is made.
    pub(crate) host: Option<HostFiles>,
    /// The number of this host's processors that this process may use, which std reads from files of its cgroup.
    pub(crate) processors: u64,
}

impl Opened {
    /// Opens the files that `config` names, and reads none of them.
    pub(crate) fn files(config: &Config) -> Result<Self> {
        config.check()?;
        let kernel = match &config.kernel {
            Kernel::File(path) => Some(OpenFile::open("kernel", path)?),
            Kernel::Code(_) => None,
        };
        let initramfs = config.initramfs.as_deref();
        let initramfs = initramfs.map(|path| OpenFile::open(INITRAMFS, path));
        Ok(Opened {
            kernel,
            initramfs: initramfs.transpose()?,
            pmem: config.pmem.as_deref().map(OpenFile::pmem).transpose()?,
            host: None,
            processors: thread::available_parallelism().map_or(1, |number| number.get() as u64),
        })
    }

    /// Returns the descriptors of all files that are open.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let files = [&self.kernel, &self.initramfs].into_iter().flatten();
        let files = files.chain(self.pmem.as_deref());
        let host = self.host.iter().flat_map(HostFiles::descriptors);
        files.map(|file| file.file.as_fd()).chain(host).collect()
    }
}

/// A file that goes into guest memory.
pub(crate) struct OpenFile {
    /// Its path, as it was given.
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// Its size in bytes.
    pub(crate) size: u64,
}

impl OpenFile {
    /// Opens a file for persistent memory.
    pub(crate) fn pmem(path: &Path) -> Result<Arc<Self>> {
        let file = OpenFile::open(PMEM, path)?;
        let defect = match file.size {
            0 => "it is empty",
            1..=pmem::FILE_MAX => return Ok(Arc::new(file)),
            _ => "it has more than 64 GiB, which are the most",
        };
        Err(file.unreadable(io::Error::new(io::ErrorKind::InvalidInput, defect)))
    }

    /// Returns its size in bytes, which may be another one by now.
    pub(crate) fn size_now(&self) -> io::Result<u64> {
        (&self.file).seek(io::SeekFrom::End(0))
    }

    /// Wraps the failure to read a file for persistent memory.
    pub(crate) fn unreadable(&self, source: io::Error) -> Error {
        Error::File {
            what: PMEM.into(),
            path: self.path.clone(),
            source,
        }
    }

    /// Opens a regular file or a block device: anything else has no size that could be relied on, and is refused.
    fn open(what: &'static str, path: &Path) -> Result<Self> {
        let wrap = |source| Error::File {
            what: what.into(),
            path: path.into(),
            source,
        };
        // Opening a named pipe would otherwise wait for a writer.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(wrap)?;
        let kind = file.metadata().map_err(wrap)?.file_type();
        if kind.is_dir() {
            return Err(wrap(io::ErrorKind::IsADirectory.into()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            let text = "it is neither a regular file nor a block device";
            return Err(wrap(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let size = file.seek(io::SeekFrom::End(0)).map_err(wrap)?;
        file.rewind().map_err(wrap)?;
        Ok(OpenFile {
            path: path.into(),
            file,
            size,
        })
    }
}

/// The files of this host's kernel that each machine needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct HostFiles {
    /// `/dev/kvm`. A machine keeps it: when it is saved, KVM is asked for its list of MSRs.
    pub(crate) kvm: Arc<Kvm>,
    /// `/proc/self/pagemap`, for [`GuestRam::pagemap`](crate::memory::GuestRam::pagemap).
    pub(crate) pagemap: Option<Arc<File>>,
}

impl HostFiles {
    /// Opens the files.
    pub(crate) fn open() -> Result<Self> {
        Ok(HostFiles {
            kvm: Arc::new(open_kvm()?),
            // A host without /proc has none: saving a machine then takes longer.
            pagemap: open_pagemap().map(Arc::new).ok(),
        })
    }

    /// Returns the files' descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        #[allow(unsafe_code, reason = "kvm-ioctls gives the bare number")]
        // SAFETY: the descriptor is open as long as `kvm` is, which is borrowed.
        let kvm = unsafe { BorrowedFd::borrow_raw(self.kvm.as_raw_fd()) };
        let pagemap = self.pagemap.iter().map(|file| file.as_fd());
        [kvm].into_iter().chain(pagemap)
    }
}

/// Opens the table in which the kernel shows this process's pages.
pub(crate) fn open_pagemap() -> io::Result<File> {
    File::open("/proc/self/pagemap")
}

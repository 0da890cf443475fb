//! The loader of kernels into guest memory: a file in one of the architecture's formats, which `arch` reads, or bare machine code.
//!
//! A kernel is hostile input: all fields of its headers are checked before one byte is loaded, so that an error names the
//! defect in the file's own terms.

pub(crate) mod error;

use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::loader::KernelLoaderResult;
use vm_memory::{Bytes, GuestAddress};

use crate::arch;
use crate::arch::kernel::Header;
use crate::config::Kernel;
use crate::error::{Error, Result};
use crate::layout;
use crate::memory::GuestRam;
use crate::opened::OpenFile;

pub use error::KernelError;

/// A kernel in guest memory.
pub(crate) struct Loaded {
    /// The address at which the first vCPU starts.
    pub(crate) entry: GuestAddress,
    /// The first guest-physical address that the kernel doesn't need while it starts.
    pub(crate) end: GuestAddress,
    /// The first address behind those that the initramfs can have.
    pub(crate) initramfs_end: u64,
    /// The part of the file's own header that the boot data need.
    pub(crate) header: Header,
}

/// Loads `kernel`, from `file` where it has one, into `ram`.
pub(crate) fn load(
    kernel: &Kernel,
    file: Option<&OpenFile>,
    cmdline_len: usize,
    ram: &GuestRam,
) -> Result<Loaded> {
    match (kernel, file) {
        (Kernel::Code(code), _) => load_code(code, ram),
        (Kernel::File(_), file) => load_file(file.expect("it is open"), cmdline_len, ram),
    }
}

fn load_code(code: &[u8], ram: &GuestRam) -> Result<Loaded> {
    let entry = layout::KERNEL;
    ram.map().write_slice(code, entry).map_err(|_| {
        Error::Config(format!(
            "{} bytes of code do not fit into guest memory",
            code.len()
        ))
    })?;
    Ok(Loaded {
        entry,
        end: GuestAddress(entry.0 + code.len() as u64),
        initramfs_end: u64::MAX,
        header: Header::default(),
    })
}

fn load_file(file: &OpenFile, cmdline_len: usize, ram: &GuestRam) -> Result<Loaded> {
    let refuse = |source| Error::Kernel {
        path: file.path.clone(),
        source,
    };
    let (size, file) = (file.size, &file.file);
    if size == 0 {
        return Err(refuse(KernelError::Empty));
    }
    let mut magic = [0; 4];
    let magic_len = file.read_at(&mut magic, 0);
    let magic_len = magic_len.map_err(|error| refuse(KernelError::Read(error)))?;
    let image = Image {
        size,
        ram_end: low_ram_end(ram).min(layout::KERNEL_END.0),
    };
    arch::kernel::load(file, &magic[..magic_len], image, cmdline_len, ram).map_err(refuse)
}

/// Returns the first address behind the first part of RAM: on x86-64, that below the hole; on arm64, all of it.
pub(crate) fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.regions()
        .next()
        .map_or(0, |(base, size, _)| base.0 + size)
}

/// The limits of a file and of the machine, which the loaders of all formats check.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    /// The file's size in bytes.
    pub(crate) size: u64,
    /// The first address behind the RAM that a kernel can have.
    pub(crate) ram_end: u64,
}

impl Image {
    /// Refuses a file that ends before `offset + len`.
    pub(crate) fn holds(
        self,
        what: &'static str,
        offset: u64,
        len: u64,
    ) -> std::result::Result<(), KernelError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            end => Err(KernelError::Truncated {
                what: what.into(),
                end: end.unwrap_or(u64::MAX),
                size: self.size,
            }),
        }
    }

    /// Refuses a place that isn't between [`layout::KERNEL`] and `ram_end`; returns its end.
    pub(crate) fn fits(self, start: u64, len: u64) -> std::result::Result<u64, KernelError> {
        match start.checked_add(len) {
            Some(end) if start >= layout::KERNEL.0 && end <= self.ram_end => Ok(end),
            end => Err(KernelError::OutsideRam {
                start,
                end: end.unwrap_or(u64::MAX),
                ram_end: self.ram_end,
            }),
        }
    }
}

/// Returns the number that lies in a header at an offset.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Turns linux-loader's error, which comes after all checks here, into a [`KernelError`].
pub(crate) fn loaded(
    result: linux_loader::loader::Result<KernelLoaderResult>,
) -> std::result::Result<KernelLoaderResult, KernelError> {
    result.map_err(|error| KernelError::Read(io::Error::other(error)))
}

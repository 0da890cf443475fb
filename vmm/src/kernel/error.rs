//! The defects of kernels' files.

use std::borrow::Cow;
use std::io;

use serde::{Deserialize, Serialize};

use crate::arch::text;
use crate::sent;

/// The defect of a kernel's file that can't be booted.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum KernelError {
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The file is in no format of kernels for this architecture.
    #[error("it is not a kernel: {}", text::NO_KERNEL)]
    NotAKernel,
    /// The file ends before the bytes that its header promises.
    #[error("it is truncated: {what} ends at byte {end}, the file has {size}")]
    Truncated {
        /// The part that is cut off.
        what: Cow<'static, str>,
        /// The first byte behind that part.
        end: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// The kernel is for another processor.
    #[error("it is a kernel for {0}, not for {name}", name = text::NAME)]
    WrongMachine(String),
    /// A header's field makes no sense.
    #[error("it is damaged: {0}")]
    Damaged(Cow<'static, str>),
    /// The file is a kernel in a form that can't be booted; the text names the one that can.
    #[error("{0}")]
    Unbootable(Cow<'static, str>),
    /// The kernel is compressed in a way that can't be unpacked here.
    #[error(
        "it is compressed by {0:?}: only gzip can be unpacked here; take the Image of the same build, uncompressed"
    )]
    Compression(String),
    /// The compressed kernel can't be unpacked.
    #[error("it cannot be unpacked")]
    Unpack(
        #[source]
        #[serde(with = "sent::io_error")]
        io::Error,
    ),
    /// The compressed kernel would be too large.
    #[error(
        "it unpacks to more than the {0} bytes that a kernel can have here: more --memory may help"
    )]
    UnpackedTooLarge(u64),
    /// A segment's place is not in guest RAM.
    #[error(
        "it wants to be at {start:#x} to {end:#x}, which is not in guest RAM for kernels ({} to {ram_end:#x}); more --memory helps up to {}",
        text::KERNELS_RAM,
        text::KERNELS_MEMORY
    )]
    OutsideRam {
        /// The segment's first guest-physical address.
        start: u64,
        /// The first address behind it.
        end: u64,
        /// The first address behind RAM.
        ram_end: u64,
    },
    /// Two segments want the same place.
    #[error("it is damaged: its segments overlap at {0:#x}")]
    Overlap(u64),
    /// The bzImage is too old: its header lacks fields that are needed to boot it.
    #[error("it speaks version {}.{:02} of the boot protocol: 2.12 (Linux 3.8) is the oldest that can be booted", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// The bzImage has no 64-bit entry point.
    #[error("it has no 64-bit entry point: a 64-bit kernel (CONFIG_X86_64) is needed")]
    No64BitEntry,
    /// The file could not be read.
    #[error("cannot read it")]
    Read(
        #[source]
        #[serde(with = "sent::io_error")]
        io::Error,
    ),
    /// The command line is longer than the kernel takes.
    #[error("it takes a command line of at most {max} bytes, and {len} were given")]
    CmdlineTooLong {
        /// The longest command line that the kernel takes, in bytes.
        max: u32,
        /// The length of the one that was given, in bytes.
        len: usize,
    },
}

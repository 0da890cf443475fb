//! The defects for which a snapshot is refused.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::arch::text;

/// The defect of a snapshot. No instruction of its guest has run.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The state file doesn't begin with minivm's magic number.
    #[error("its state file is not a minivm snapshot's")]
    Foreign,

    /// The state file's format is older than the one that this version reads.
    #[error("it has format {0}, which is older than this minivm reads: save it anew")]
    Older(u32),

    /// The state file's format is newer than the one that this version reads.
    #[error(
        "it has format {0}, which is newer than this minivm reads: use the minivm that saved it, or save it anew"
    )]
    Newer(u32),

    /// The machine has a processor of another architecture than this host's.
    #[error("its machine's processor is of the architecture {0}, and this host's is of {host}: restore it on a host like the one that saved it", host = text::NAME)]
    OtherArchitecture(String),

    /// The state file ends too early.
    #[error("its state file is truncated: save it anew")]
    Truncated,

    /// The state file doesn't match its checksum.
    #[error("its state file does not match its checksum: save it anew")]
    Damaged,

    /// The state file matches its checksum, but no machine can be in that state.
    #[error("its state file makes no sense: {0}")]
    Senseless(Cow<'static, str>),

    /// The machine has persistent memory, and no file was given for it.
    #[error("its machine has the file {0:?} as persistent memory: name it (--pmem FILE)")]
    PmemMissing(String),

    /// The given file is not the one that the machine has as persistent memory.
    #[error(
        "{given:?} is not the file that its machine has as persistent memory: name {saved:?} as it was (--pmem FILE)"
    )]
    OtherPmem {
        /// The file's path.
        given: String,
        /// The path of the machine's file, when the machine was saved.
        saved: String,
    },

    /// A file was given, and the machine has no persistent memory.
    #[error("its machine has no persistent memory: name no file for it")]
    NoPmem,

    /// The memory file has the wrong length.
    #[error("its memory file has {found} bytes instead of {expected}: save it anew")]
    MemorySize {
        /// The machine's memory in bytes.
        expected: u64,
        /// The file's length in bytes.
        found: u64,
    },

    /// The memory file's content doesn't match its checksum.
    #[error("its memory file does not match its checksum: save it anew")]
    MemoryDamaged,

    /// The memory file was written to, or touched, since it was opened.
    #[error("its memory file has changed since it was opened: open it again")]
    MemoryChanged,
}

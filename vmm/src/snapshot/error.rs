//! Why a snapshot is not used.

/// What is wrong with a snapshot. Nothing of it has run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The state file doesn't begin as one of minivm's does.
    #[error("its state file is not a minivm snapshot's")]
    Foreign,

    /// It was written in a format that is no longer read.
    #[error("it has format {0}, which is older than this minivm reads: save it anew")]
    Older(u32),

    /// It was written in a format that isn't known yet.
    #[error(
        "it has format {0}, which is newer than this minivm reads: use the minivm that saved it, or save it anew"
    )]
    Newer(u32),

    /// The state file ends too early.
    #[error("its state file is truncated: save it anew")]
    Truncated,

    /// The state file isn't what was written.
    #[error("its state file does not match its checksum: save it anew")]
    Damaged,

    /// The state file is what was written, but no machine can be in that state.
    #[error("its state file makes no sense: {0}")]
    Senseless(&'static str),

    /// The memory file has the wrong length.
    #[error("its memory file has {found} bytes instead of {expected}: save it anew")]
    MemorySize {
        /// The machine's memory in bytes.
        expected: u64,
        /// The file's length in bytes.
        found: u64,
    },

    /// The memory file's content isn't what was written.
    #[error("its memory file does not match its checksum: save it anew")]
    MemoryDamaged,

    /// Somebody has written to the memory file, or touched it, since it was opened.
    #[error("its memory file has changed since it was opened: open it again")]
    MemoryChanged,
}

//! Why a tar archive can't be read.

use std::io;

/// Why a tar archive can't be read.
#[derive(Debug)]
pub(crate) enum Error {
    /// Its bytes can't be read.
    Read(io::Error),
    Unsound(Unsound),
    /// A member's size is not a valid number.
    Size {
        /// The member's name.
        name: Vec<u8>,
    },
    /// A file's map of holes contradicts itself, or is of a kind that isn't read.
    Holes {
        /// The file's name.
        name: Vec<u8>,
    },
}

/// What is wrong with a tar archive as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// It ends within an entry, or without the two blocks of zeros that end it.
    #[error("it ends too early")]
    Truncated,
    /// A block that should be a header isn't one.
    #[error("there is no tar header at byte {at}")]
    Header {
        /// The place in the decompressed archive.
        at: u64,
    },
    /// A header for long names or extended attributes is itself too long.
    #[error("the extended header at byte {at} is longer than {limit} bytes, the limit")]
    LongHeader {
        /// The place in the decompressed archive.
        at: u64,
        /// The limit.
        limit: u64,
    },
    /// An extended header (pax) has a record that is not valid.
    #[error("the extended header before byte {at} has a bad record")]
    Record {
        /// The place in the decompressed archive.
        at: u64,
    },
}

impl From<Unsound> for Error {
    fn from(unsound: Unsound) -> Error {
        Error::Unsound(unsound)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Unsound(Unsound::Truncated),
            _ => Error::Read(error),
        }
    }
}

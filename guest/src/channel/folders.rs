//! The messages of shared folders: FUSE's own, as the guest's kernel reads and writes them, each after a [`Header`].
//!
//! They have rings of their own, and on the host a process of its own at the rings' other end: neither init nor the monitor looks into
//! them. The guest numbers its folders as [`Request::folders`](super::Request::folders) does.
//!
//! | offset | content of a header, little endian |
//! |---|---|
//! | 0 | length of the message in bytes, 4 bytes |
//! | 4 | the folder's number, 2 bytes |
//! | 6 | [`Kind`], 2 bytes |

/// The length of a [`Header`] in bytes.
pub const HEADER: usize = 8;
/// The most bytes of a message: a request to write 128 KiB.
pub const MESSAGE_MAX: usize = (128 << 10) + 80;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request of the guest kernel's, or a reply to one.
    Fuse = 0,
    /// From the guest, before a folder's first request: the user and the group to whom its files belong in the guest, 4 bytes each, little
    /// endian. The image's own list of users, which only the guest reads, may have them.
    Owner = 1,
    /// From the host: a notification to the guest's kernel, or the reply that has to come after it. The kernel may hold the former up until
    /// it has other replies, so that these two come to it in their order, and beside the others.
    Notice = 2,
}

/// The start of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The length of the message that follows, in bytes: at most [`MESSAGE_MAX`].
    pub len: usize,
    /// The folder's number.
    pub folder: u16,
    /// What the message is.
    pub kind: Kind,
}

/// The error of bytes that are not a message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The message would be longer than [`MESSAGE_MAX`].
    #[error("a folder's message of {0} bytes was announced: the most is {MESSAGE_MAX}")]
    TooLong(u32),
    /// There is no such kind.
    #[error("a folder's message of the unknown kind {0}")]
    Kind(u16),
}

impl Header {
    /// Returns the header as it is sent.
    ///
    /// # Panics
    ///
    /// Where the message is longer than [`MESSAGE_MAX`].
    pub fn encode(&self) -> [u8; HEADER] {
        assert!(self.len <= MESSAGE_MAX, "a message of {} bytes", self.len);
        let len = u32::try_from(self.len).expect("at most MESSAGE_MAX");
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.folder.to_le_bytes());
        bytes[6..].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// [`HeaderError`], after which the stream can't be read any further.
    pub fn decode(bytes: [u8; HEADER]) -> Result<Header, HeaderError> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let announced = u32::from_le_bytes([a, b, c, d]);
        let len = announced as usize;
        if len > MESSAGE_MAX {
            return Err(HeaderError::TooLong(announced));
        }
        let kind = match u16::from_le_bytes([g, h]) {
            0 => Kind::Fuse,
            1 => Kind::Owner,
            2 => Kind::Notice,
            kind => return Err(HeaderError::Kind(kind)),
        };
        Ok(Header {
            len,
            folder: u16::from_le_bytes([e, f]),
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_header_is_an_error() {
        let long = u32::try_from(MESSAGE_MAX + 1).unwrap();
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&long.to_le_bytes());
        assert_eq!(Header::decode(bytes), Err(HeaderError::TooLong(long)));
        assert_eq!(
            Header::decode([0, 0, 0, 0, 0, 0, 3, 0]),
            Err(HeaderError::Kind(3))
        );
    }

    proptest! {
        #[test]
        fn headers_come_out_as_they_went_in(len in 0..=MESSAGE_MAX, folder: u16, kind in 0..3_usize) {
            let kind = [Kind::Fuse, Kind::Owner, Kind::Notice][kind];
            let header = Header { len, folder, kind };
            prop_assert_eq!(Header::decode(header.encode()), Ok(header));
        }

        #[test]
        fn no_bytes_panic(bytes: [u8; HEADER]) {
            if let Ok(header) = Header::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}

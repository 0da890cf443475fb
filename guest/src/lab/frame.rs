//! The frames of the lab's channel.
//!
//! All streams go through one virtio-serial port, in frames: a kind (one byte), a length (four, little endian) and that many bytes.
//! One port instead of one for each stream keeps their order: the exit code comes after all output.

use std::io::{self, Read, Write};

/// The most bytes of a payload: what the kernel's virtio-console driver takes in one write.
pub const MAX_PAYLOAD: usize = 32 << 10;

const HEADER: usize = 5;

/// The kind of a frame: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host → lab: input for the command. An empty payload is its end.
    Stdin = 1,
    /// Lab → host: the command starts now.
    Started = 2,
    /// Lab → host: the command's stdout.
    Stdout = 3,
    /// Lab → host: the command's stderr.
    Stderr = 4,
    /// Lab → host, the last frame: the command's exit code, 4 bytes.
    Exit = 5,
    /// Lab → host, the last frame: why the command could not be started.
    Failed = 6,
    /// Host → lab: no content. It raises an interrupt, see `channel`.
    Ping = 7,
    /// Host → lab, the last frame of a session at a port of a kept lab: the session is over.
    Hangup = 8,
    /// Lab → host, instead of `Started`: this lab's kernel is unusable, for this reason; the host should start another lab.
    Retry = 9,
    /// Command → keeper of a kept lab: give this connection a machine.
    Attach = 10,
    /// Command → keeper of a kept lab: end.
    Shutdown = 11,
    /// Both ways, at a port of a kept lab: messages of the machine's folders, cut anywhere. An empty payload is their end.
    Folders = 12,
}

impl Kind {
    const ALL: [Kind; 12] = [
        Kind::Stdin,
        Kind::Started,
        Kind::Stdout,
        Kind::Stderr,
        Kind::Exit,
        Kind::Failed,
        Kind::Ping,
        Kind::Hangup,
        Kind::Retry,
        Kind::Attach,
        Kind::Shutdown,
        Kind::Folders,
    ];

    fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// A payload with room for its header, so that a frame is sent in one write.
pub struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Buffer {
    /// Makes a buffer for the largest payload.
    pub fn new() -> Buffer {
        Buffer(vec![0; HEADER + MAX_PAYLOAD])
    }

    /// Returns the payload, to be filled before it is sent.
    pub fn payload(&mut self) -> &mut [u8] {
        &mut self.0[HEADER..]
    }

    /// Sends the first `length` bytes of the payload.
    ///
    /// # Errors
    ///
    /// The stream's.
    ///
    /// # Panics
    ///
    /// Where `length` is more than [`MAX_PAYLOAD`].
    pub fn send(&mut self, kind: Kind, length: usize, mut to: impl Write) -> io::Result<()> {
        self.0[0] = kind as u8;
        let size = u32::try_from(length).map_err(io::Error::other)?;
        self.0[1..HEADER].copy_from_slice(&size.to_le_bytes());
        to.write_all(&self.0[..HEADER + length])
    }
}

/// Sends one frame. A payload is cut to [`MAX_PAYLOAD`].
///
/// # Errors
///
/// The stream's.
pub fn send(kind: Kind, payload: &[u8], to: impl Write) -> io::Result<()> {
    let mut buffer = Buffer::new();
    let length = payload.len().min(MAX_PAYLOAD);
    buffer.payload()[..length].copy_from_slice(&payload[..length]);
    buffer.send(kind, length, to)
}

/// Reads one frame's payload into `payload` and returns its kind; `None` at the end of the stream.
///
/// # Errors
///
/// `InvalidData` where the bytes are not a frame, `UnexpectedEof` where the stream ends inside a payload, else the stream's own.
pub fn receive(mut from: impl Read, payload: &mut Vec<u8>) -> io::Result<Option<Kind>> {
    let mut header = [0; HEADER];
    if let Err(error) = from.read_exact(&mut header) {
        return if error.kind() == io::ErrorKind::UnexpectedEof {
            Ok(None)
        } else {
            Err(error)
        };
    }
    let [kind, size @ ..] = header;
    let size = u32::from_le_bytes(size) as usize;
    let Some(kind) = Kind::from_byte(kind).filter(|_| size <= MAX_PAYLOAD) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{header:?} is not a frame's header"),
        ));
    };
    payload.resize(size, 0);
    from.read_exact(payload)?;
    Ok(Some(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back_in_order() {
        let mut wire = Vec::new();
        send(Kind::Stdout, b"text", &mut wire).unwrap();
        send(Kind::Stdin, b"", &mut wire).unwrap();
        assert_eq!(wire, b"\x03\x04\0\0\0text\x01\0\0\0\0");
        let (mut wire, mut payload) = (wire.as_slice(), Vec::new());
        assert_eq!(
            receive(&mut wire, &mut payload).unwrap(),
            Some(Kind::Stdout)
        );
        assert_eq!(payload, b"text");
        assert_eq!(receive(&mut wire, &mut payload).unwrap(), Some(Kind::Stdin));
        assert_eq!(payload, b"");
        assert_eq!(receive(&mut wire, &mut payload).unwrap(), None);
    }

    #[test]
    fn an_unknown_kind_and_an_endless_frame_are_errors() {
        for wire in [*b"\0\0\0\0\0", *b"\xff\0\0\0\0", *b"\x04\xff\xff\xff\xff"] {
            let error = receive(&wire[..], &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_stream_that_stops_inside_a_payload_is_an_error() {
        assert!(receive(&b"\x04\x02\0\0\0x"[..], &mut Vec::new()).is_err());
    }
}

//! Messages over a stream socket, with descriptors beside them: a length of four bytes, and a value in postcard's format.
//!
//! The process that reads trusts neither: a message is bounded, and so is the number of its descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message in bytes. A snapshot's list of pages is the longest part of one.
const LEN_MAX: usize = 16 << 20;
/// The bytes of a message's length.
const HEAD: usize = 4;
/// The most descriptors that come with a message.
const FILES_MAX: usize = 3;

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: UnixStream,
    /// Held while a message is sent: several threads may send some.
    sending: Mutex<()>,
}

/// A message as it was received, with its descriptors.
pub(crate) struct Received<T> {
    pub(crate) message: T,
    pub(crate) files: Vec<OwnedFd>,
}

impl Stream {
    /// Makes both ends.
    pub(crate) fn pair() -> io::Result<(Stream, Stream)> {
        let (one, other) = UnixStream::pair()?;
        Ok((Stream::new(one), Stream::new(other)))
    }

    fn new(socket: UnixStream) -> Stream {
        Stream {
            socket,
            sending: Mutex::default(),
        }
    }

    /// Sends a message, with descriptors that the other process gets copies of.
    ///
    /// # Errors
    ///
    /// The operating system's, [`io::ErrorKind::BrokenPipe`] where the other process has ended, and where the message is too long.
    pub(crate) fn send(&self, message: &impl Serialize, files: &[BorrowedFd]) -> io::Result<()> {
        let body = postcard::to_allocvec(message).map_err(io::Error::other)?;
        let len = u32::try_from(body.len()).ok();
        let len = len.filter(|_| body.len() <= LEN_MAX);
        let len = len.ok_or_else(|| io::Error::other("a message is too long"))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let fit = files.len() <= FILES_MAX
            && (files.is_empty() || beside.push(SendAncillaryMessage::ScmRights(files)));
        if !fit {
            return Err(io::Error::other("a message has too many descriptors"));
        }
        let head = len.to_le_bytes();
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(
                &self.socket,
                &[IoSlice::new(&head)],
                &mut beside,
                SendFlags::NOSIGNAL,
            )
        })?;
        (&self.socket).write_all(&head[sent..])?;
        (&self.socket).write_all(&body)
    }

    /// Waits for a message; returns `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// The operating system's, and [`io::ErrorKind::InvalidData`] where what comes is not a message.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<Received<T>>> {
        let mut head = [0; HEAD];
        let mut files = Vec::new();
        let got = self.receive_head(&mut head, &mut files)?;
        if got == 0 {
            return Ok(None);
        }
        (&self.socket).read_exact(&mut head[got..])?;
        let message = read_body(head, &self.socket)?;
        Ok(Some(Received { message, files }))
    }

    /// Receives a message's first bytes, and its descriptors.
    fn receive_head(&self, head: &mut [u8], files: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(head)];
            match recvmsg(
                &self.socket,
                &mut parts,
                &mut beside,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        let too_many = files.len() > FILES_MAX || received.flags.contains(ReturnFlags::CTRUNC);
        match too_many {
            true => Err(bad("it has too many descriptors")),
            false => Ok(received.bytes),
        }
    }
}

impl Stream {
    /// Returns the socket, for waits with a limit.
    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Ends the stream in both directions: both processes find that out.
    pub(crate) fn end(&self) {
        // It fails where the other process has ended it.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<OwnedFd> for Stream {
    fn from(socket: OwnedFd) -> Stream {
        Stream::new(socket.into())
    }
}

/// Reads a message without descriptors from `from`, which may wait for its bytes in a way of its own.
///
/// # Errors
///
/// As [`Stream::receive`]'s, and [`io::ErrorKind::UnexpectedEof`] at the end of the stream.
pub(crate) fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head)?;
    read_body(head, from)
}

fn read_body<T: DeserializeOwned>(head: [u8; HEAD], from: impl Read) -> io::Result<T> {
    let len = u32::from_le_bytes(head) as usize;
    if len > LEN_MAX {
        return Err(bad("it is too long"));
    }
    // Grows as the bytes come: a length alone costs no memory.
    let mut body = Vec::new();
    from.take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match postcard::take_from_bytes(&body) {
        Ok((message, [])) => Ok(message),
        _ => Err(bad("it can't be read")),
    }
}

/// Returns whether an error comes of a process that has ended before.
pub(crate) fn is_of_the_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&error.kind())
}

fn bad(why: &str) -> io::Error {
    let text = format!("a message of the other process is not valid: {why}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Seek;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (one, other) = Stream::pair().unwrap();
        let mut sent = tempfile::tempfile().unwrap();
        sent.write_all(b"in the file").unwrap();
        sent.rewind().unwrap();
        let long = vec![7u8; 3 << 20];
        let first = long.clone();
        let sending = std::thread::spawn(move || {
            one.send(&first, &[sent.as_fd()]).unwrap();
            one.send(&"no files", &[]).unwrap();
        });
        let Received { message, files } = other.receive::<Vec<u8>>().unwrap().unwrap();
        assert!(message == long);
        let [file] = <[OwnedFd; 1]>::try_from(files).unwrap();
        assert!(rustix::io::fcntl_getfd(&file).unwrap() == rustix::io::FdFlags::CLOEXEC);
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "in the file");
        let second = other.receive::<String>().unwrap().unwrap();
        assert_eq!((&*second.message, second.files.len()), ("no files", 0));
        sending.join().unwrap();
        assert!(other.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn messages_of_several_threads_arrive_whole() {
        let (one, other) = Stream::pair().unwrap();
        std::thread::scope(|scope| {
            for byte in 0..4_u8 {
                let one = &one;
                scope.spawn(move || {
                    for len in 0..500 {
                        one.send(&vec![byte; len], &[]).unwrap();
                    }
                });
            }
            for _ in 0..4 * 500 {
                let bytes = other.receive::<Vec<u8>>().unwrap().unwrap().message;
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
            }
        });
    }

    #[test]
    fn nonsense_is_an_error_and_costs_no_memory() {
        let files: Vec<File> = (0..5).map(|_| tempfile::tempfile().unwrap()).collect();
        for (bytes, why) in [
            (&[1, 0][..], "fill"),
            (&[0xff, 0xff, 0xff, 0xff], "too long"),
            (&[4, 0, 0, 0, 9, 1], "end"),
            (&[2, 0, 0, 0, 200, 1], "can't be read"),
            (&[3, 0, 0, 0, 1, b'a', b'b'], "can't be read"),
        ] {
            let (one, other) = Stream::pair().unwrap();
            (&one.socket).write_all(bytes).unwrap();
            drop(one);
            let error = other.receive::<String>().map(drop).unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
        let (one, other) = Stream::pair().unwrap();
        let many: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        assert!(one.send(&"too many", &many).is_err());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&many)));
        let bytes = [IoSlice::new(&[1, 0, 0, 0, 0])];
        sendmsg(&one, &bytes, &mut beside, SendFlags::empty()).unwrap();
        let error = other.receive::<String>().map(drop).unwrap_err().to_string();
        assert!(error.contains("too many descriptors"), "{error}");
    }
}

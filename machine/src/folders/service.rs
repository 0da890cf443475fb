//! The messages of a machine's folders: read from a stream, answered by several threads, and replied to on the same stream.
//!
//! Each thread reads a message, answers it and sends the reply, one after the other. So there are never more requests under way than
//! threads, and while all of them are busy, or wait for a guest that takes no replies, nothing is read. The order of requests is the
//! guest kernel's matter, which sends what depends on a reply after that; a FORGET is counted, so it may pass others or be passed.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread::{self, Builder};

use minivm_guest::channel::folders::{HEADER, Header, Kind};

use super::{Server, lock};
use crate::child::is_of_the_end;

/// The threads that answer, and so the most requests that are under way.
const THREADS: usize = 8;
/// The bytes that are read at a time: some small requests, or the beginning of a large one.
const READ: usize = 16 << 10;
/// The length of a message that sets a folder's owner.
const OWNER: usize = 8;

/// Answers what comes over a stream until it ends. Returns the fault that has ended it, if one has.
pub(super) fn serve(server: &Server, stream: &UnixStream) -> Option<String> {
    let service = Service {
        server,
        stream,
        reading: Mutex::new(Reading {
            from: BufReader::with_capacity(READ, stream),
            is_over: false,
            fault: None,
        }),
        writing: Mutex::default(),
    };
    thread::scope(|scope| {
        for _ in 1..THREADS {
            let thread = Builder::new().name("folders".into());
            // Where there can't be so many, fewer answer: this thread does in any case.
            if thread.spawn_scoped(scope, || service.work()).is_err() {
                break;
            }
        }
        service.work();
    });
    lock(&service.reading).fault.take()
}

struct Service<'a> {
    server: &'a Server,
    stream: &'a UnixStream,
    reading: Mutex<Reading<'a>>,
    /// Held while a reply is sent, which is whole then.
    writing: Mutex<()>,
}

struct Reading<'a> {
    from: BufReader<&'a UnixStream>,
    is_over: bool,
    fault: Option<String>,
}

impl Service<'_> {
    /// Answers requests until there are no more.
    fn work(&self) {
        let _panic = EndOfPanic(self.stream);
        let (mut request, mut reply, mut message) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(folder) = self.next(&mut request) {
            let notice = self.server.answer(folder, &request, &mut reply);
            if reply.is_empty() {
                continue;
            }
            message.clear();
            let kind = match &notice {
                Some(_) => Kind::Notice,
                None => Kind::Fuse,
            };
            for part in notice.iter().chain([&reply]) {
                let len = part.len();
                message.extend_from_slice(&Header { len, folder, kind }.encode());
                message.extend_from_slice(part);
            }
            let _writing = lock(&self.writing);
            let mut stream = self.stream;
            if stream.write_all(&message).is_err() {
                // The machine takes no more replies: the thread that reads finds the end.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Reads the next request, and returns its folder's number; `None` at the end. Owners that come before are set before it is read.
    fn next(&self, request: &mut Vec<u8>) -> Option<u16> {
        let mut reading = lock(&self.reading);
        while !reading.is_over {
            match reading.message(request) {
                Ok((folder, Kind::Fuse)) => return Some(folder),
                Ok((_, Kind::Notice)) => {
                    let error = io::Error::other("a guest has sent what only a host sends");
                    self.end(&mut reading, &error);
                }
                Ok((folder, Kind::Owner)) => match owner(request) {
                    Ok(owner) => self.server.set_owner(folder, owner),
                    Err(error) => self.end(&mut reading, &error),
                },
                Err(error) => self.end(&mut reading, &error),
            }
        }
        None
    }

    /// Ends the service: that of a machine that has closed its end, or with a fault.
    fn end(&self, reading: &mut Reading<'_>, error: &io::Error) {
        reading.is_over = true;
        if !is_of_the_end(error) {
            reading.fault = Some(error.to_string());
            // Other threads may be sending, or wait to.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Reading<'_> {
    /// Reads a message in place of what the vector has; returns its folder's number, and its kind.
    fn message(&mut self, message: &mut Vec<u8>) -> io::Result<(u16, Kind)> {
        let mut header = [0; HEADER];
        self.from.read_exact(&mut header)?;
        let header = Header::decode(header).map_err(io::Error::other)?;
        message.resize(header.len, 0);
        self.from.read_exact(message)?;
        Ok((header.folder, header.kind))
    }
}

/// Reads the message that sets a folder's owner: a user and a group.
fn owner(message: &[u8]) -> io::Result<(u32, u32)> {
    let bytes = <[u8; OWNER]>::try_from(message).map_err(|_| {
        let len = message.len();
        io::Error::other(format!(
            "a folder's owner of {len} bytes was sent: it has {OWNER}"
        ))
    })?;
    let [a, b, c, d, e, f, g, h] = bytes;
    Ok((
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ))
}

/// Ends the stream where a thread panics, whose guest would wait for a reply for ever.
struct EndOfPanic<'a>(&'a UnixStream);

impl Drop for EndOfPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.shutdown(Shutdown::Both);
        }
    }
}

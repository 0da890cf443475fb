//! The machine's end of a stream to a process that serves folders, and a guest that asks it for everything.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use minivm_guest::channel::folders::{HEADER, Header, Kind};
use rustix::io::Errno;

use crate::client::Arg::{Bytes, Long, Text, Word};
use crate::client::{
    APPEND, Answer, Client, EXCHANGE, EXCL, NOREPLACE, RDONLY, RDWR, ROOT, number, op, word,
};

/// The machine's end, for one request at a time.
pub(crate) struct Wire(Mutex<UnixStream>);

impl Wire {
    pub(crate) fn new(stream: UnixStream) -> Wire {
        Wire(Mutex::new(stream))
    }
}

impl Answer for Wire {
    fn answer(&self, folder: u16, request: &[u8], reply: &mut Vec<u8>) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(&mut stream, folder, Kind::Fuse, request);
        loop {
            let (header, message) = receive(&mut stream);
            assert_eq!(header.folder, folder);
            assert_ne!(header.kind, Kind::Owner);
            // A notification has a positive number in the place of an error.
            if word(&message, 4).cast_signed() <= 0 {
                *reply = message;
                return;
            }
            assert_eq!(header.kind, Kind::Notice);
        }
    }
}

pub(crate) fn framed(folder: u16, kind: Kind, message: &[u8]) -> Vec<u8> {
    let len = message.len();
    let header = Header { len, folder, kind };
    [&header.encode(), message].concat()
}

pub(crate) fn send(stream: &mut UnixStream, folder: u16, kind: Kind, message: &[u8]) {
    stream.write_all(&framed(folder, kind, message)).unwrap();
}

pub(crate) fn receive(stream: &mut UnixStream) -> (Header, Vec<u8>) {
    try_receive(stream).unwrap()
}

/// Receives a message, if there is another one.
pub(crate) fn try_receive(stream: &mut UnixStream) -> io::Result<(Header, Vec<u8>)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let header = Header::decode(header).unwrap();
    let mut message = vec![0; header.len];
    stream.read_exact(&mut message)?;
    Ok((header, message))
}

/// Does all that a guest can do with an empty folder, and makes a repository in it. In the end a file `kept` is left.
pub(crate) fn do_everything<A: Answer>(guest: &Client<A>) {
    guest.put("file", b"some bytes").unwrap();
    assert_eq!(guest.get("file").unwrap(), b"some bytes");
    guest.mkdir("folder", 0o755).unwrap();
    guest.mknod("folder/empty", 0o100_644).unwrap();
    assert_eq!(guest.mknod("fifo", 0o010_644), Err(Errno::PERM));
    guest.symlink("folder/link", b"/etc/passwd").unwrap();
    assert_eq!(guest.readlink("folder/link").unwrap(), b"/etc/passwd");
    guest.link("file", "folder/other").unwrap();
    assert_eq!(guest.stat("file").unwrap().links, 2);
    for plus in [false, true] {
        let names = guest.names("folder", plus).unwrap();
        assert_eq!(names, ["empty", "link", "other"]);
    }
    guest.chmod("file", 0o751).unwrap();
    guest.utimes("file", (1_000_000, 7)).unwrap();
    guest.truncate("file", 4).unwrap();
    let stat = guest.stat("file").unwrap();
    assert_eq!((stat.mode & 0o777, stat.size), (0o751, 4));
    guest.rename("file", "folder/moved", NOREPLACE).unwrap();
    guest
        .rename("folder/moved", "folder/empty", EXCHANGE)
        .unwrap();
    guest.rename("folder/empty", "kept", 0).unwrap();
    let at = guest.open("kept", RDWR).unwrap();
    guest.write(at, 0, b"again", APPEND).unwrap();
    guest.fallocate(at, 0, 0, 10_000).unwrap();
    let data = guest.call(op::LSEEK, at.0, &[Long(at.1), Long(0), Word(3), Word(0)]);
    assert_eq!(number(&data.unwrap(), 0), 0);
    for data_alone in [0, 1] {
        let fsync = [Long(at.1), Word(data_alone), Word(0)];
        guest.call(FSYNC, at.0, &fsync).unwrap();
    }
    assert_eq!(&guest.read(at, 0, 9).unwrap(), b"someagain");
    guest.release(at).unwrap();
    guest.call(op::ACCESS, at.0, &[Word(4), Word(0)]).unwrap();
    guest.call(op::STATFS, ROOT, &[]).unwrap();
    let taken = guest.create("kept", EXCL, 0o600);
    assert_eq!(taken, Err(Errno::EXIST));
    for name in ["moved", "link", "other"] {
        guest.unlink(&format!("folder/{name}")).unwrap();
    }
    guest.rmdir("folder").unwrap();
    guest.mkdir("new", 0o755).unwrap();
    guest.mkdir("new/.git", 0o755).unwrap();
    let kept = guest.find("kept").unwrap();
    let unknown = guest.call(op::GETXATTR, kept, &[Word(0), Word(0), Text(b"user.x")]);
    assert_eq!(unknown, Err(Errno::NOSYS));
    let opened = guest.open("kept", RDONLY).unwrap();
    assert_eq!(guest.open_node(kept + 1000, RDONLY), Err(Errno::STALE));
    guest.release(opened).unwrap();
    let forgotten = Bytes(&[0; 8]);
    assert_eq!(
        guest.call(op::ACCESS, kept, &[forgotten, Word(9)]).err(),
        None
    );
}

const FSYNC: u32 = 20;

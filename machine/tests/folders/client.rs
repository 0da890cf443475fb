//! A guest's kernel, as far as it speaks FUSE.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minivm_machine::folders::{Access, Folder, REPLY_MAX, Server};
use rustix::io::Errno;

pub(crate) const ROOT: u64 = 1;

/// Requests by their numbers, as `fuse.h` has them.
pub(crate) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
}

pub(crate) const RDONLY: u32 = 0;
pub(crate) const WRONLY: u32 = 1;
pub(crate) const RDWR: u32 = 2;
pub(crate) const CREAT: u32 = 0o100;
pub(crate) const EXCL: u32 = 0o200;
pub(crate) const TRUNC: u32 = 0o1000;
pub(crate) const APPEND: u32 = 0o2000;
pub(crate) const NOREPLACE: u32 = 1;
pub(crate) const EXCHANGE: u32 = 2;

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// The attributes in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) owner: (u32, u32),
}

impl Attr {
    fn parse(bytes: &[u8]) -> Self {
        Attr {
            size: number(bytes, 8),
            mtime: (number(bytes, 32).cast_signed(), word(bytes, 52)),
            mode: word(bytes, 60),
            links: word(bytes, 64),
            owner: (word(bytes, 68), word(bytes, 72)),
        }
    }
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Returns numbers as bytes: those that don't fit in 32 bits must be given as [`Arg::Long`].
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    Word(u32),
    Long(u64),
    /// With a NUL behind it.
    Text(&'a [u8]),
    Bytes(&'a [u8]),
}

use Arg::{Bytes, Long, Text, Word};

pub(crate) fn request(opcode: u32, unique: u64, node: u64, args: &[Arg<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    for arg in args {
        match arg {
            Word(word) => bytes.extend_from_slice(&word.to_ne_bytes()),
            Long(long) => bytes.extend_from_slice(&long.to_ne_bytes()),
            Text(text) => bytes.extend([text, &[0][..]].concat()),
            Bytes(more) => bytes.extend_from_slice(more),
        }
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
    bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
    bytes[16..24].copy_from_slice(&node.to_ne_bytes());
    bytes
}

/// What answers a request.
pub(crate) trait Answer {
    /// Puts the reply in place of what the vector has.
    fn answer(&self, folder: u16, request: &[u8], reply: &mut Vec<u8>);
}

impl Answer for Server {
    fn answer(&self, folder: u16, request: &[u8], reply: &mut Vec<u8>) {
        Server::answer(self, folder, request, reply);
    }
}

/// A mounted folder.
pub(crate) struct Client<A = Server> {
    pub(crate) server: Arc<A>,
    folder: u16,
    unique: Arc<AtomicU64>,
}

impl<A> Clone for Client<A> {
    fn clone(&self) -> Self {
        Client {
            server: Arc::clone(&self.server),
            folder: self.folder,
            unique: Arc::clone(&self.unique),
        }
    }
}

impl Client {
    pub(crate) fn new(folder: &Folder) -> Self {
        let server = Arc::new(Server::new(std::slice::from_ref(folder)).unwrap());
        Client::mount(server, 0)
    }

    pub(crate) fn of(place: &Path) -> Self {
        Client::new(&Folder::new(place, Access::ReadWrite))
    }
}

impl<A: Answer> Client<A> {
    pub(crate) fn mount(server: Arc<A>, folder: u16) -> Self {
        let client = Client {
            server,
            folder,
            unique: Arc::default(),
        };
        let init = client.call(
            op::INIT,
            0,
            &[
                Word(7),
                Word(41),
                Word(1 << 17),
                Word(u32::MAX),
                Bytes(&[0; 48]),
            ],
        );
        assert_eq!(init.unwrap().len(), 64);
        client
    }

    /// Makes a request, and returns the reply's results.
    pub(crate) fn call(&self, opcode: u32, node: u64, args: &[Arg<'_>]) -> Result<Vec<u8>> {
        let unique = self.unique.fetch_add(1, Ordering::Relaxed);
        let mut reply = Vec::new();
        self.server.answer(
            self.folder,
            &request(opcode, unique, node, args),
            &mut reply,
        );
        assert_eq!(word(&reply, 0) as usize, reply.len());
        assert!(reply.len() <= REPLY_MAX);
        assert_eq!(number(&reply, 8), unique);
        match word(&reply, 4).cast_signed() {
            0 => Ok(reply[16..].to_vec()),
            error => {
                assert_eq!(reply.len(), 16);
                Err(Errno::from_raw_os_error(-error))
            }
        }
    }

    pub(crate) fn lookup(&self, folder: u64, name: impl AsRef<[u8]>) -> Result<(u64, Attr)> {
        let reply = self.call(op::LOOKUP, folder, &[Text(name.as_ref())])?;
        Ok((number(&reply, 0), Attr::parse(&reply[40..])))
    }

    /// Looks up each part of a path.
    pub(crate) fn find(&self, path: &str) -> Result<u64> {
        let parts = path.split('/').filter(|part| !part.is_empty());
        parts
            .into_iter()
            .try_fold(ROOT, |node, part| Ok(self.lookup(node, part)?.0))
    }

    fn place<'a>(&self, path: &'a str) -> Result<(u64, &'a [u8])> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(folder)?, name.as_bytes()))
    }

    /// Checks that the folder of a path is one, as a kernel does before it asks for anything in it.
    pub(crate) fn check_folder(&self, path: &str) -> Result<()> {
        let (folder, _) = self.place(path)?;
        match self.attr(folder)?.mode & 0o170_000 {
            0o40_000 => Ok(()),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(crate) fn attr(&self, node: u64) -> Result<Attr> {
        let reply = self.call(op::GETATTR, node, &[Long(0), Long(0)])?;
        Ok(Attr::parse(&reply[16..]))
    }

    pub(crate) fn stat(&self, path: &str) -> Result<Attr> {
        self.attr(self.find(path)?)
    }

    pub(crate) fn setattr(
        &self,
        node: u64,
        valid: u32,
        size: u64,
        mtime: (u64, u32),
        mode: u32,
    ) -> Result<Attr> {
        let reply = self.call(
            op::SETATTR,
            node,
            &[
                Long(valid.into()),
                Long(0),
                Long(size),
                Long(0),
                Long(0),
                Long(mtime.0),
                Long(0),
                Word(0),
                Word(mtime.1),
                Word(0),
                Word(mode),
                Bytes(&[0; 16]),
            ],
        )?;
        Ok(Attr::parse(&reply[16..]))
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) -> Result<Attr> {
        self.setattr(self.find(path)?, 1, 0, (0, 0), mode)
    }

    pub(crate) fn truncate(&self, path: &str, size: u64) -> Result<Attr> {
        self.setattr(self.find(path)?, 8, size, (0, 0), 0)
    }

    pub(crate) fn utimes(&self, path: &str, mtime: (u64, u32)) -> Result<Attr> {
        self.setattr(self.find(path)?, 32, 0, mtime, 0)
    }

    pub(crate) fn mkdir(&self, path: &str, mode: u32) -> Result<u64> {
        let (folder, name) = self.place(path)?;
        let reply = self.call(op::MKDIR, folder, &[Word(mode), Word(0), Text(name)])?;
        Ok(number(&reply, 0))
    }

    pub(crate) fn mknod(&self, path: &str, mode: u32) -> Result<u64> {
        let (folder, name) = self.place(path)?;
        let reply = self.call(
            op::MKNOD,
            folder,
            &[Word(mode), Long(0), Word(0), Text(name)],
        )?;
        Ok(number(&reply, 0))
    }

    pub(crate) fn symlink(&self, path: &str, target: &[u8]) -> Result<u64> {
        let (folder, name) = self.place(path)?;
        let reply = self.call(op::SYMLINK, folder, &[Text(name), Text(target)])?;
        Ok(number(&reply, 0))
    }

    pub(crate) fn readlink(&self, path: &str) -> Result<Vec<u8>> {
        self.call(op::READLINK, self.find(path)?, &[])
    }

    pub(crate) fn link(&self, old: &str, new: &str) -> Result<u64> {
        let old = self.find(old)?;
        let (folder, name) = self.place(new)?;
        let reply = self.call(op::LINK, folder, &[Long(old), Text(name)])?;
        Ok(number(&reply, 0))
    }

    pub(crate) fn unlink(&self, path: &str) -> Result<()> {
        let (folder, name) = self.place(path)?;
        self.call(op::UNLINK, folder, &[Text(name)]).map(drop)
    }

    pub(crate) fn rmdir(&self, path: &str) -> Result<()> {
        let (folder, name) = self.place(path)?;
        self.call(op::RMDIR, folder, &[Text(name)]).map(drop)
    }

    pub(crate) fn rename(&self, old: &str, new: &str, flags: u32) -> Result<()> {
        let (folder, name) = self.place(old)?;
        let (new_folder, new_name) = self.place(new)?;
        let names = [Text(name), Text(new_name)];
        match flags {
            0 => self.call(
                op::RENAME,
                folder,
                &[&[Long(new_folder)], &names[..]].concat(),
            ),
            _ => self.call(
                op::RENAME2,
                folder,
                &[&[Long(new_folder), Long(flags.into())], &names[..]].concat(),
            ),
        }
        .map(drop)
    }

    /// Opens a file that is there, and returns its node and its handle.
    pub(crate) fn open(&self, path: &str, flags: u32) -> Result<(u64, u64)> {
        let node = self.find(path)?;
        Ok((node, self.open_node(node, flags)?))
    }

    pub(crate) fn open_node(&self, node: u64, flags: u32) -> Result<u64> {
        let reply = self.call(op::OPEN, node, &[Word(flags), Word(0)])?;
        Ok(number(&reply, 0))
    }

    pub(crate) fn create(&self, path: &str, flags: u32, mode: u32) -> Result<(u64, u64)> {
        let (folder, name) = self.place(path)?;
        let args = [Word(flags | CREAT), Word(mode), Long(0), Text(name)];
        let reply = self.call(op::CREATE, folder, &args)?;
        Ok((number(&reply, 0), number(&reply, 128)))
    }

    pub(crate) fn read(
        &self,
        (node, handle): (u64, u64),
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>> {
        let args = [Long(handle), Long(offset), Word(size), Bytes(&[0; 20])];
        self.call(op::READ, node, &args)
    }

    pub(crate) fn write(
        &self,
        at: (u64, u64),
        offset: u64,
        data: &[u8],
        flags: u32,
    ) -> Result<u32> {
        let args = [
            Long(at.1),
            Long(offset),
            Word(data.len() as u32),
            Word(0),
            Long(0),
            Long(flags.into()),
            Bytes(data),
        ];
        let reply = self.call(op::WRITE, at.0, &args)?;
        Ok(word(&reply, 0))
    }

    pub(crate) fn release(&self, (node, handle): (u64, u64)) -> Result<()> {
        self.call(op::RELEASE, node, &[Long(handle), Bytes(&[0; 16])])
            .map(drop)
    }

    pub(crate) fn fallocate(&self, at: (u64, u64), mode: u32, offset: u64, len: u64) -> Result<()> {
        let args = [Long(at.1), Long(offset), Long(len), Long(mode.into())];
        self.call(op::FALLOCATE, at.0, &args).map(drop)
    }

    /// Makes a file of some bytes, or fills the one that is there.
    pub(crate) fn put(&self, path: &str, data: &[u8]) -> Result<()> {
        let at = self.create(path, WRONLY | TRUNC, 0o644)?;
        let written = self.write(at, 0, data, 0);
        self.release(at)?;
        assert_eq!(written? as usize, data.len());
        Ok(())
    }

    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>> {
        let at = self.open(path, RDONLY)?;
        let data = self.read(at, 0, 1 << 17);
        self.release(at)?;
        data
    }

    /// Lists a folder, in requests of so many bytes, each entry with its node (with `plus`) and its offset.
    pub(crate) fn list(&self, path: &str, plus: bool, size: u32) -> Result<Vec<Entry>> {
        let node = self.find(path)?;
        let handle = number(&self.call(op::OPENDIR, node, &[Word(0), Word(0)])?, 0);
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let offset = entries.last().map_or(0, |entry| entry.next);
            let more = self.list_from((node, handle), plus, offset, size)?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        self.release((node, handle))?;
        entries.retain(|entry| !matches!(&entry.name[..], b"." | b".."));
        Ok(entries)
    }

    pub(crate) fn list_from(
        &self,
        at: (u64, u64),
        plus: bool,
        offset: u64,
        size: u32,
    ) -> Result<Vec<Entry>> {
        let opcode = if plus { op::READDIRPLUS } else { op::READDIR };
        let args = [Long(at.1), Long(offset), Word(size), Bytes(&[0; 20])];
        let reply = self.call(opcode, at.0, &args)?;
        assert!(reply.len() <= size as usize);
        let mut rest = &reply[..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let node = if plus { number(rest, 0) } else { 0 };
            rest = &rest[if plus { 128 } else { 0 }..];
            let len = word(rest, 16) as usize;
            entries.push(Entry {
                node,
                next: number(rest, 8),
                kind: word(rest, 20),
                name: rest[24..24 + len].to_vec(),
            });
            rest = &rest[(24 + len).next_multiple_of(8)..];
        }
        Ok(entries)
    }

    pub(crate) fn names(&self, path: &str, plus: bool) -> Result<Vec<String>> {
        let entries = self.list(path, plus, 4096)?;
        let mut names: Vec<String> = entries
            .iter()
            .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
            .collect();
        names.sort();
        Ok(names)
    }
}

/// An entry of a folder.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) node: u64,
    pub(crate) next: u64,
    pub(crate) kind: u32,
    pub(crate) name: Vec<u8>,
}

/// Fills a folder: each path that ends in `/` is a folder, each with `->` a link, and all others are files with their path in them.
pub(crate) fn tree(place: &Path, paths: &[&str]) {
    for path in paths {
        if let Some((link, target)) = path.split_once("->") {
            std::fs::create_dir_all(place.join(link).parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, place.join(link)).unwrap();
        } else if path.ends_with('/') {
            std::fs::create_dir_all(place.join(path)).unwrap();
        } else {
            std::fs::create_dir_all(place.join(path).parent().unwrap()).unwrap();
            std::fs::write(place.join(path), path).unwrap();
        }
    }
}

/// Makes a FIFO of the host's.
pub(crate) fn fifo(path: &Path) {
    let path = [path.as_os_str().as_bytes(), &[0]].concat();
    let path = CStr::from_bytes_with_nul(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RUSR).unwrap();
}

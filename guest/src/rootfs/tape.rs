//! A layer's tar archive, read entry by entry.
//!
//! A tar archive is a row of blocks of 512 bytes: a header, then the file's data. What doesn't fit a header (long names, large
//! numbers, extended attributes) comes in entries before it: `L` and `K` of GNU tar, `x` of POSIX ("pax"). The `tar` crate
//! gives the header's fields. Its reader takes such entries into memory whatever they claim to hold, and splits pax records
//! at newlines, which attributes may have in them; so the loop over the entries is ours.
//!
//! Left out on purpose: `g`, pax records for all entries that follow, which other unpackers of images ignore too.

use std::io::{self, BufRead, Read};

use tar::{EntryType, Header};

use super::error::{Error, Fault, Unsound};
use super::limits::Limits;
use super::number;
use super::pax::{self, Records};
use super::sparse::{self, Map};
use crate::newc::{Attributes, Node};

pub(super) const BLOCK: usize = 512;
/// The longest path that Linux takes, with its NUL.
pub(super) const PATH_MAX: usize = 4096;

/// An entry of a layer.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its name, taken apart and put together again: no empty parts, no `.` and no `..`, no slash before or after.
    pub(super) path: Box<[u8]>,
    pub(super) attributes: Attributes,
    pub(super) xattrs: Xattrs,
    pub(super) kind: Kind,
}

/// Extended attributes: names and values, sorted by name.
pub(super) type Xattrs = Box<[(Box<[u8]>, Box<[u8]>)]>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File { size: u32 },
    Symlink(Box<[u8]>),
    HardLink(Box<[u8]>),
    Node(Node),
}

/// A tar archive being read.
pub(super) struct Tape<'a, R> {
    input: R,
    layer: &'a str,
    limits: &'a Limits,
    /// Bytes read.
    at: u64,
    /// Bytes of the current entry that weren't read yet, with its padding.
    left: u64,
    /// Where the current file's data belong.
    map: Map,
    /// Whether the end was marked, if it was reached.
    marked: bool,
}

/// What comes before a header and belongs to it.
#[derive(Default)]
struct Before {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl<'a, R: BufRead> Tape<'a, R> {
    pub(super) fn new(input: R, layer: &'a str, limits: &'a Limits) -> Tape<'a, R> {
        Tape {
            input,
            layer,
            limits,
            at: 0,
            left: 0,
            map: Map::default(),
            marked: false,
        }
    }

    /// The next entry; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut before = Before::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                let pending =
                    before.name.is_some() || before.link.is_some() || before.pax.is_some();
                return if pending {
                    Err(self.unsound(Unsound::Truncated))
                } else {
                    Ok(None)
                };
            };
            let size = number::field(&header.as_old().size).and_then(|size| size.try_into().ok());
            let size: u64 = size.ok_or_else(|| {
                let fault = Fault::Number { field: "size" };
                Error::entry(self.layer, &header.path_bytes(), fault)
            })?;
            match header.entry_type() {
                EntryType::XGlobalHeader => self.set_left(size),
                EntryType::XHeader => before.pax = Some(self.extended(size)?),
                EntryType::GNULongName => before.name = Some(until_nul(self.extended(size)?)),
                EntryType::GNULongLink => before.link = Some(until_nul(self.extended(size)?)),
                _ => return self.entry(&header, size, &before).map(Some),
            }
        }
    }

    /// The data of the current entry, which has to be a file.
    pub(super) fn data(&mut self) -> impl Read {
        let map = std::mem::take(&mut self.map);
        map.expand(Counted(self))
    }

    /// Hands the input back, to read what follows the last entry, and says whether that was marked as the last.
    pub(super) fn finish(self) -> (R, bool) {
        (self.input, self.marked)
    }

    fn entry(&mut self, header: &Header, size: u64, before: &Before) -> Result<Entry, Error> {
        let records = match &before.pax {
            Some(pax) => pax::parse(pax),
            None => Some(Records::default()),
        };
        let mut records = records.ok_or_else(|| self.unsound(Unsound::Record { at: self.at }))?;
        let name = match (&before.name, &records.sparse_name, &records.path) {
            (Some(name), ..) | (None, Some(name), _) | (None, None, Some(name)) => name.clone(),
            (None, None, None) => header.path_bytes().into_owned(),
        };
        let fault = |fault| Error::entry(self.layer, &name, fault);
        let path = normal(&name).map_err(fault)?;
        let attributes = attributes(header, &records).map_err(fault)?;
        let link = || {
            let own = || header.link_name_bytes().unwrap_or_default().into_owned();
            let link = before.link.clone().or_else(|| records.link.clone());
            link.unwrap_or_else(own)
        };
        let mut stored = 0;
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Symlink(target(link()).map_err(fault)?),
            EntryType::Link => Kind::HardLink(normal(&link()).map_err(fault)?),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                Kind::Node(node(header).map_err(fault)?)
            }
            // Before there were types, folders were files whose names end with a slash.
            EntryType::Regular if header.as_old().linkflag == [0] && name.ends_with(b"/") => {
                Kind::Folder
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                stored = records.size.unwrap_or(size);
                Kind::File { size: 0 }
            }
            other => {
                let kind = char::from(other.as_byte());
                return Err(fault(Fault::Kind { kind }));
            }
        };
        // What has no data has none, whatever its size says: hard links carry their file's.
        self.set_left(stored);
        let kind = match kind {
            Kind::File { .. } => Kind::File {
                size: self.file(header, stored, &records, &name)?,
            },
            other => other,
        };
        Ok(Entry {
            path,
            attributes,
            xattrs: records
                .take_xattrs()
                .map_err(|fault| Error::entry(self.layer, &name, fault))?,
            kind,
        })
    }

    /// Finds out where a file's data belong, and how long it is.
    fn file(
        &mut self,
        header: &Header,
        stored: u64,
        records: &Records,
        name: &[u8],
    ) -> Result<u32, Error> {
        let layer = self.layer;
        let map = if header.entry_type() == EntryType::GNUSparse {
            let limit = self.limits.header;
            sparse::gnu(header, stored, limit, || self.block())
        } else if let Some(sparse) = records.sparse {
            sparse::pax(sparse, stored, self.limits.header, &mut Counted(self))
        } else {
            Ok(Some(Map::plain(stored)))
        };
        let fail = |fault| Error::entry(layer, name, fault);
        let map = map
            .map_err(|error| Error::read(layer, error))?
            .ok_or_else(|| fail(Fault::Sparse))?;
        let size = map.size();
        self.map = map;
        u32::try_from(size).map_err(|_| fail(Fault::TooLarge { size }))
    }

    /// The next header, if there is one more.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let at = self.at;
        let Some(block) = self
            .block()
            .map_err(|error| Error::read(self.layer, error))?
        else {
            return Ok(None);
        };
        if block == [0; BLOCK] {
            // The end is two blocks of zeros. Some writers make do with one.
            let next = self
                .block()
                .map_err(|error| Error::read(self.layer, error))?;
            if next.is_some_and(|next| next != [0; BLOCK]) {
                return Err(self.unsound(Unsound::Header { at }));
            }
            self.marked = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        if number::field(&header.as_old().cksum) != Some(checksum(&block)) {
            return Err(self.unsound(Unsound::Header { at }));
        }
        Ok(Some(header))
    }

    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.input.read_exact(&mut block)?;
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    /// The whole data of an entry that tells about the next.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let (at, limit) = (self.at, self.limits.header);
        if size > limit {
            return Err(self.unsound(Unsound::LongHeader { at, limit }));
        }
        self.set_left(size);
        let mut data = Vec::new();
        let read = Counted(self).take(size).read_to_end(&mut data);
        read.map_err(|error| Error::read(self.layer, error))?;
        if data.len() as u64 != size {
            return Err(self.unsound(Unsound::Truncated));
        }
        Ok(data)
    }

    fn set_left(&mut self, size: u64) {
        self.left = size
            .checked_next_multiple_of(BLOCK as u64)
            .unwrap_or(u64::MAX);
    }

    fn skip(&mut self) -> Result<(), Error> {
        while self.left > 0 {
            let ready = self.input.fill_buf();
            let ready = ready.map_err(|error| Error::read(self.layer, error))?.len();
            if ready == 0 {
                return Err(self.unsound(Unsound::Truncated));
            }
            let count = ready.min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.input.consume(count);
            self.at += count as u64;
            self.left -= count as u64;
        }
        Ok(())
    }

    fn unsound(&self, source: Unsound) -> Error {
        Error::Tar {
            layer: self.layer.to_owned(),
            source,
        }
    }
}

/// Reads of the current entry's data, and counts.
struct Counted<'t, 'a, R>(&'t mut Tape<'a, R>);

impl<R: BufRead> Read for Counted<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.0.left).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.0.input.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.at += count as u64;
        self.0.left -= count as u64;
        Ok(count)
    }
}

/// The sum of a header's bytes, its own field taken as spaces.
fn checksum(block: &[u8; BLOCK]) -> i128 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| i128::from(byte)).sum::<i128>();
    sum(&block[..148]) + 8 * i128::from(b' ') + sum(&block[156..])
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// A path without what doesn't matter in it; refused if it leads upwards or is too long for Linux.
fn normal(name: &[u8]) -> Result<Box<[u8]>, Fault> {
    if name.contains(&0) {
        return Err(Fault::Nul);
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(Fault::Upwards),
            part if part.len() > 255 => return Err(Fault::TooLong),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() >= PATH_MAX {
        return Err(Fault::TooLong);
    }
    Ok(path.into())
}

/// What a symbolic link says, kept byte for byte.
fn target(link: Vec<u8>) -> Result<Box<[u8]>, Fault> {
    match link {
        link if link.is_empty() => Err(Fault::NoName),
        link if link.contains(&0) => Err(Fault::Nul),
        link if link.len() >= PATH_MAX => Err(Fault::TooLong),
        link => Ok(link.into()),
    }
}

fn attributes(header: &Header, records: &Records) -> Result<Attributes, Fault> {
    let old = header.as_old();
    let numbered = |bytes, field| number::field(bytes).ok_or(Fault::Number { field });
    let owner = |record: Option<i128>, bytes, field| {
        let id = record.map_or_else(|| numbered(bytes, field), Ok)?;
        // Linux takes the highest number for "leave it as it is".
        let fits = u32::try_from(id).ok().filter(|&id| id != u32::MAX);
        fits.ok_or(Fault::Owner { id })
    };
    let mode = numbered(&old.mode, "mode")? & 0o7777;
    let mtime = records
        .mtime
        .map_or_else(|| numbered(&old.mtime, "time"), Ok)?;
    Ok(Attributes {
        permissions: u32::try_from(mode).unwrap_or(0),
        uid: owner(records.uid, &old.uid, "user")?,
        gid: owner(records.gid, &old.gid, "group")?,
        // Times before 1970 and after 2106 don't fit the format.
        mtime: u32::try_from(mtime.max(0)).unwrap_or(u32::MAX),
    })
}

/// A device is two numbers here; nothing is looked up or opened.
fn node(header: &Header) -> Result<Node, Fault> {
    let numbers: (&[u8], &[u8]) = match (header.as_gnu(), header.as_ustar()) {
        (Some(gnu), _) => (&gnu.dev_major, &gnu.dev_minor),
        (_, Some(ustar)) => (&ustar.dev_major, &ustar.dev_minor),
        _ => (&[], &[]),
    };
    let numbered = |bytes, field| {
        let number = number::field(bytes).and_then(|number| u32::try_from(number).ok());
        number.ok_or(Fault::Number { field })
    };
    let device = || {
        Ok((
            numbered(numbers.0, "major number")?,
            numbered(numbers.1, "minor number")?,
        ))
    };
    match header.entry_type() {
        EntryType::Char => device().map(|(major, minor)| Node::CharDevice { major, minor }),
        EntryType::Block => device().map(|(major, minor)| Node::BlockDevice { major, minor }),
        _ => Ok(Node::Fifo),
    }
}

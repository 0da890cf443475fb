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

use super::block::{self, BLOCK};
use super::entry::{Entry, Kind};
use super::error::{Error, Fault, Unsound};
use super::fields::{attributes, node, normal, target};
use super::limits::Limits;
use super::number;
use super::pax::{self, Records};
use super::sparse::{self, Map};

/// A tar archive being read.
pub(super) struct TarReader<'a, R> {
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

impl<'a, R: BufRead> TarReader<'a, R> {
    pub(super) fn new(input: R, layer: &'a str, limits: &'a Limits) -> TarReader<'a, R> {
        TarReader {
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
        let layer = self.layer;
        let fault = |fault| Error::entry(layer, &name, fault);
        // What has no data has none, whatever its size says: hard links carry their file's.
        let (kind, stored) = match kind(header, &name, before, &records).map_err(fault)? {
            Some(kind) => (Some(kind), 0),
            None => (None, records.size.unwrap_or(size)),
        };
        self.set_left(stored);
        let kind = match kind {
            Some(kind) => kind,
            None => Kind::File {
                size: self.file(header, stored, &records, &name)?,
            },
        };
        Ok(Entry {
            path: normal(&name).map_err(fault)?,
            attributes: attributes(header, &records).map_err(fault)?,
            xattrs: records.take_xattrs().map_err(fault)?,
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
        match block::header(&block) {
            Some(header) => Ok(Some(header)),
            None => Err(self.unsound(Unsound::Header { at })),
        }
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
struct Counted<'r, 'a, R>(&'r mut TarReader<'a, R>);

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

/// What an entry is; `None` for a file.
fn kind(
    header: &Header,
    name: &[u8],
    before: &Before,
    records: &Records,
) -> Result<Option<Kind>, Fault> {
    let link = || {
        let own = || header.link_name_bytes().unwrap_or_default().into_owned();
        let long = before.link.as_ref().or(records.link.as_ref());
        long.cloned().unwrap_or_else(own)
    };
    Ok(match header.entry_type() {
        EntryType::Directory => Some(Kind::Folder),
        EntryType::Symlink => Some(Kind::Symlink(target(link())?)),
        EntryType::Link => Some(Kind::HardLink(normal(&link())?)),
        EntryType::Char | EntryType::Block | EntryType::Fifo => Some(Kind::Node(node(header)?)),
        // Before there were types, folders were files whose names end with a slash.
        EntryType::Regular if header.as_old().linkflag == [0] && name.ends_with(b"/") => {
            Some(Kind::Folder)
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => None,
        other => {
            let kind = char::from(other.as_byte());
            return Err(Fault::Kind { kind });
        }
    })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

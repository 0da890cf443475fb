//! A tar archive, read member by member.
//!
//! A tar archive is a row of blocks of 512 bytes: a header, then the file's data. What doesn't fit a header (long names, large
//! numbers, extended attributes) comes in members before it: `L` and `K` of GNU tar, `x` of POSIX ("pax"). The `tar` crate
//! gives the header's fields. Its reader takes such members into memory whatever they claim to hold, and splits pax records
//! at newlines, which attributes may have in them; so the loop over the members is here.
//!
//! Left out on purpose: `g`, pax records for all members that follow, which other unpackers of images ignore too.

mod block;
mod error;
pub(crate) mod number;
mod pax;
mod sparse;
mod time;

use std::io::{self, BufRead, Read};
use std::mem;
use std::ops::Range;

use tar::{EntryType, Header};

use self::sparse::{Expanded, Map};

pub(crate) use self::block::BLOCK;
pub(crate) use self::error::Error;
pub use self::error::Unsound;
pub(crate) use self::pax::Records;
pub use self::time::Time;

/// The bytes of an archive.
pub(crate) trait Input: BufRead {
    /// Skips `count` bytes, and returns how many there were: fewer only where the input ends.
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut skipped = 0;
        while skipped < count {
            let left = usize::try_from(count - skipped).unwrap_or(usize::MAX);
            let ready = self.fill_buf()?.len().min(left);
            if ready == 0 {
                break;
            }
            self.consume(ready);
            skipped += ready as u64;
        }
        Ok(skipped)
    }
}

/// A member of an archive, as its headers describe it.
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    /// The target of a link; empty where the header has none.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Bytes of a file, with its holes.
    pub(crate) size: u64,
    /// The place in the archive where these bytes start; `None` where they have holes.
    pub(crate) offset: Option<u64>,
    /// The header, for its other fields.
    pub(crate) header: Header,
    pub(crate) records: Records,
}

/// The type of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Symlink,
    HardLink,
    /// A device or a pipe.
    Node,
    /// A type that only some kinds of tar archives have.
    Other(u8),
}

/// A tar archive being read.
pub(crate) struct TarReader<R> {
    input: R,
    /// The most bytes that an extended header, or a map of holes, may have: they are held in memory.
    header_limit: u64,
    /// Bytes read.
    at: u64,
    /// Bytes of the current member's data that weren't read yet.
    left: u64,
    /// Bytes from the end of these data to the next block.
    padding: u64,
    /// The places of the current file's data.
    map: Map,
    /// Whether blocks of zeros marked the end, if it was reached.
    marked: bool,
}

/// Extended headers, which stand before a header and belong to it.
#[derive(Default)]
struct Before {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl Before {
    fn is_empty(&self) -> bool {
        self.name.is_none() && self.link.is_none() && self.pax.is_none()
    }
}

impl<R: Input> TarReader<R> {
    pub(crate) fn new(input: R, header_limit: u64) -> TarReader<R> {
        TarReader {
            input,
            header_limit,
            at: 0,
            left: 0,
            padding: 0,
            map: Map::default(),
            marked: false,
        }
    }

    /// The next member; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut before = Before::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return match before.is_empty() {
                    true => Ok(None),
                    false => Err(Unsound::Truncated.into()),
                };
            };
            let size = number::field(&header.as_old().size).and_then(|size| size.try_into().ok());
            let size: u64 = size.ok_or_else(|| Error::Size {
                name: header.path_bytes().into_owned(),
            })?;
            match header.entry_type() {
                EntryType::XGlobalHeader => self.set_left(size),
                EntryType::XHeader => before.pax = Some(self.extended(size)?),
                EntryType::GNULongName => before.name = Some(until_nul(self.extended(size)?)),
                EntryType::GNULongLink => before.link = Some(until_nul(self.extended(size)?)),
                _ => return self.member(header, size, before).map(Some),
            }
        }
    }

    /// The data of the current member, which has to be a file.
    pub(crate) fn data(&mut self) -> Data<'_, R> {
        let map = mem::take(&mut self.map);
        map.expand(Counted(self))
    }

    /// The places of the current member's data, which has to be a file.
    pub(crate) fn pieces(&self) -> &[Range<u64>] {
        self.map.pieces()
    }

    /// Returns the input, to read what follows the last member, and whether that was marked as the last.
    pub(crate) fn finish(self) -> (R, bool) {
        (self.input, self.marked)
    }

    fn member(&mut self, header: Header, size: u64, before: Before) -> Result<Member, Error> {
        let records = match &before.pax {
            Some(pax) => pax::parse(pax).ok_or(Unsound::Record { at: self.at })?,
            None => Records::default(),
        };
        let names = [&before.name, &records.sparse_name, &records.path];
        let name = names.into_iter().flatten().next().cloned();
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let links = [&before.link, &records.link];
        let link = links.into_iter().flatten().next().cloned();
        let own = || header.link_name_bytes().unwrap_or_default().into_owned();
        let link = link.unwrap_or_else(own);
        let kind = kind(&header, &name);
        // What has no data has none, whatever its size says: hard links carry their file's.
        self.set_left(match kind {
            Kind::File | Kind::Other(_) => records.size.unwrap_or(size),
            _ => 0,
        });
        self.map = match kind {
            Kind::File => self.file(&header, &records, &name)?,
            _ => Map::default(),
        };
        Ok(Member {
            name,
            link,
            kind,
            size: self.map.size(),
            offset: self.map.is_plain().then_some(self.at),
            header,
            records,
        })
    }

    /// Returns the map of a file's holes.
    fn file(&mut self, header: &Header, records: &Records, name: &[u8]) -> Result<Map, Error> {
        let (stored, limit) = (self.left, self.header_limit);
        let map = if header.entry_type() == EntryType::GNUSparse {
            sparse::gnu(header, stored, limit, || self.block())?
        } else if let Some(sparse) = records.sparse {
            sparse::pax(sparse, stored, limit, &mut Counted(self))?
        } else {
            Some(Map::plain(stored))
        };
        map.ok_or_else(|| Error::Holes {
            name: name.to_owned(),
        })
    }

    /// Reads the next header; `None` at the archive's end.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let at = self.at;
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block == [0; BLOCK] {
            // The end is two blocks of zeros. Some writers make do with one.
            if self.block()?.is_some_and(|next| next != [0; BLOCK]) {
                return Err(Unsound::Header { at }.into());
            }
            self.marked = true;
            return Ok(None);
        }
        match block::header(&block) {
            Some(header) => Ok(Some(header)),
            None => Err(Unsound::Header { at }.into()),
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

    /// Reads the whole data of a member that describes the next.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let (at, limit) = (self.at, self.header_limit);
        if size > limit {
            return Err(Unsound::LongHeader { at, limit }.into());
        }
        self.set_left(size);
        let mut data = Vec::new();
        Counted(self).read_to_end(&mut data)?;
        Ok(data)
    }

    fn set_left(&mut self, size: u64) {
        let beyond = size % BLOCK as u64;
        self.left = size;
        self.padding = (BLOCK as u64 - beyond) % BLOCK as u64;
    }

    /// Skips what is left of the current member. Where the archive ends with it, its padding may be missing.
    fn skip(&mut self) -> Result<(), Error> {
        let left = mem::take(&mut self.left);
        let skipped = self.input.skip(left)?;
        if skipped < left {
            return Err(Unsound::Truncated.into());
        }
        self.at += skipped + self.input.skip(mem::take(&mut self.padding))?;
        Ok(())
    }
}

/// A file's data.
pub(crate) type Data<'r, R> = Expanded<Counted<'r, R>>;

/// A reader of the current member's data, which counts.
pub(crate) struct Counted<'r, R>(&'r mut TarReader<R>);

impl<R: Input> Read for Counted<'_, R> {
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

fn kind(header: &Header, name: &[u8]) -> Kind {
    match header.entry_type() {
        EntryType::Directory => Kind::Folder,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Node,
        // Before there were types, folders were files whose names end with a slash.
        EntryType::Regular if header.as_old().linkflag == [0] && name.ends_with(b"/") => {
            Kind::Folder
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        other => Kind::Other(other.as_byte()),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Input for &[u8] {}

    /// An archive of these files, without the blocks that mark its end.
    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = Header::new_gnu();
            header.set_size(data.len() as u64);
            archive.append_data(&mut header, name, *data).unwrap();
        }
        let mut archive = archive.into_inner().unwrap();
        archive.truncate(archive.len() - 2 * BLOCK);
        archive
    }

    /// The names of an archive's members, as far as it is sound, and what is wrong with it after them.
    fn names(archive: &[u8]) -> (Vec<String>, Option<Error>) {
        let mut reader = TarReader::new(archive, 1 << 20);
        let mut names = Vec::new();
        loop {
            match reader.next() {
                Ok(Some(member)) => names.push(String::from_utf8(member.name).unwrap()),
                Ok(None) => return (names, None),
                Err(error) => return (names, Some(error)),
            }
        }
    }

    #[test]
    fn an_offset_is_where_the_data_start() {
        let long = "n".repeat(300);
        let files: [(&str, &[u8]); 3] = [("a", b"first"), (&long, &[b'x'; 600]), ("c", b"third")];
        let archive = archive(&files);
        let mut reader = TarReader::new(&archive[..], 1 << 20);
        for (name, data) in files {
            let member = reader.next().unwrap().unwrap();
            assert_eq!(member.name, name.as_bytes());
            let offset = usize::try_from(member.offset.unwrap()).unwrap();
            assert_eq!(member.size, data.len() as u64);
            assert_eq!(&archive[offset..offset + data.len()], data);
        }
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn the_last_members_padding_may_be_missing_and_its_data_may_not() {
        let archive = archive(&[("a", b"first"), ("b", b"second")]);
        let data = 3 * BLOCK;
        for end in [data + 6, data + 7, data + BLOCK] {
            let (names, error) = names(&archive[..end]);
            assert_eq!(names, ["a", "b"]);
            assert!(error.is_none(), "{error:?}");
        }
        for end in [data, data + 5] {
            let (names, error) = names(&archive[..end]);
            assert_eq!(names, ["a", "b"]);
            let truncated = Some(Error::Unsound(Unsound::Truncated));
            assert_eq!(format!("{error:?}"), format!("{truncated:?}"));
        }
    }
}

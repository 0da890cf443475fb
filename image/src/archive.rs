//! Finds the members of a tar archive without reading them.
//!
//! An archive of an image holds its documents and layers in any order, so its headers are read once, seeking over the
//! content between them, and what is asked for later is a range of the file. Names and targets of links are hostile: they
//! are keys of a map and never become paths.
//!
//! A header is a block of 512 bytes. Names that don't fit into it come in members of their own before it: GNU's of type `L`
//! and `K`, and POSIX's (pax) of type `x`, which may also tell the size (`tar(5)` of libarchive).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Seek};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tar::{EntryType, Header, PaxExtensions};

use super::error::Error;
use super::files;
use super::image::Blob;
use super::shown::shown;
use super::store::Store;
use crate::compression::{Format, START, decompress, format};

const BLOCK: u64 = 512;
/// How many members are listed; an image has some for each of its layers.
const MOST_MEMBERS: usize = 100_000;
/// How long members that say something of the next one may be.
const LONGEST_EXTENSION: u64 = 64 << 10;
/// How long a name or a link's target may be, as Linux has it, and how long all are together: they are held in memory.
const LONGEST_NAME: usize = 4096;
const MOST_NAMES: usize = 32 << 20;
/// How many links are followed to one file.
const MOST_LINKS: usize = 16;

/// The members of an archive.
#[derive(Debug)]
pub(super) struct Archive {
    /// What the archive is called in errors.
    pub(super) name: String,
    file: Arc<File>,
    members: HashMap<Vec<u8>, Member>,
}

#[derive(Clone, Debug)]
enum Member {
    File {
        offset: u64,
        len: u64,
    },
    /// The target, from the archive's root.
    Link(Vec<u8>),
}

impl Archive {
    /// Lists the archive's members; one that is compressed is decompressed into the store's folder, where it has
    /// no name, if that takes no more than `limit` bytes.
    pub(super) fn open(
        name: String,
        file: File,
        store: &Store,
        limit: u64,
    ) -> Result<Archive, Error> {
        let mut start = [0; START];
        let read = file.read_at(&mut start, 0);
        let read = read.map_err(Error::reading(&name))?;
        let file = match format(&start[..read]) {
            _ if read == 0 => return Err(Error::invalid(name, "is empty")),
            Format::Plain => file,
            Format::Other(method) => {
                let problem =
                    format!("is compressed with {method}: decompress it first, or use gzip");
                return Err(Error::invalid(name, problem));
            }
            format => decompressed(&name, format, &file, store, limit)?,
        };
        let end = file.metadata().map_err(Error::reading(&name))?.len();
        let members = Scan::new(&name, &file, end).members()?;
        Ok(Archive {
            name,
            file: Arc::new(file),
            members,
        })
    }

    /// The regular file of this name.
    pub(super) fn member(&self, name: &str) -> Option<Blob> {
        let mut key = resolve(b"", name.as_bytes())?;
        for _ in 0..MOST_LINKS {
            match self.members.get(&key)? {
                Member::Link(target) => key.clone_from(target),
                &Member::File { offset, len } => {
                    return Some(Blob {
                        file: Arc::clone(&self.file),
                        offset,
                        len,
                        name: format!("{} of {}", shown(name), self.name),
                    });
                }
            }
        }
        None
    }
}

fn decompressed(
    name: &str,
    format: Format,
    mut file: &File,
    store: &Store,
    limit: u64,
) -> Result<File, Error> {
    let mut spool = store.spool()?;
    file.rewind().map_err(Error::reading(name))?;
    let content = decompress(format, BufReader::with_capacity(128 << 10, file));
    let copied = content.and_then(|content| files::copy_limited(content, &mut spool, limit));
    match copied.map_err(Error::reading(name))? {
        Some(_) => Ok(spool),
        None => Err(Error::TooLarge {
            what: format!("{name}, decompressed,"),
            limit,
        }),
    }
}

/// A path within the archive, seen from one of its folders; `None` if it leads out.
fn resolve(folder: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let slash = |&byte: &u8| byte == b'/';
    let mut parts: Vec<&[u8]> = folder
        .split(slash)
        .filter(|part| !part.is_empty())
        .collect();
    if path.starts_with(b"/") {
        return None;
    }
    for part in path.split(slash) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join(&b'/'))
}

/// The walk from header to header.
struct Scan<'a> {
    name: &'a str,
    file: &'a File,
    position: u64,
    end: u64,
    /// What the next header's own fields are replaced by.
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    /// Bytes of all names so far.
    names: usize,
}

impl<'a> Scan<'a> {
    fn new(name: &'a str, file: &'a File, end: u64) -> Scan<'a> {
        Scan {
            name,
            file,
            position: 0,
            end,
            path: None,
            target: None,
            size: None,
            names: 0,
        }
    }

    fn members(mut self) -> Result<HashMap<Vec<u8>, Member>, Error> {
        let mut members = HashMap::new();
        while let Some(header) = self.header()? {
            let own_size = header.entry_size().map_err(|_| self.damaged())?;
            let kind = header.entry_type();
            let special = kind.is_gnu_longname()
                || kind.is_gnu_longlink()
                || kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions();
            let size = match special {
                true => own_size,
                false => self.size.take().unwrap_or(own_size),
            };
            let offset = self.position;
            self.skip(size)?;
            match special {
                true => self.extension(kind, offset, size)?,
                false => {
                    if let Some((path, member)) = self.entry(&header, offset, size) {
                        self.weigh(&path, &member)?;
                        members.insert(path, member);
                    }
                }
            }
            if members.len() > MOST_MEMBERS {
                let problem = format!("has more than {MOST_MEMBERS} members: it is no image's");
                return Err(Error::invalid(self.name, problem));
            }
        }
        Ok(members)
    }

    /// The next header; `None` at a block of zeros or where the file ends.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        if self.position == self.end {
            return Ok(None);
        }
        let block = self.read(self.position, BLOCK)?;
        self.position += BLOCK;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The sum is over the header with its own field, bytes 148 to 155, taken as spaces.
        let sum = block.iter().enumerate().map(|(at, &byte)| match at {
            148..156 => 32,
            _ => u32::from(byte),
        });
        match header.cksum() {
            Ok(stored) if stored == sum.sum::<u32>() => Ok(Some(header)),
            _ if self.position == BLOCK => Err(Error::invalid(self.name, "is no tar archive")),
            _ => Err(self.damaged()),
        }
    }

    fn skip(&mut self, size: u64) -> Result<(), Error> {
        let padded = size.checked_next_multiple_of(BLOCK);
        let next = padded.and_then(|size| self.position.checked_add(size));
        // The last member's padding may be missing.
        match self.position.checked_add(size) {
            Some(end) if end <= self.end => {
                self.position = next.unwrap_or(self.end).min(self.end);
                Ok(())
            }
            _ => Err(self.truncated()),
        }
    }

    /// A member that says something of the next one.
    fn extension(&mut self, kind: EntryType, offset: u64, size: u64) -> Result<(), Error> {
        if size > LONGEST_EXTENSION {
            return Err(self.too_large("a name", LONGEST_EXTENSION));
        }
        let bytes = self.read(offset, size)?;
        let text = |bytes: &[u8]| Some(bytes.strip_suffix(&[0]).unwrap_or(bytes).to_vec());
        if kind.is_gnu_longname() {
            self.path = text(&bytes);
        } else if kind.is_gnu_longlink() {
            self.target = text(&bytes);
        } else if kind.is_pax_local_extensions() {
            for record in PaxExtensions::new(&bytes) {
                let record = record.map_err(|_| self.damaged())?;
                match record.key_bytes() {
                    b"path" => self.path = text(record.value_bytes()),
                    b"linkpath" => self.target = text(record.value_bytes()),
                    b"size" => {
                        let size = record.value().ok().and_then(|size| size.parse().ok());
                        self.size = Some(size.ok_or_else(|| self.damaged())?);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// A file or link; what has no place in an image's archive is passed over.
    fn entry(&mut self, header: &Header, offset: u64, size: u64) -> Option<(Vec<u8>, Member)> {
        let path = self.path.take();
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let target = self.target.take();
        let target = target.or_else(|| Some(header.link_name_bytes()?.into_owned()));
        let path = resolve(b"", &path)?;
        let folder = path.iter().rposition(|&byte| byte == b'/');
        let folder = folder.map_or(&b""[..], |end| &path[..end]);
        let member = match header.entry_type() {
            EntryType::Symlink => Member::Link(resolve(folder, &target?)?),
            EntryType::Link => Member::Link(resolve(b"", &target?)?),
            kind if kind.is_file() || kind.is_contiguous() => Member::File { offset, len: size },
            _ => return None,
        };
        Some((path, member))
    }

    /// What a member takes of memory, if that isn't too much.
    fn weigh(&mut self, path: &[u8], member: &Member) -> Result<(), Error> {
        let target = match member {
            Member::Link(target) => target.len(),
            Member::File { .. } => 0,
        };
        if path.len().max(target) > LONGEST_NAME {
            return Err(self.too_large("a name", LONGEST_NAME as u64));
        }
        self.names += path.len() + target;
        match self.names > MOST_NAMES {
            true => Err(self.too_large("all names", MOST_NAMES as u64)),
            false => Ok(()),
        }
    }

    fn too_large(&self, what: &str, limit: u64) -> Error {
        Error::TooLarge {
            what: format!("{what} in {}", self.name),
            limit,
        }
    }

    fn read(&self, offset: u64, size: u64) -> Result<Vec<u8>, Error> {
        let size = usize::try_from(size).map_err(|_| self.damaged())?;
        let mut bytes = vec![0; size];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => match offset {
                0 => Err(Error::invalid(self.name, "is no tar archive")),
                _ => Err(self.truncated()),
            },
            Err(error) => Err(Error::reading(self.name)(error)),
        }
    }

    fn truncated(&self) -> Error {
        let problem = "ends in the middle of a member: it is truncated, make it again";
        Error::invalid(self.name, problem)
    }

    fn damaged(&self) -> Error {
        let problem = format!(
            "is damaged: there is no tar header before byte {}",
            self.position
        );
        Error::invalid(self.name, problem)
    }
}

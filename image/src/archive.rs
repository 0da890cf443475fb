//! Finds the members of a tar archive without reading them.
//!
//! An archive of an image holds its documents and layers in any order, so its headers are read once, skipping the content
//! between them, and what is asked for later is a range of the file. Names and targets of links are hostile: they are keys of
//! a map and never become paths.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::blob_reader::BlobReader;
use super::error::Error;
use super::files;
use super::image::Blob;
use super::shown::shown;
use super::store::Store;
use super::tar_reader::{self, BLOCK, Input, Kind, TarReader, Unsound};
use crate::compression::{Format, START, decompress, format};

/// The most members of an archive; an image has some for each of its layers.
const MOST_MEMBERS: usize = 100_000;
/// The most bytes of an extended header.
const LONGEST_HEADER: u64 = 64 << 10;
/// The most bytes of a name or a link's target, as Linux has it, and of all together: they are held in memory.
const LONGEST_NAME: usize = 4096;
const MOST_NAMES: usize = 32 << 20;
/// The most links that are followed to one file.
const MOST_LINKS: usize = 16;

/// The members of an archive.
#[derive(Debug)]
pub(super) struct Archive {
    /// The archive's name in errors.
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
    /// Lists the archive's members. A compressed archive is decompressed into the store's folder, where it has no name, if
    /// that takes no more than `limit` bytes.
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
        let archive = files::whole(file, name.clone()).map_err(Error::reading(&name))?;
        let members = members(&archive)?;
        Ok(Archive {
            name,
            file: archive.file,
            members,
        })
    }

    /// Returns the regular file of this name.
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

/// Resolves a path within the archive, from one of its folders; `None` if it leads out.
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

/// Lists the members of an archive, which is the whole of a file.
fn members(archive: &Blob) -> Result<HashMap<Vec<u8>, Member>, Error> {
    let input = BufReader::with_capacity(4 << 10, BlobReader::new(archive.clone()));
    let mut reader = TarReader::new(input, LONGEST_HEADER);
    let mut members = HashMap::new();
    let mut names = 0;
    while let Some(found) = reader.next().map_err(|error| refused(archive, error))? {
        let Some((path, member)) = member(&found) else {
            continue;
        };
        names += weigh(archive, &path, &member)?;
        if names > MOST_NAMES {
            return Err(too_large(archive, "all names", MOST_NAMES as u64));
        }
        members.insert(path, member);
        if members.len() > MOST_MEMBERS {
            let problem =
                format!("has more than {MOST_MEMBERS} members: it is not an archive of an image");
            return Err(Error::invalid(&archive.name, problem));
        }
    }
    Ok(members)
}

/// Returns a file or link; `None` for what has no place in an image's archive.
fn member(found: &tar_reader::Member) -> Option<(Vec<u8>, Member)> {
    let path = resolve(b"", &found.name)?;
    let folder = path.iter().rposition(|&byte| byte == b'/');
    let folder = folder.map_or(&b""[..], |end| &path[..end]);
    let member = match found.kind {
        Kind::Symlink if !found.link.is_empty() => Member::Link(resolve(folder, &found.link)?),
        Kind::HardLink => Member::Link(resolve(b"", &found.link)?),
        Kind::File => Member::File {
            offset: found.offset?,
            len: found.size,
        },
        _ => return None,
    };
    Some((path, member))
}

/// Returns the bytes of a member's names, if these aren't too long.
fn weigh(archive: &Blob, path: &[u8], member: &Member) -> Result<usize, Error> {
    let target = match member {
        Member::Link(target) => target.len(),
        Member::File { .. } => 0,
    };
    match path.len().max(target) > LONGEST_NAME {
        true => Err(too_large(archive, "a name", LONGEST_NAME as u64)),
        false => Ok(path.len() + target),
    }
}

fn too_large(archive: &Blob, what: &str, limit: u64) -> Error {
    Error::TooLarge {
        what: format!("{what} in {}", archive.name),
        limit,
    }
}

/// Returns what the reader's failure means for the archive.
fn refused(archive: &Blob, error: tar_reader::Error) -> Error {
    let problem = match error {
        tar_reader::Error::Read(source) => return Error::reading(&archive.name)(source),
        tar_reader::Error::Unsound(Unsound::LongHeader { limit, .. }) => {
            return too_large(archive, "an extended header", limit);
        }
        tar_reader::Error::Unsound(Unsound::Header { at: 0 }) => "is not a tar archive".to_owned(),
        tar_reader::Error::Unsound(Unsound::Truncated) if archive.len < BLOCK as u64 => {
            "is not a tar archive".to_owned()
        }
        tar_reader::Error::Unsound(Unsound::Truncated) => {
            "ends in the middle of a member: it is truncated, make it again".to_owned()
        }
        tar_reader::Error::Unsound(unsound) => format!("is damaged: {unsound}"),
        tar_reader::Error::Size { name } => {
            let name = String::from_utf8_lossy(&name);
            format!(
                "is damaged: the size of {} is not a valid number",
                shown(&name)
            )
        }
        tar_reader::Error::Holes { name } => {
            let name = String::from_utf8_lossy(&name);
            format!(
                "is damaged: the map of holes of {} can't be read",
                shown(&name)
            )
        }
    };
    Error::invalid(&archive.name, problem)
}

impl Input for BufReader<BlobReader> {
    /// Moves on without reading.
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let ready = self.buffer().len();
        let ready = usize::try_from(count).map_or(ready, |count| count.min(ready));
        self.consume(ready);
        let ready = ready as u64;
        Ok(ready + self.get_mut().skip(count - ready))
    }
}

//! A folder of the host's as an EROFS image.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::Stored;
use crate::erofs::{Chunks, Failure};
use crate::rootfs::entry::{Attributes, Entry, Kind};
use crate::rootfs::error::{Error, Fault};
use crate::rootfs::limits::Budget;
use crate::rootfs::tree::{Content, Folder, Id, Inode, ROOT, Tree};
use crate::rootfs::{Time, folder, scan};
use minivm_guest::walk;

/// The most pieces of data that a file with holes is taken to have; what follows is taken for data.
const PIECES_MAX: usize = 65536;

/// Puts the folder and everything below it into the tree, and its files' data into the image.
pub(super) fn take<'b>(
    root: &Path,
    budget: &'b Budget,
    tree: &mut Tree<'b>,
    stored: &mut Stored<'_>,
) -> Result<(), Error> {
    // The folder itself, if it is named by a link.
    let root = fs::canonicalize(root).map_err(walk::reading(root))?;
    folder::check_names(&root)?;
    stored.begin();
    let mut taking = Taking {
        root: &root,
        budget,
        tree,
        stored,
        linked: HashMap::new(),
        files: 0,
    };
    taking.all()
}

struct Taking<'t, 'b, 's> {
    root: &'t Path,
    budget: &'b Budget,
    tree: &'t mut Tree<'b>,
    stored: &'t mut Stored<'s>,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), Id>,
    /// The number of files so far.
    files: usize,
}

/// A folder whose names are being taken.
struct Level {
    path: PathBuf,
    id: Id,
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    fn new(path: PathBuf, id: Id) -> Result<Level, Error> {
        let names = walk::names(&path)?.into_iter();
        Ok(Level { path, id, names })
    }
}

impl Taking<'_, '_, '_> {
    fn all(&mut self) -> Result<(), Error> {
        let metadata = fs::symlink_metadata(self.root).map_err(walk::reading(self.root))?;
        let entry = self.entry(self.root, &metadata, Kind::Folder)?;
        self.tree.update(ROOT, entry.attributes, entry.xattrs);
        let mut levels = vec![Level::new(self.root.to_owned(), ROOT)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let path = level.path.join(&name);
            let above = level.id;
            let below = self.name(above, &path, name.as_bytes())?;
            if let Some(id) = below {
                levels.push(Level::new(path, id)?);
            }
        }
        Ok(())
    }

    /// Takes one name; returns its inode if it is a folder.
    fn name(&mut self, above: Id, path: &Path, name: &[u8]) -> Result<Option<Id>, Error> {
        let metadata = fs::symlink_metadata(path).map_err(walk::reading(path))?;
        let identity = (metadata.dev(), metadata.ino());
        if let Some(&id) = self.linked.get(&identity) {
            let named = self.link(above, name, id);
            return named
                .map(|()| None)
                .map_err(|fault| self.refused(path, fault));
        }
        let file_type = metadata.file_type();
        let (entry, content) = if file_type.is_dir() {
            let entry = self.entry(path, &metadata, Kind::Folder)?;
            (entry, Content::Folder(Folder::default()))
        } else if file_type.is_symlink() {
            let target = fs::read_link(path).map_err(walk::reading(path))?;
            let target: Box<[u8]> = target.as_os_str().as_bytes().into();
            let entry = self.entry(path, &metadata, Kind::Symlink(target.clone()))?;
            (entry, Content::Symlink(target))
        } else if file_type.is_file() {
            self.file(path)?
        } else {
            let node = walk::node(&metadata);
            let entry = self.entry(path, &metadata, Kind::Node(node))?;
            (entry, Content::Node(node))
        };
        let inode = Inode {
            attributes: entry.attributes,
            xattrs: entry.xattrs,
            content,
        };
        let added = self.tree.add(above, name, inode);
        let id = added.map_err(|fault| self.refused(path, fault))?;
        if file_type.is_dir() {
            return Ok(Some(id));
        }
        if metadata.nlink() > 1 {
            self.linked.insert(identity, id);
        }
        Ok(None)
    }

    /// Gives a file another name.
    fn link(&mut self, above: Id, name: &[u8], id: Id) -> Result<(), Fault> {
        self.budget.entry()?;
        self.budget.names(name.len())?;
        self.tree.name(above, name, id)
    }

    /// Writes a file's data.
    fn file(&mut self, path: &Path) -> Result<(Entry, Content), Error> {
        let file = walk::opened(path)?;
        let metadata = file.metadata().map_err(walk::reading(path))?;
        if !metadata.is_file() {
            let changed = io::Error::other("it became something else meanwhile");
            return Err(walk::reading(path)(changed).into());
        }
        let size = metadata.len();
        let entry = self.entry(path, &metadata, Kind::File { size })?;
        let number = self.files;
        self.files += 1;
        if size > 0 {
            let pieces = pieces(&file, &metadata).map_err(walk::reading(path))?;
            let chunks = Chunks::of(size, &pieces);
            let put = self.stored.put(number, size, chunks, &file);
            let held = put.map_err(|failure| failed(path, failure))?;
            let charged = self.budget.names(held);
            charged.map_err(|exceeded| self.refused(path, exceeded.into()))?;
        }
        let content = Content::File {
            layer: 0,
            entry: u32::try_from(number).unwrap_or(u32::MAX),
            size,
        };
        Ok((entry, content))
    }

    /// Returns a file as an entry, whose path is that below the root, if an image can hold it.
    fn entry(&mut self, path: &Path, metadata: &Metadata, kind: Kind) -> Result<Entry, Error> {
        let below = path.strip_prefix(self.root).unwrap_or(path);
        let entry = Entry {
            path: below.as_os_str().as_bytes().into(),
            attributes: attributes(metadata),
            xattrs: folder::xattrs(path)?,
            kind,
        };
        let charged = scan::charge(&entry, self.budget);
        let checked = charged.and_then(|()| self.stored.check(&entry));
        checked.map_err(|fault| self.refused(path, fault))?;
        Ok(entry)
    }

    fn refused(&self, path: &Path, fault: Fault) -> Error {
        let below = path.strip_prefix(self.root).unwrap_or(path);
        let folder = format!("the folder {}", self.root.display());
        Error::entry(&folder, below.as_os_str().as_bytes(), fault)
    }
}

fn attributes(metadata: &Metadata) -> Attributes {
    Attributes {
        permissions: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: Time {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        },
    }
}

/// Returns the places of a file's data; all of it where the file system doesn't report holes.
fn pieces(file: &File, metadata: &Metadata) -> io::Result<Vec<Range<u64>>> {
    let size = metadata.len();
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let is_sparse = metadata.blocks().saturating_mul(512) < size;
    let mut at = if is_sparse { 0 } else { size };
    while at < size && pieces.len() < PIECES_MAX {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            // No more data.
            Err(Errno::NXIO) => return Ok(pieces),
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.clamp(start, size);
        pieces.push(start..end);
        at = end;
    }
    match pieces.last_mut() {
        Some(last) if at < size => last.end = size,
        None => pieces.push(0..size),
        _ => {}
    }
    Ok(pieces)
}

fn failed(path: &Path, failure: Failure) -> Error {
    match failure {
        Failure::Read(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            let shorter = io::Error::other("it became shorter while it was read");
            walk::reading(path)(shorter).into()
        }
        Failure::Read(source) => walk::reading(path)(source).into(),
        failure => super::failed("the image", failure),
    }
}

//! The second pass: the tree becomes an archive, and the layers are read again for the data of the files that are left.
//!
//! A layer may lie in a file that another process writes to. The archive gets the data of this pass, and is known by the digests
//! of the first: so each layer is read to its end again, and has to have the same digest.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

use super::entries::Entries;
use super::entry::Kind;
use super::error::Error;
use super::limits::{Budget, Exceeded, Limits};
use super::reserved::stored;
use super::stream::{Check, Stream};
use super::tree::{Content, Id, ROOT, Tree};
use crate::image::Layer;
use minivm_guest::manifest::Xattr;
use minivm_guest::newc::{Archive, Attributes};

/// A name in the tree. Its path is put together when it is needed: all paths would take too much memory.
struct Name<'t> {
    /// Its folder's place in [`Names::folders`].
    above: usize,
    name: &'t [u8],
    id: Id,
}

/// All names of a tree, in the order of the archive.
pub(super) struct Names<'t> {
    tree: &'t Tree<'t>,
    /// Parents first, sorted; the root is the first.
    folders: Vec<Name<'t>>,
    /// Links, devices and the like, in the same order.
    others: Vec<Name<'t>>,
    /// Files, in the order of their data in the layers, so that each layer is read once.
    files: Vec<Name<'t>>,
}

impl<'t> Names<'t> {
    pub(super) fn new(tree: &'t Tree<'t>) -> Names<'t> {
        let root = Name {
            above: 0,
            name: b"",
            id: ROOT,
        };
        let mut names = Names {
            tree,
            folders: vec![root],
            others: Vec::new(),
            files: Vec::new(),
        };
        names.below(0);
        let data = |name: &Name<'_>| match tree.inode(name.id).content {
            Content::File { layer, entry, .. } => (layer, entry),
            _ => (0, 0),
        };
        // A stable sort: the names of one file stay in order.
        names.files.sort_by_key(data);
        names
    }

    /// Collects the names below a folder. The recursion is as deep as a path is long.
    fn below(&mut self, above: usize) {
        let tree = self.tree;
        let Some(folder) = tree.folder(self.folders[above].id) else {
            return;
        };
        for (name, &id) in &folder.names {
            let name = Name { above, name, id };
            match tree.inode(id).content {
                Content::Folder(_) => {
                    self.folders.push(name);
                    self.below(self.folders.len() - 1);
                }
                Content::File { .. } => self.files.push(name),
                Content::Symlink(_) | Content::Node(_) => self.others.push(name),
            }
        }
    }

    /// The number of names, without the root.
    pub(super) fn count(&self) -> u64 {
        (self.folders.len() + self.others.len() + self.files.len() - 1) as u64
    }

    /// Bytes of all files: nearly the whole archive.
    pub(super) fn data(&self) -> u64 {
        let files = self.files.chunk_by(|a, b| a.id == b.id);
        let size = |names: &[Name<'_>]| match self.tree.inode(names[0].id).content {
            Content::File { size, .. } => size,
            _ => 0,
        };
        files.map(size).sum()
    }

    /// The path in the image.
    fn path(&self, name: &Name<'t>) -> Vec<u8> {
        let mut parts = vec![name.name];
        let mut above = name.above;
        while above != 0 {
            parts.push(self.folders[above].name);
            above = self.folders[above].above;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// The extended attributes of all files. Those of a file with several names go with the first.
    pub(super) fn xattrs(&self, limits: &Limits) -> Result<Vec<Xattr>, Exceeded> {
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        let mut bytes = 0;
        for name in self.folders.iter().chain(&self.others).chain(&self.files) {
            let xattrs = &self.tree.inode(name.id).xattrs;
            if xattrs.is_empty() || !seen.insert(name.id) {
                continue;
            }
            let path = self.path(name);
            for (name, value) in xattrs {
                bytes += (path.len() + name.len() + value.len()) as u64;
                if bytes > limits.names {
                    let (limit, what) = (limits.names, "bytes of extended attributes");
                    return Err(Exceeded { limit, what });
                }
                found.push(Xattr {
                    path: path.clone(),
                    name: name.to_vec(),
                    value: value.to_vec(),
                });
            }
        }
        Ok(found)
    }

    /// Writes everything. `digests` are those that the layers had in the first pass.
    pub(super) fn write(
        &self,
        layers: &[Layer],
        digests: &[String],
        limits: &Limits,
        archive: &mut Archive<impl Write>,
    ) -> Result<(), Error> {
        archive.directory(".", self.tree.inode(ROOT).attributes.newc())?;
        for name in &self.folders[1..] {
            let path = self.path(name);
            archive.directory(stored(os(&path)), self.attributes(name))?;
        }
        // A node with several names becomes several nodes: only the inode's number shows the difference.
        for name in &self.others {
            let path = self.path(name);
            let (path, attributes) = (stored(os(&path)), self.attributes(name));
            match &self.tree.inode(name.id).content {
                Content::Symlink(target) => archive.symlink(path, os(target), attributes)?,
                Content::Node(node) => archive.node(path, *node, attributes)?,
                Content::Folder(_) | Content::File { .. } => {}
            }
        }
        for files in self.files.chunk_by(|a, b| self.layer(a) == self.layer(b)) {
            let number = self.layer(&files[0]) as usize;
            self.layer_files(files, &layers[number], &digests[number], limits, archive)?;
        }
        Ok(())
    }

    fn layer(&self, name: &Name<'_>) -> u32 {
        match self.tree.inode(name.id).content {
            Content::File { layer, .. } => layer,
            _ => 0,
        }
    }

    fn attributes(&self, name: &Name<'_>) -> Attributes {
        self.tree.inode(name.id).attributes.newc()
    }

    /// Writes the files whose data are in one layer.
    fn layer_files(
        &self,
        files: &[Name<'t>],
        layer: &Layer,
        digest: &str,
        limits: &Limits,
        archive: &mut Archive<impl Write>,
    ) -> Result<(), Error> {
        let changed = || Error::Changed {
            layer: layer.blob.name.clone(),
        };
        // The layer was within the limits in the first pass; changed meanwhile, it may have no end.
        let budget = Budget::new(limits);
        thread::scope(|scope| {
            let mut entries = None;
            let mut read = 0;
            for names in files.chunk_by(|a, b| a.id == b.id) {
                let Content::File { entry, size, .. } = self.tree.inode(names[0].id).content else {
                    continue;
                };
                if size == 0 {
                    self.file(names, size, io::empty(), archive)?;
                    continue;
                }
                let entries = match &mut entries {
                    Some(entries) => entries,
                    none => {
                        let check = Check::new(&budget);
                        let stream = Stream::start(scope, &layer.blob, Some(check))?;
                        none.insert(Entries::new(stream, &layer.blob.name, limits))
                    }
                };
                let mut found = None;
                while read <= entry {
                    found = entries.next()?;
                    read += 1;
                }
                if found.is_none_or(|found| found.kind != Kind::File { size }) {
                    return Err(changed());
                }
                self.file(names, size, entries.data(), archive)?;
            }
            let Some(entries) = entries else {
                return Ok(());
            };
            let check = entries.finish().0.finish();
            let check = check.map_err(|error| Error::read(&layer.blob.name, error))?;
            match check.map(Check::digest).as_deref() {
                Some(again) if again == digest => Ok(()),
                _ => Err(changed()),
            }
        })
    }

    /// Writes a file under all of its names.
    fn file(
        &self,
        names: &[Name<'t>],
        size: u64,
        data: impl Read,
        archive: &mut Archive<impl Write>,
    ) -> Result<(), Error> {
        let (first, more) = names.split_first().expect("a chunk has a first element");
        let path = self.path(first);
        let (path, attributes) = (stored(os(&path)), self.attributes(first));
        if more.is_empty() {
            return Ok(archive.file(path, attributes, size, data)?);
        }
        let links = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let file = archive.linked_file(path, attributes, links, size, data)?;
        for name in more {
            let path = self.path(name);
            archive.hard_link(stored(os(&path)), file)?;
        }
        Ok(())
    }
}

fn os(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

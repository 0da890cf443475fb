//! Makes an archive out of a folder.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::newc::{Archive, Attributes, Error, Linked, Node};

/// Whose the archived files are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Root's, whoever owns them here: what a folder needs that an ordinary user has unpacked.
    #[default]
    Root,
    /// Whose they are here.
    Keep,
}

/// Writes what is below `root` to `out` as an initramfs and hands `out` back.
///
/// Names are sorted, so the same folder makes the same bytes. Symbolic links are archived, never followed. Files with
/// several names keep them. `root` has no entry of its own: the guest's `/` keeps the mode that its kernel gave it.
///
/// ```
/// use minivm_guest::{Owner, archive_dir};
///
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("init"), "#!/bin/sh\n")?;
/// let archive = archive_dir(folder.path(), Owner::Root, Vec::new())?;
/// assert!(archive.starts_with(b"070701"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn archive_dir<W: Write>(root: &Path, owner: Owner, out: W) -> Result<W, Error> {
    let mut archive = Archive::new(out);
    let mut walk = Walk::new(&mut archive, owner, |name| name.into());
    walk.folder(root, Path::new(""))?;
    archive.finish()
}

/// Adds one file, or a folder with what is below it, to `archive`, where it is called `name`. Files with several names become
/// several files, so that who reads the archive need not know what was before.
///
/// # Errors
///
/// As [`archive_dir`]'s.
pub fn append_path<W: Write>(
    archive: &mut Archive<W>,
    path: &Path,
    name: &Path,
    owner: Owner,
) -> Result<(), Error> {
    let mut walk = Walk::new(archive, owner, |name| name.into());
    walk.links = false;
    walk.entry(path, name)
}

/// Writes `root` itself and what is below it, each under the name that `stored` gives it; says how many there were below.
#[cfg(feature = "image")]
pub(crate) fn archive_root<W: Write>(
    root: &Path,
    owner: Owner,
    stored: Stored,
    archive: &mut Archive<W>,
) -> Result<u64, Error> {
    let metadata = fs::metadata(root).map_err(reading(root))?;
    let mut walk = Walk::new(archive, owner, stored);
    let attributes = walk.attributes(&metadata);
    walk.archive.directory(".", attributes)?;
    walk.folder(root, Path::new(""))?;
    Ok(walk.count)
}

/// Where the archive has what lies at a path.
type Stored = fn(&Path) -> Cow<'_, Path>;

struct Walk<'a, W> {
    archive: &'a mut Archive<W>,
    owner: Owner,
    stored: Stored,
    /// Whether files with several names keep them.
    links: bool,
    /// Files with several names by device and inode, once the first name is in the archive.
    linked: HashMap<(u64, u64), Linked>,
    /// Names so far.
    count: u64,
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Result<Vec<OsString>, Error> {
    let names = fs::read_dir(folder).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()
    });
    let mut names = names.map_err(reading(folder))?;
    names.sort();
    Ok(names)
}

impl<'a, W: Write> Walk<'a, W> {
    fn new(archive: &'a mut Archive<W>, owner: Owner, stored: Stored) -> Walk<'a, W> {
        Walk {
            archive,
            owner,
            stored,
            links: true,
            linked: HashMap::new(),
            count: 0,
        }
    }

    fn folder(&mut self, folder: &Path, name: &Path) -> Result<(), Error> {
        for below in names(folder)? {
            self.entry(&folder.join(&below), &name.join(&below))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path) -> Result<(), Error> {
        self.count += 1;
        let metadata = fs::symlink_metadata(path).map_err(reading(path))?;
        let attributes = self.attributes(&metadata);
        let file_type = metadata.file_type();
        let stored = (self.stored)(name);
        if file_type.is_dir() {
            self.archive.directory(stored, attributes)?;
            self.folder(path, name)
        } else if file_type.is_symlink() {
            let target = fs::read_link(path).map_err(reading(path))?;
            self.archive.symlink(stored, target, attributes)
        } else if file_type.is_file() {
            self.file(path, &stored, attributes, &metadata)
        } else {
            self.archive.node(stored, node(&metadata), attributes)
        }
    }

    fn file(
        &mut self,
        path: &Path,
        name: &Path,
        attributes: Attributes,
        metadata: &Metadata,
    ) -> Result<(), Error> {
        let identity = (metadata.dev(), metadata.ino());
        if let Some(&first) = self.linked.get(&identity) {
            return self.archive.hard_link(name, first);
        }
        // Not followed even if it has become a link since it was looked at.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let data = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| reading(path)(errno.into()))?;
        let data = File::from(data);
        if self.links && metadata.nlink() > 1 {
            let links = u32::try_from(metadata.nlink()).unwrap_or(u32::MAX);
            let first = self
                .archive
                .linked_file(name, attributes, links, metadata.len(), data)?;
            self.linked.insert(identity, first);
            return Ok(());
        }
        self.archive.file(name, attributes, metadata.len(), data)
    }

    fn attributes(&self, metadata: &Metadata) -> Attributes {
        let (uid, gid) = match self.owner {
            Owner::Root => (0, 0),
            Owner::Keep => (metadata.uid(), metadata.gid()),
        };
        // Times before 1970 and after 2106 don't fit the format.
        let mtime = u32::try_from(metadata.mtime().max(0)).unwrap_or(u32::MAX);
        Attributes {
            permissions: metadata.mode() & 0o7777,
            uid,
            gid,
            mtime,
        }
    }
}

fn node(metadata: &Metadata) -> Node {
    let file_type = metadata.file_type();
    let (major, minor) = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    if file_type.is_char_device() {
        Node::CharDevice { major, minor }
    } else if file_type.is_block_device() {
        Node::BlockDevice { major, minor }
    } else if file_type.is_fifo() {
        Node::Fifo
    } else {
        Node::Socket
    }
}

pub(crate) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = PathBuf::from(path);
    move |source| Error::Read { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::newc::tests::entries;

    #[test]
    fn a_folder_is_archived_in_order_and_without_following_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("b")).unwrap();
        fs::set_permissions(root.join("b"), fs::Permissions::from_mode(0o711)).unwrap();
        fs::write(root.join("b/file"), "data").unwrap();
        fs::set_permissions(root.join("b/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(root.join("b/file"), root.join("c")).unwrap();
        symlink("/etc", root.join("a")).unwrap();
        let archive = archive_dir(root, Owner::Root, Vec::new()).unwrap();
        let found: Vec<_> = entries(&archive)
            .into_iter()
            .map(|(name, mode, .., data)| (name, mode, data))
            .collect();
        let entry = |name: &str, mode, data: &[u8]| (name.to_owned(), mode, data.to_vec());
        assert_eq!(
            found,
            [
                entry("a", 0o120_777, b"/etc"),
                entry("b", 0o040_711, b""),
                entry("b/file", 0o104_755, b"data"),
                entry("c", 0o104_755, b""),
            ]
        );
        let inodes: Vec<_> = entries(&archive).iter().map(|entry| entry.2).collect();
        assert_eq!(inodes, [1, 2, 3, 3]);
        assert_eq!(archive, archive_dir(root, Owner::Root, Vec::new()).unwrap());
    }
}

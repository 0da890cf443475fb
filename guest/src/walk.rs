//! Archives of folders and files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::newc::{Archive, Attributes, Error, Linked, Node};

/// The owner of the archived files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Root, in place of their owner on this host: a folder that an ordinary user has unpacked needs that.
    #[default]
    Root,
    /// Their owner on this host.
    Keep,
}

/// Writes the content of `root` to `out` as an initramfs and returns `out`.
///
/// Names are sorted, so the same folder makes the same bytes. Symbolic links are archived, never followed. Files with
/// several names keep them. `root` has no entry of its own: the guest's `/` keeps the mode that its kernel gave it.
///
/// # Errors
///
/// [`Error::Read`] or [`Error::Copy`] where something can't be read; [`Error::TooLarge`], [`Error::TooLong`] or
/// [`Error::Short`] where it can't be archived; [`Error::Write`] where `out` fails.
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
    walk.below(Level::new(root, Path::new(""))?)?;
    archive.finish()
}

/// Adds one file, or a folder with its content, to `archive` under the name `name`. Files with several names become several
/// files, so that a reader of the archive need not remember earlier ones. A small file is read before its size is written: those
/// of `/proc` and `/sys` have another size than they report. A `path` that is a link is followed; links below it aren't. Devices,
/// pipes and sockets become entries, too; they are also returned, for most readers leave them out.
///
/// # Errors
///
/// Those of [`archive_dir`].
pub fn append_path<W: Write>(
    archive: &mut Archive<W>,
    path: &Path,
    name: &Path,
    owner: Owner,
) -> Result<Nodes, Error> {
    let mut walk = Walk::new(archive, owner, |name| name.into());
    walk.copies = true;
    walk.tree(&followed(path)?, name)?;
    Ok(walk.nodes)
}

/// The devices, pipes and sockets among the archived files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// The paths of the first of them.
    pub first: Vec<PathBuf>,
    /// The number of those beside `first`.
    pub more: usize,
}

impl Nodes {
    /// The most of them in `first`.
    const NAMED: usize = 10;

    /// Adds one more.
    pub fn add(&mut self, path: &Path) {
        match self.first.len() < Self::NAMED {
            true => self.first.push(path.into()),
            false => self.more += 1,
        }
    }
}

/// Returns the path that a link leads to, or any other path as it is.
fn followed(path: &Path) -> Result<PathBuf, Error> {
    let metadata = fs::symlink_metadata(path).map_err(reading(path))?;
    match metadata.is_symlink() {
        true => fs::canonicalize(path).map_err(reading(path)),
        false => Ok(path.to_owned()),
    }
}

/// The largest file that can be archived, in bytes: the format has 32 bits for a size.
pub const FILE_MAX: u64 = u32::MAX as u64;
/// The reported size up to which a file that is copied is read before its size is written, in bytes.
const SMALL: u64 = 64 << 10;
/// The most bytes that such a file may really have.
const SMALL_MAX: u64 = 64 << 20;

/// Writes `root` itself and its content, each under the name that `stored` gives it; returns the number of entries below `root`.
///
/// # Errors
///
/// Those of [`archive_dir`].
pub fn archive_root<W: Write>(
    root: &Path,
    owner: Owner,
    stored: Stored,
    archive: &mut Archive<W>,
) -> Result<u64, Error> {
    let metadata = fs::metadata(root).map_err(reading(root))?;
    let mut walk = Walk::new(archive, owner, stored);
    let attributes = walk.attributes(&metadata);
    walk.archive.directory(".", attributes)?;
    walk.below(Level::new(root, Path::new(""))?)?;
    Ok(walk.count)
}

/// The function that gives a path its name in the archive.
type Stored = fn(&Path) -> Cow<'_, Path>;

/// A folder whose names are being archived.
struct Level {
    folder: PathBuf,
    name: PathBuf,
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    fn new(folder: &Path, name: &Path) -> Result<Level, Error> {
        Ok(Level {
            folder: folder.into(),
            name: name.into(),
            names: names(folder)?.into_iter(),
        })
    }
}

struct Walk<'a, W> {
    archive: &'a mut Archive<W>,
    owner: Owner,
    stored: Stored,
    /// Whether files are copied as they are now: each by itself, and with the bytes that can be read of it.
    copies: bool,
    /// Files with several names by device and inode, once the first name is in the archive.
    linked: HashMap<(u64, u64), Linked>,
    /// The number of names so far.
    count: u64,
    nodes: Nodes,
}

/// Returns the names in a folder, sorted.
///
/// # Errors
///
/// [`Error::Read`] where the folder can't be read.
pub fn names(folder: &Path) -> Result<Vec<OsString>, Error> {
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
            copies: false,
            linked: HashMap::new(),
            count: 0,
            nodes: Nodes::default(),
        }
    }

    /// Archives a file, or a folder with its content.
    fn tree(&mut self, path: &Path, name: &Path) -> Result<(), Error> {
        match self.entry(path, name)? {
            true => self.below(Level::new(path, name)?),
            false => Ok(()),
        }
    }

    /// Archives a folder's content. Its depth has no limit but the length of a path: it takes no stack.
    fn below(&mut self, top: Level) -> Result<(), Error> {
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            let Some(below) = level.names.next() else {
                levels.pop();
                continue;
            };
            let (path, name) = (level.folder.join(&below), level.name.join(&below));
            if self.entry(&path, &name)? {
                levels.push(Level::new(&path, &name)?);
            }
        }
        Ok(())
    }

    /// Archives one name; returns whether it is a folder.
    fn entry(&mut self, path: &Path, name: &Path) -> Result<bool, Error> {
        self.count += 1;
        let metadata = fs::symlink_metadata(path).map_err(reading(path))?;
        let attributes = self.attributes(&metadata);
        let file_type = metadata.file_type();
        let stored = (self.stored)(name);
        if file_type.is_dir() {
            self.archive.directory(stored, attributes)?;
        } else if file_type.is_symlink() {
            let target = fs::read_link(path).map_err(reading(path))?;
            self.archive.symlink(stored, target, attributes)?;
        } else if file_type.is_file() {
            self.file(path, &stored, attributes, &metadata)?;
        } else {
            self.nodes.add(path);
            self.archive.node(stored, node(&metadata), attributes)?;
        }
        Ok(file_type.is_dir())
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
        let size = metadata.len();
        if size > FILE_MAX {
            let name = path.into();
            return Err(Error::TooLarge { name, size });
        }
        let data = opened(path)?;
        if self.copies {
            return self.copy(path, name, attributes, size, data);
        }
        if metadata.nlink() > 1 {
            let links = u32::try_from(metadata.nlink()).unwrap_or(u32::MAX);
            let first = self
                .archive
                .linked_file(name, attributes, links, size, data)?;
            self.linked.insert(identity, first);
            return Ok(());
        }
        self.archive.file(name, attributes, size, data)
    }

    fn copy(
        &mut self,
        path: &Path,
        name: &Path,
        attributes: Attributes,
        size: u64,
        data: File,
    ) -> Result<(), Error> {
        let copied = if size <= SMALL {
            let whole = read_small(data).map_err(reading(path))?;
            let size = whole.len() as u64;
            self.archive.file(name, attributes, size, &*whole)
        } else {
            self.archive.file(name, attributes, size, data)
        };
        // The error names the file's path, and not its name in the archive.
        copied.map_err(|error| match error {
            Error::Short {
                expected, actual, ..
            } => Error::Short {
                name: path.into(),
                expected,
                actual,
            },
            Error::Copy { source, .. } => Error::Copy {
                name: path.into(),
                source,
            },
            other => other,
        })
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

/// Opens a file. If it has become a link since its type was read, it isn't followed; if it has become a pipe, it isn't waited for.
///
/// # Errors
///
/// [`Error::Read`] where it can't be opened.
pub fn opened(path: &Path) -> Result<File, Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened
        .map(File::from)
        .map_err(|errno| reading(path)(errno.into()))
}

fn read_small(data: File) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    data.take(SMALL_MAX + 1).read_to_end(&mut whole)?;
    match whole.len() as u64 <= SMALL_MAX {
        true => Ok(whole),
        false => {
            let text = format!("it has more bytes than its size says, and more than {SMALL_MAX}");
            Err(io::Error::other(text))
        }
    }
}

/// Returns a file that is neither a regular file, a folder nor a link as the device, pipe or socket that it is.
pub fn node(metadata: &Metadata) -> Node {
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

/// Returns a function that adds the path to the error of a system call that was to read it.
pub fn reading(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = PathBuf::from(path);
    move |source| Error::Read { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use minivm_tests::cpio::entries;

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

    /// Returns the archive and the nodes that `append_path` makes of a path.
    fn copied(path: &Path) -> Result<(Vec<u8>, Nodes), Error> {
        let mut archive = Archive::new(Vec::new());
        let nodes = append_path(&mut archive, path, Path::new("x"), Owner::Root)?;
        Ok((archive.finish()?, nodes))
    }

    #[test]
    fn a_copy_has_the_bytes_that_can_be_read_whatever_the_size_says() {
        // The sizes that they report are nothing, and a page.
        for path in [
            "/proc/self/limits",
            "/sys/kernel/mm/transparent_hugepage/enabled",
        ] {
            let Ok(content) = fs::read(path) else {
                continue;
            };
            assert!(!content.is_empty());
            let (archive, _) = copied(Path::new(path)).unwrap();
            assert_eq!(entries(&archive)[0].4, content, "{path}");
        }
    }

    #[test]
    fn a_folder_may_be_as_deep_as_a_path_is_long() {
        let folder = tempfile::tempdir().unwrap();
        let depth = (4000 - folder.path().as_os_str().len()) / 2;
        let mut path = folder.path().to_owned();
        for _ in 0..depth {
            path.push("a");
            fs::create_dir(&path).unwrap();
        }
        // Init's threads have as little stack.
        let root = folder.path().to_owned();
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let archived = small.spawn(move || copied(&root).unwrap().0).unwrap();
        assert_eq!(entries(&archived.join().unwrap()).len(), depth + 1);
    }

    #[test]
    fn a_link_that_is_named_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "data").unwrap();
        symlink(&file, &link).unwrap();
        let (archive, _) = copied(&link).unwrap();
        let entries = entries(&archive);
        assert_eq!(
            (entries[0].1 & 0o170_000, &*entries[0].4),
            (0o100_000, &b"data"[..])
        );
        fs::remove_file(&file).unwrap();
        let Err(Error::Read { path, .. }) = copied(&link) else {
            panic!("the link leads nowhere");
        };
        assert_eq!(path, link);
    }

    #[test]
    fn special_files_are_listed_and_too_large_ones_are_refused_by_path() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..12 {
            let socket = folder.path().join(format!("socket{number:02}"));
            std::os::unix::net::UnixListener::bind(socket).unwrap();
        }
        let (_, nodes) = copied(folder.path()).unwrap();
        assert_eq!((nodes.first.len(), nodes.more), (10, 2));
        assert_eq!(nodes.first[0], folder.path().join("socket00"));
        let large = folder.path().join("large");
        File::create(&large).unwrap().set_len(1 << 32).unwrap();
        let error = copied(folder.path()).unwrap_err().to_string();
        let text = "has 4294967296 bytes, and an archive holds only files of less than 4 GiB";
        assert_eq!(error, format!("{} {text}", large.display()));
    }
}

//! The reader of cpio archives in the "newc" format, entry by entry. It trusts none of them.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// The longest name or link target, in bytes.
const PATH_MAX: u32 = 4096;
const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
const TRAILER: &[u8] = b"TRAILER!!!";

/// The kind of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file of this size in bytes.
    File {
        /// The size.
        size: u32,
    },
    /// A symbolic link to this path.
    Symlink(PathBuf),
    /// A device, a pipe or a socket.
    Other,
}

/// An entry without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: relative, and without `..` in it. `.` is the folder in which all of the archive is unpacked.
    pub name: PathBuf,
    /// Its kind.
    pub kind: Kind,
    /// Permissions with set-user-ID, set-group-ID and sticky bits.
    pub permissions: u32,
    /// The time of its last change, in seconds since 1970.
    pub mtime: u32,
    /// A number that all names of one file have in common, where a file has more than one. The data come with the first name.
    pub link: Option<u32>,
}

/// An archive that is read from `R`.
#[derive(Debug)]
pub struct Unpack<R> {
    from: R,
    /// The bytes that are left of the current file's data, and of the padding behind it.
    data: u64,
    padding: u64,
}

impl<R: Read> Unpack<R> {
    /// Reads an archive from its beginning.
    pub fn new(from: R) -> Self {
        Unpack {
            from,
            data: 0,
            padding: 0,
        }
    }

    /// Returns the next entry, or none at the archive's end. Unread data of the last one are skipped.
    ///
    /// # Errors
    ///
    /// The reader's; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) where the archive is cut off;
    /// [`InvalidData`](io::ErrorKind::InvalidData) where it is not a cpio archive.
    #[allow(
        clippy::should_implement_trait,
        reason = "its errors would be awkward as items"
    )]
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let skip = self.data + self.padding;
        self.data = 0;
        self.padding = 0;
        if io::copy(&mut self.from.by_ref().take(skip), &mut io::sink())? != skip {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut header = [0; HEADER];
        self.from.read_exact(&mut header)?;
        if !header.starts_with(MAGIC) {
            return Err(bad("an entry has no magic number"));
        }
        let field = |index: usize| field(&header[6 + 8 * index..][..8]);
        let (mode, size, name_size) = (field(1)?, field(6)?, field(11)?);
        let (inode, links, mtime) = (field(0)?, field(4)?, field(5)?);
        let name = self.text(name_size, HEADER)?;
        let Some(name) = name.strip_suffix(b"\0") else {
            return Err(bad("a name has no end"));
        };
        if name == TRAILER {
            return Ok(None);
        }
        let kind = match mode & 0o170_000 {
            0o040_000 => Kind::Folder,
            0o100_000 => {
                self.data = size.into();
                self.padding = (4 - u64::from(size) % 4) % 4;
                Kind::File { size }
            }
            0o120_000 => Kind::Symlink(OsString::from_vec(self.text(size, 0)?).into()),
            _ => Kind::Other,
        };
        let name = match (name, &kind) {
            (b".", Kind::Folder) => PathBuf::from("."),
            _ => checked(OsString::from_vec(name.to_vec()).into())?,
        };
        let linked = links > 1 && matches!(kind, Kind::File { .. });
        Ok(Some(Entry {
            name,
            kind,
            permissions: mode & 0o7777,
            mtime,
            link: linked.then_some(inode),
        }))
    }

    /// Reads a name or a link's target, and the padding behind it, which counts from `before` on.
    fn text(&mut self, size: u32, before: usize) -> io::Result<Vec<u8>> {
        if size > PATH_MAX {
            return Err(bad("a name is too long"));
        }
        let mut bytes = vec![0; size as usize];
        self.from.read_exact(&mut bytes)?;
        let padding = (4 - (before + bytes.len()) % 4) % 4;
        self.from.read_exact(&mut [0; 3][..padding])?;
        Ok(bytes)
    }
}

impl<R: Read> Read for Unpack<R> {
    /// Reads the current file's data.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.from.by_ref().take(self.data).read(buffer)?;
        self.data -= len as u64;
        if len == 0 && self.data > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(len)
    }
}

/// Reads eight hexadecimal digits.
fn field(digits: &[u8]) -> io::Result<u32> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or_else(|| bad("a header's field is not a number"))
}

/// Refuses a name that doesn't stay below the folder it is put in.
fn checked(name: PathBuf) -> io::Result<PathBuf> {
    let inside = |part: Component| matches!(part, Component::Normal(_));
    if name.as_os_str().is_empty() || !Path::new(&name).components().all(inside) {
        return Err(bad(&format!("the name {} leads elsewhere", name.display())));
    }
    Ok(name)
}

fn bad(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("not a cpio archive: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::newc::{Archive, Attributes};
    use proptest::prelude::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("a", Attributes::new(0o700)).unwrap();
        let data = &b"hello"[..];
        archive
            .file("a/b", Attributes::new(0o4755), 5, data)
            .unwrap();
        archive
            .symlink("a/c", "../b", Attributes::new(0o777))
            .unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn an_archive_is_read_as_it_was_written() {
        let bytes = archive();
        let mut unpack = Unpack::new(&bytes[..]);
        let entry = |name: &str, kind, permissions| Entry {
            name: name.into(),
            kind,
            permissions,
            mtime: 0,
            link: None,
        };
        let folder = entry("a", Kind::Folder, 0o700);
        assert_eq!(unpack.next().unwrap(), Some(folder));
        let file = entry("a/b", Kind::File { size: 5 }, 0o4755);
        assert_eq!(unpack.next().unwrap(), Some(file));
        let mut data = Vec::new();
        unpack.read_to_end(&mut data).unwrap();
        assert_eq!(data, b"hello");
        let link = entry("a/c", Kind::Symlink("../b".into()), 0o777);
        assert_eq!(unpack.next().unwrap(), Some(link));
        assert_eq!(unpack.next().unwrap(), None);
    }

    #[test]
    fn names_of_one_file_have_a_number_in_common() {
        let mut archive = Archive::new(Vec::new());
        let attributes = Attributes {
            mtime: 7,
            ..Attributes::new(0o600)
        };
        archive.directory(".", attributes).unwrap();
        let file = archive.linked_file("a", attributes, 2, 1, &b"x"[..]);
        archive.hard_link("b", file.unwrap()).unwrap();
        let bytes = archive.finish().unwrap();
        let mut unpack = Unpack::new(&bytes[..]);
        let [root, first, second] = std::array::from_fn(|_| unpack.next().unwrap().unwrap());
        assert_eq!((root.name, root.mtime), (".".into(), 7));
        assert_eq!((root.link, first.kind), (None, Kind::File { size: 1 }));
        assert!(first.link.is_some() && first.link == second.link);
        assert_eq!(second.kind, Kind::File { size: 0 });
    }

    #[test]
    fn data_that_is_not_read_is_skipped() {
        let bytes = archive();
        let mut unpack = Unpack::new(&bytes[..]);
        let mut names = Vec::new();
        while let Some(entry) = unpack.next().unwrap() {
            names.push(entry.name);
        }
        assert_eq!(names, [Path::new("a"), Path::new("a/b"), Path::new("a/c")]);
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error_wherever_that_is() {
        let bytes = archive();
        for end in 0..bytes.len() - 4 {
            let mut unpack = Unpack::new(&bytes[..end]);
            while let Ok(entry) = unpack.next() {
                assert!(entry.is_some(), "cut off at {end}");
            }
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["../x", "a/../../x", "/etc/passwd", "a/..", "."] {
            let mut bytes = Vec::new();
            let mut archive = Archive::new(&mut bytes);
            let data = &b""[..];
            archive
                .file("12345678901", Attributes::new(0o644), 0, data)
                .unwrap();
            let mut padded = name.as_bytes().to_vec();
            padded.resize(12, 0);
            bytes[110..122].copy_from_slice(&padded);
            let size = format!("{:08x}", name.len() + 1);
            bytes[94..102].copy_from_slice(size.as_bytes());
            assert!(Unpack::new(&bytes[..]).next().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), valid: bool) {
            if valid {
                bytes.splice(0..0, archive());
            }
            let mut unpack = Unpack::new(&bytes[..]);
            while let Ok(Some(_)) = unpack.next() {
                let _ = io::copy(&mut unpack, &mut io::sink());
            }
        }

        #[test]
        fn no_change_panics(at in 0usize..300, to: u8) {
            let mut bytes = archive();
            let index = at % bytes.len();
            bytes[index] = to;
            let mut unpack = Unpack::new(&bytes[..]);
            while let Ok(Some(_)) = unpack.next() {}
        }
    }
}

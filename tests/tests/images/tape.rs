//! Layers made entry by entry, with what no tool would put into one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tar::{Builder, EntryType, Header};

/// A layer in the making.
pub(crate) struct Tape(Builder<Vec<u8>>);

/// What an entry's header says beside its name.
#[derive(Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
}

/// Root's, with this mode.
pub(crate) fn mode(mode: u32) -> Attributes {
    Attributes {
        mode,
        uid: 0,
        gid: 0,
    }
}

const MTIME: u64 = 1_700_000_000;

impl Tape {
    pub(crate) fn new() -> Self {
        Tape(Builder::new(Vec::new()))
    }

    pub(crate) fn file(&mut self, name: impl AsRef<OsStr>, of: Attributes, data: &[u8]) {
        let mut header = header(EntryType::Regular, of);
        header.set_size(data.len() as u64);
        let name = Path::new(name.as_ref());
        self.0.append_data(&mut header, name, data).unwrap();
    }

    pub(crate) fn folder(&mut self, name: &str, of: Attributes) {
        let mut header = header(EntryType::Directory, of);
        self.0.append_data(&mut header, name, &[][..]).unwrap();
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) {
        self.link(EntryType::Symlink, name, target, mode(0o777));
    }

    /// Its attributes should be those of its target: some unpackers set them, others don't.
    pub(crate) fn hard_link(&mut self, name: &str, target: &str, of: Attributes) {
        self.link(EntryType::Link, name, target, of);
    }

    fn link(&mut self, kind: EntryType, name: &str, target: &str, of: Attributes) {
        let mut header = header(kind, of);
        self.0.append_link(&mut header, name, target).unwrap();
    }

    /// A character device, or a pipe where there are no numbers.
    pub(crate) fn node(&mut self, name: &str, of: Attributes, device: Option<(u32, u32)>) {
        let kind = match device {
            Some(_) => EntryType::Char,
            None => EntryType::Fifo,
        };
        let mut header = header(kind, of);
        if let Some((major, minor)) = device {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
        self.0.append_data(&mut header, name, &[][..]).unwrap();
    }

    /// Extended attributes of the next entry.
    pub(crate) fn xattrs(&mut self, xattrs: &[(&str, &[u8])]) {
        let keys: Vec<_> = xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
            .collect();
        let records = keys.iter().map(|(key, value)| (&**key, *value));
        self.0.append_pax_extensions(records).unwrap();
    }

    /// An empty file with a name that the `tar` crate would refuse.
    pub(crate) fn named(&mut self, name: &[u8]) {
        let mut header = header(EntryType::Regular, mode(0o644));
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.0.append(&header, &[][..]).unwrap();
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(kind: EntryType, of: Attributes) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(of.mode);
    header.set_uid(of.uid);
    header.set_gid(of.gid);
    header.set_mtime(MTIME);
    header.set_size(0);
    header
}

/// A name of bytes that need not be text.
pub(crate) fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

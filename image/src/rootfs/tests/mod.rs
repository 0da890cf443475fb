//! Layers made on the spot, and what is made of them read back the way Linux reads it.

mod archives;
mod erofs;
mod folders;
mod hostile;
mod layers;
mod limits;
mod model;
mod output;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io::Write as _;
use std::sync::Arc;

use minivm_guest::manifest::{Manifest, Xattr};
use tar::{EntryType, Header};

use super::*;
use crate::Blob;

/// An entry of a layer to be.
#[derive(Clone, Debug)]
struct Entry {
    header: Header,
    name: Vec<u8>,
    link: Vec<u8>,
    data: Vec<u8>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

fn entry(kind: EntryType, name: impl AsRef<[u8]>) -> Entry {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    Entry {
        header,
        name: name.as_ref().to_vec(),
        link: Vec::new(),
        data: Vec::new(),
        pax: Vec::new(),
    }
}

fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    let mut file = entry(EntryType::Regular, name);
    file.data = data.as_ref().to_vec();
    file
}

fn folder(name: impl AsRef<[u8]>) -> Entry {
    entry(EntryType::Directory, name).mode(0o755)
}

fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    entry(EntryType::Symlink, name).mode(0o777).link(target)
}

fn hard(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    entry(EntryType::Link, name).link(target)
}

impl Entry {
    fn mode(mut self, mode: u32) -> Entry {
        self.header.set_mode(mode);
        self
    }

    fn owner(mut self, uid: u64, gid: u64) -> Entry {
        self.header.set_uid(uid);
        self.header.set_gid(gid);
        self
    }

    fn link(mut self, target: impl AsRef<[u8]>) -> Entry {
        self.link = target.as_ref().to_vec();
        self
    }

    fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Entry {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }

    fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Entry {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// The entry's blocks, with GNU's entries before it for what is too long.
    fn write(&self, tar: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            let records: Vec<u8> = self.pax.iter().flat_map(|(k, v)| record(k, v)).collect();
            let mut header = entry(EntryType::XHeader, "pax").header;
            block(tar, &mut header, b"pax", b"", &records);
        }
        for (kind, text) in [
            (EntryType::GNULongName, &self.name),
            (EntryType::GNULongLink, &self.link),
        ] {
            if text.len() > 100 {
                let mut header = entry(kind, "").header;
                block(
                    tar,
                    &mut header,
                    b"././@LongLink",
                    b"",
                    &[text, &b"\0"[..]].concat(),
                );
            }
        }
        block(
            tar,
            &mut self.header.clone(),
            &self.name,
            &self.link,
            &self.data,
        );
    }
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

fn block(tar: &mut Vec<u8>, header: &mut Header, name: &[u8], link: &[u8], data: &[u8]) {
    let old = header.as_old_mut();
    let (name, link) = (&name[..name.len().min(100)], &link[..link.len().min(100)]);
    old.name[..name.len()].copy_from_slice(name);
    old.linkname[..link.len()].copy_from_slice(link);
    if !data.is_empty() || header.entry_size().is_err() {
        header.set_size(data.len() as u64);
    }
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut tar));
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn digest(bytes: &[u8]) -> String {
    crate::Digest::of(bytes).to_string()
}

fn layer(bytes: &[u8], diff_id: Option<String>) -> Layer {
    let mut file = tempfile::tempfile().unwrap();
    // Layers lie in the midst of other things.
    file.write_all(b"before").unwrap();
    file.write_all(bytes).unwrap();
    file.write_all(b"after").unwrap();
    let blob = Blob {
        file: Arc::new(file),
        offset: 6,
        len: bytes.len() as u64,
        name: "the layer".to_owned(),
    };
    Layer { blob, diff_id }
}

fn image(layers: Vec<Layer>) -> Image {
    Image {
        identity: "test".to_owned(),
        config: Config::default(),
        root: Root::Layers(layers),
    }
}

fn image_of(layers: &[&[Entry]]) -> Image {
    let layers = layers.iter().map(|entries| {
        let tar = tar(entries);
        layer(&tar, Some(digest(&tar)))
    });
    image(layers.collect())
}

fn plain(image: &Image) -> Result<Vec<u8>, Error> {
    let mut archive = Vec::new();
    let limits = Limits::default();
    let summary = write(image, b"our init", Compression::None, &limits, &mut archive)?;
    assert_eq!(summary.bytes, archive.len() as u64);
    Ok(archive)
}

/// A file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u32,
    inode: u32,
    links: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

/// Every file of an archive. Parents have to come first, and no name twice.
fn read(archive: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let mut found = BTreeMap::<Vec<u8>, Found>::new();
    let mut data_of = BTreeMap::new();
    let mut at = 0;
    loop {
        let field = |index: usize| {
            let text = &archive[at + 6 + 8 * index..][..8];
            u32::from_str_radix(std::str::from_utf8(text).unwrap(), 16).unwrap()
        };
        let (size, name_size) = (field(6) as usize, field(11) as usize);
        let name = archive[at + 110..][..name_size - 1].to_vec();
        let start = (at + 110 + name_size).next_multiple_of(4);
        if name == b"TRAILER!!!" {
            assert_eq!(start, archive.len());
            return found;
        }
        let data = archive[start..start + size].to_vec();
        let (mode, inode, links) = (field(1), field(0), field(4));
        let data = match (mode & 0o170_000, links) {
            (0o100_000, 2..) => data_of.entry(inode).or_insert(data).clone(),
            _ => data,
        };
        if let Some(slash) = name.iter().rposition(|&byte| byte == b'/') {
            assert_eq!(found[&name[..slash]].mode & 0o170_000, 0o040_000);
        }
        let file = Found {
            mode,
            uid: field(2),
            gid: field(3),
            mtime: field(5),
            inode,
            links,
            device: (field(9), field(10)),
            data,
        };
        let name = name.escape_ascii().to_string();
        assert!(
            found.insert(name.clone().into(), file).is_none(),
            "{name} twice"
        );
        at = (start + size).next_multiple_of(4);
    }
}

fn found(layers: &[&[Entry]]) -> BTreeMap<Vec<u8>, Found> {
    read(&plain(&image_of(layers)).unwrap())
}

fn manifest(archive: &[u8]) -> Manifest {
    Manifest::from_bytes(&read(archive)[&b".minivm/manifest"[..]].data).unwrap()
}

/// What an archive shows of an image, a line each: `folder/`, `file: data`, `link -> target`, `name = first name`.
fn listing(archive: &[u8]) -> Vec<String> {
    let ours = [
        ".",
        ".minivm",
        ".minivm/complete",
        ".minivm/manifest",
        "init",
    ];
    let mut first = BTreeMap::new();
    let mut lines = Vec::new();
    for (name, file) in read(archive) {
        let name = String::from_utf8(name).unwrap();
        if ours.contains(&name.as_str()) {
            continue;
        }
        let data = file.data.escape_ascii();
        lines.push(match file.mode & 0o170_000 {
            0o040_000 => format!("{name}/"),
            0o120_000 => format!("{name} -> {data}"),
            0o100_000 => match first.get(&file.inode) {
                Some(first) => format!("{name} = {first}"),
                None => {
                    first.insert(file.inode, name.clone());
                    format!("{name}: {data}")
                }
            },
            _ => format!("{name} {:o} {:?}", file.mode, file.device),
        });
    }
    lines
}

fn list(layers: &[&[Entry]]) -> Vec<String> {
    listing(&plain(&image_of(layers)).unwrap())
}

/// The error and its causes as a user gets them.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn refusal(layers: &[&[Entry]]) -> String {
    chain(&plain(&image_of(layers)).unwrap_err())
}

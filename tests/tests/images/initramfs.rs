//! What is in an initramfs, read as plainly as can be.

use std::collections::BTreeMap;

use minivm_guest::manifest::{self, Manifest};

use crate::tools::hex;

/// What an archive says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) links: u32,
    pub(crate) device: (u32, u32),
    /// The digest of its data, or of a link's target; of all names of a file, one has the data.
    pub(crate) digest: String,
    /// The first of its names.
    pub(crate) same: Vec<u8>,
}

/// An archive's files by name, without minivm's own, and its manifest.
pub(crate) fn read(archive: &[u8]) -> (BTreeMap<Vec<u8>, File>, Manifest) {
    let mut files = BTreeMap::new();
    let mut data: BTreeMap<u32, String> = BTreeMap::new();
    let mut firsts: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut manifest = None;
    let mut at = 0;
    loop {
        let field = |number: usize| {
            let start = at + 6 + 8 * number;
            let text = std::str::from_utf8(&archive[start..start + 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        assert_eq!(&archive[at..at + 6], b"070701", "no header at byte {at}");
        let (inode, mode, size) = (field(0), field(1), field(6) as usize);
        let name_end = at + 110 + field(11) as usize;
        let name = archive[at + 110..name_end - 1].to_vec();
        let start = name_end.next_multiple_of(4);
        let bytes = &archive[start..start + size];
        if name == b"TRAILER!!!" {
            break;
        }
        let file = File {
            mode,
            owner: (field(2), field(3)),
            links: field(4),
            device: (field(9), field(10)),
            digest: String::new(),
            same: Vec::new(),
        };
        at = (start + size).next_multiple_of(4);
        if name == manifest::PATH.as_bytes() {
            manifest = Some(Manifest::from_bytes(bytes).unwrap());
        }
        let first = firsts.entry(inode).or_insert_with(|| name.clone());
        *first = name.clone().min(first.clone());
        if size > 0 || !data.contains_key(&inode) {
            data.insert(inode, hex(bytes));
        }
        inodes.insert(name.clone(), inode);
        files.insert(name, file);
    }
    for (name, file) in &mut files {
        let inode = inodes[name];
        file.digest.clone_from(&data[&inode]);
        file.same.clone_from(&firsts[&inode]);
    }
    // The image's own /init is where ours can't be.
    files.remove(manifest::INIT.as_bytes());
    let images = files.remove(manifest::IMAGES_INIT.as_bytes());
    let folder = manifest::FOLDER.as_bytes();
    files.retain(|name, _| !name.starts_with(folder));
    if let Some(mut init) = images {
        init.same = manifest::INIT.into();
        files.insert(manifest::INIT.into(), init);
    }
    (files, manifest.unwrap())
}

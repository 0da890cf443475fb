//! EROFS images made of layers and folders, read back.

mod damage;
mod folders;
mod layers;
mod limits;
mod trees;

use std::fs::File as OsFile;
use std::io::Read as _;

use super::*;
use crate::erofs::read::{Content, Inode, Reader};

/// A file of an image, and its data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    inode: Inode,
    data: Vec<u8>,
}

type Files = BTreeMap<Vec<u8>, Seen>;

/// Makes an image, and checks that nothing of it is wrong.
fn image_file(image: &Image) -> Result<OsFile, Error> {
    let out = tempfile::tempfile().unwrap();
    let made = write_erofs(image, &Limits::default(), &out)?;
    assert_eq!(made.bytes, out.metadata().unwrap().len());
    assert_eq!(made.bytes % 4096, 0);
    assert_eq!(made.files, files(&out).len() as u64 - 1);
    Ok(out)
}

fn made(layers: &[&[Entry]]) -> OsFile {
    image_file(&image_of(layers)).unwrap()
}

fn refusal(layers: &[&[Entry]]) -> String {
    chain(&image_file(&image_of(layers)).unwrap_err())
}

/// A file of this size with holes, and pieces of data in these places.
fn sparse(path: impl AsRef<[u8]>, size: u64, pieces: &[(u64, impl AsRef<[u8]>)]) -> Entry {
    let map = pieces
        .iter()
        .map(|(start, data)| format!("{start}\n{}\n", data.as_ref().len()));
    let mut stored = format!("{}\n{}", pieces.len(), map.collect::<String>()).into_bytes();
    stored.resize(stored.len().next_multiple_of(512), 0);
    for (_, data) in pieces {
        stored.extend_from_slice(data.as_ref());
    }
    file("GNUSparseFile.0/s", stored)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", path)
        .pax("GNU.sparse.realsize", size.to_string())
}

fn bytes(image: &OsFile) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.metadata().unwrap().len()).unwrap()];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// All files of an image by path. Parents have to come first, and no path twice.
fn files(image: &OsFile) -> Files {
    let reader = Reader::open(image).unwrap();
    let mut files = Files::new();
    let walked = reader.walk(|path, inode| {
        if let Some(slash) = path.iter().rposition(|&byte| byte == b'/') {
            assert_eq!(files[&path[..slash]].inode.content, Content::Folder);
        }
        let mut data = Vec::new();
        if let Content::File(place) = &inode.content {
            assert_eq!(
                reader.data(place).read_to_end(&mut data)? as u64,
                place.size
            );
        }
        let seen = Seen {
            inode: inode.clone(),
            data,
        };
        assert_eq!(files.insert(path.to_vec(), seen), None);
        Ok::<_, crate::erofs::read::Error>(())
    });
    walked.unwrap();
    files
}

/// What an image shows, a line each, as [`listing`] has it of an archive.
fn lines(files: &Files) -> Vec<String> {
    let mut first = BTreeMap::new();
    let lines = files.iter().filter(|(path, _)| !path.is_empty());
    lines
        .map(|(path, Seen { inode, data })| {
            let path = path.escape_ascii().to_string();
            let name = first.entry(inode.number).or_insert(path.clone());
            let permissions = inode.permissions;
            match &inode.content {
                Content::Folder => format!("{path}/ {permissions:o}"),
                Content::Symlink(target) => format!("{path} -> {}", target.escape_ascii()),
                Content::File(_) if *name != path => format!("{path} = {name}"),
                Content::File(_) => format!("{path}: {}", data.escape_ascii()),
                node => format!("{path} {permissions:o} {node:?}"),
            }
        })
        .collect()
}

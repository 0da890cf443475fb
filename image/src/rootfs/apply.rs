//! Puts a layer's entries over the tree of the layers below it, as the OCI image specification ("Image Layer Filesystem
//! Changeset") has it, and as other unpackers do it.
//!
//! Whiteouts first: they hide what is in lower layers, never what is in their own, wherever in the layer they stand. Then
//! entry by entry. A folder over a folder changes its attributes and keeps its content; anything else replaces what was
//! there. Symbolic links on the way to an entry are followed inside the root, since layers rely on it (`/bin/sh` lands in
//! `/usr/bin`); one at the entry's own name is replaced.

use std::collections::HashSet;

use super::entry::{Entry, Kind};
use super::error::{Error, Fault, path};
use super::tree::{Content, Folder, Id, Inode, ROOT, Tree};

/// Puts the entries of the layer with this number and name over the tree.
pub(super) fn layer(
    tree: &mut Tree<'_>,
    number: u32,
    name: &str,
    entries: Vec<Entry>,
) -> Result<(), Error> {
    hide(tree, &entries).map_err(|(path, fault)| Error::entry(name, path, fault))?;
    for (entry, index) in entries.into_iter().zip(0..) {
        if matches!(special(&entry.path), Special::No) {
            let path = entry.path.clone();
            put(tree, number, index, entry).map_err(|fault| Error::entry(name, &path, fault))?;
        }
    }
    Ok(())
}

/// The special meaning of a name.
enum Special<'a> {
    No,
    /// Hides this name in the folder.
    Whiteout(&'a [u8]),
    /// Hides everything in the folder.
    Opaque,
    /// A file of AUFS's own.
    Ignored,
}

fn special(path: &[u8]) -> Special<'_> {
    let meta = |part: &[u8]| part.starts_with(b".wh..wh.");
    let (_, name) = split(path);
    if name == b".wh..wh..opq" {
        Special::Opaque
    } else if path.split(|&byte| byte == b'/').any(meta) {
        Special::Ignored
    } else if let Some(hidden) = name.strip_prefix(b".wh.") {
        Special::Whiteout(hidden)
    } else {
        Special::No
    }
}

/// Splits a path into its folder and its last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Removes the names that the layer's whiteouts hide.
fn hide<'e>(tree: &mut Tree<'_>, entries: &'e [Entry]) -> Result<(), (&'e [u8], Fault)> {
    let mut replaced = None;
    for entry in entries {
        let hidden = match special(&entry.path) {
            Special::No | Special::Ignored => continue,
            Special::Opaque => None,
            Special::Whiteout(b"" | b"." | b"..") => return Err((&entry.path, Fault::NoName)),
            Special::Whiteout(name) => Some(name),
        };
        // Where the layer has a folder in place of a lower layer's link, its whiteouts are about what that folder never had.
        let replaced = replaced.get_or_insert_with(|| folders(entries));
        let (above, _) = split(&entry.path);
        let folder = match tree.find(above, Some(replaced)) {
            Ok(Some(folder)) => folder,
            Ok(None) | Err(Fault::NoFolder { .. }) => continue,
            Err(fault) => return Err((&entry.path, fault)),
        };
        let Some(folder) = tree.folder_mut(folder) else {
            continue;
        };
        match hidden {
            Some(name) => drop(folder.names.remove(name)),
            None => folder.names.clear(),
        }
    }
    Ok(())
}

fn folders(entries: &[Entry]) -> HashSet<&[u8]> {
    let folders = entries.iter().filter(|entry| entry.kind == Kind::Folder);
    folders.map(|entry| &*entry.path).collect()
}

fn put(tree: &mut Tree<'_>, layer: u32, index: u32, entry: Entry) -> Result<(), Fault> {
    let (above, name) = split(&entry.path);
    if name.is_empty() {
        if entry.kind != Kind::Folder {
            return Err(Fault::NoName);
        }
        tree.update(ROOT, entry.attributes, entry.xattrs);
        return Ok(());
    }
    let folder = tree.make(above)?;
    let content = match entry.kind {
        Kind::Folder => match tree.child(folder, name) {
            Some(id) if tree.folder(id).is_some() => {
                tree.update(id, entry.attributes, entry.xattrs);
                return Ok(());
            }
            _ => Content::Folder(Folder::default()),
        },
        Kind::File { size } => Content::File {
            layer,
            entry: index,
            size,
        },
        Kind::Symlink(target) => Content::Symlink(target),
        Kind::Node(node) => Content::Node(node),
        Kind::HardLink(target) => {
            let id = linked(tree, &target)?;
            return tree.name(folder, name, id);
        }
    };
    let inode = Inode {
        attributes: entry.attributes,
        xattrs: entry.xattrs,
        content,
    };
    tree.add(folder, name, inode).map(drop)
}

/// Finds a hard link's target, whichever layer it is from.
fn linked(tree: &Tree<'_>, target: &[u8]) -> Result<Id, Fault> {
    let (above, name) = split(target);
    let folder = match tree.find(above, None) {
        Err(Fault::NoFolder { .. }) => None,
        found => found?,
    };
    let id = folder.and_then(|folder| tree.child(folder, name));
    match id {
        None => Err(Fault::NoTarget {
            target: path(target),
        }),
        Some(id) if tree.folder(id).is_some() => Err(Fault::FolderTarget {
            target: path(target),
        }),
        Some(id) => Ok(id),
    }
}

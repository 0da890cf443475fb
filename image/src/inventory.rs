//! The inventory of a store: its images, the files of each, and the files that belong to none.
//!
//! It is made of the store's own files alone: of tags and records, which name an image's content by digests. No document of an image is
//! read, no use is noted, nothing is made or locked. A file that can't be read, or isn't what its name says, is counted and left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::digest::Digest;
use super::platform::Platform;
use super::publish;
use super::reference::Reference;
use super::store::{RECORD_MAX, Store, TAG_MAX, Tag};

/// All that a store has.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The images, by their ids.
    pub images: Vec<Stored>,
    /// The files of none of them.
    pub others: Others,
}

/// Files that belong to no image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Their number.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An image that a store has, or had.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The digest of its configuration, which is its [identity](super::Image::identity). Of an image without a record, that of its
    /// manifest or index.
    pub id: Digest,
    /// Its names in registries.
    pub names: Vec<Tagged>,
    /// The manifests and indexes by which it was opened.
    pub manifests: BTreeSet<Digest>,
    /// The machine that it is for, where there is a record.
    pub platform: Option<Platform>,
    /// The time of its last use.
    pub used: Option<SystemTime>,
    /// The bytes of its content that are there.
    pub size: u64,
    /// Whether all of its content is known, and there.
    pub is_whole: bool,
    /// The files that no other image needs, in an order in which they can be removed: what names others comes last.
    pub own: Vec<PathBuf>,
}

/// A name of an image, and the tag's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The name.
    pub name: Reference,
    /// The file.
    pub path: PathBuf,
}

/// What an inventory needs of a [`Record`](super::store::Record).
#[derive(Deserialize)]
struct Brief {
    manifest: Digest,
    platform: Platform,
    identity: Digest,
    blobs: BTreeSet<Digest>,
}

/// An image, and what it needs of the store.
struct Needed {
    stored: Stored,
    blobs: BTreeSet<Digest>,
    records: Vec<PathBuf>,
}

impl Store {
    /// Returns what the store has.
    pub fn inventory(&self) -> Inventory {
        let mut others = Others::default();
        let tags = self.tags(&mut others);
        let mut images = self.recorded_images(&mut others);
        for (tag, manifest) in tags {
            let is_named = |image: &&mut Needed| image.stored.manifests.contains(&manifest);
            if images.values_mut().filter(is_named).count() == 0 {
                images.insert(manifest.clone(), Needed::of_tag(&manifest, &tag));
            }
            let named = images.values_mut().filter(is_named);
            named.for_each(|image| image.stored.names.push(tag.clone()));
        }
        let there = self.content(&mut others);
        let mut images = self.finish(images, there, &mut others);
        images.extend(self.engines(&mut others));
        Inventory { images, others }
    }

    fn tags(&self, others: &mut Others) -> Vec<(Tagged, Digest)> {
        let mut tags = Vec::new();
        for Entry { path, size, .. } in entries(&self.folder().join("tags")) {
            let tag: Option<Tag> = read(&path, TAG_MAX);
            let tag = tag.filter(|tag| self.tag_path(&tag.image) == path);
            let named =
                tag.and_then(|tag| Some((tag.image.parse().ok()?, tag.manifest.parse().ok()?)));
            match named {
                Some((name, manifest)) => tags.push((Tagged { name, path }, manifest)),
                None => others.add(size),
            }
        }
        tags
    }

    /// Returns the images that have records, by their ids.
    fn recorded_images(&self, others: &mut Others) -> BTreeMap<Digest, Needed> {
        let mut images = BTreeMap::new();
        for Entry { path, size, used } in entries(&self.folder().join("known")) {
            let brief: Option<Brief> = read(&path, RECORD_MAX);
            let is_its_name =
                |brief: &Brief| self.record_path(&brief.manifest, &brief.platform) == path;
            let Some(brief) = brief.filter(is_its_name) else {
                others.add(size);
                continue;
            };
            let image = images.entry(brief.identity.clone());
            let image: &mut Needed = image.or_insert_with(|| Needed::new(&brief.identity));
            image.stored.manifests.insert(brief.manifest);
            image.stored.platform = Some(brief.platform);
            image.stored.used = image.stored.used.max(used);
            image.blobs.extend(brief.blobs);
            image.records.push(path);
        }
        images
    }

    /// Returns the sizes of all content.
    fn content(&self, others: &mut Others) -> BTreeMap<Digest, u64> {
        let mut content = BTreeMap::new();
        for Entry { path, size, .. } in entries(&self.folder().join("blobs/sha256")) {
            match digest_of(&path) {
                Some(digest) => drop(content.insert(digest, size)),
                None => others.add(size),
            }
        }
        content
    }

    /// Returns the images, with the sizes and files of the content that is `there`.
    fn finish(
        &self,
        images: BTreeMap<Digest, Needed>,
        there: BTreeMap<Digest, u64>,
        others: &mut Others,
    ) -> Vec<Stored> {
        let mut users: BTreeMap<Digest, u32> = BTreeMap::new();
        for blob in images.values().flat_map(|image| &image.blobs) {
            *users.entry(blob.clone()).or_default() += 1;
        }
        let unneeded = there.iter().filter(|(blob, _)| !users.contains_key(blob));
        unneeded.for_each(|(_, size)| others.add(*size));
        let finish = |image: Needed| {
            let mut stored = image.stored;
            for blob in &image.blobs {
                match there.get(blob) {
                    Some(size) => stored.size += size,
                    None => stored.is_whole = false,
                }
                if there.contains_key(blob) && users.get(blob) == Some(&1) {
                    stored.own.push(self.blob_path(blob));
                }
            }
            stored.own.extend(image.records);
            stored
        };
        images.into_values().map(finish).collect()
    }

    /// Returns the archives that engines have saved, each an image.
    fn engines(&self, others: &mut Others) -> Vec<Stored> {
        let mut engines = Vec::new();
        for Entry { path, size, used } in entries(&self.folder().join("engine")) {
            match digest_of(&path) {
                Some(id) => engines.push(Stored {
                    used,
                    size,
                    own: vec![path],
                    ..Stored::new(&id)
                }),
                None => others.add(size),
            }
        }
        engines
    }
}

impl Stored {
    fn new(id: &Digest) -> Stored {
        Stored {
            id: id.clone(),
            names: Vec::new(),
            manifests: BTreeSet::new(),
            platform: None,
            used: None,
            size: 0,
            is_whole: true,
            own: Vec::new(),
        }
    }
}

impl Needed {
    fn new(id: &Digest) -> Needed {
        Needed {
            stored: Stored::new(id),
            blobs: BTreeSet::new(),
            records: Vec::new(),
        }
    }

    /// Makes an image of which a tag is known, and no more: its record can't be read, or is gone.
    fn of_tag(manifest: &Digest, tag: &Tagged) -> Needed {
        let mut image = Needed::new(manifest);
        image.stored.is_whole = false;
        image.stored.manifests.insert(manifest.clone());
        image.stored.used = entry(tag.path.clone()).and_then(|entry| entry.used);
        image.blobs.insert(manifest.clone());
        image
    }
}

impl Others {
    /// Counts one more file.
    pub fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// A name in a folder of the store. What isn't a regular file has no size.
struct Entry {
    path: PathBuf,
    size: u64,
    used: Option<SystemTime>,
}

/// Returns all names in a folder, sorted; none where it can't be read.
fn entries(folder: &Path) -> Vec<Entry> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries: Vec<Entry> = names.filter_map(|name| entry(name.path())).collect();
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    entries
}

fn entry(path: PathBuf) -> Option<Entry> {
    let metadata = fs::symlink_metadata(&path).ok()?;
    Some(Entry {
        path,
        size: if metadata.is_file() {
            metadata.len()
        } else {
            0
        },
        used: metadata.modified().ok(),
    })
}

/// Returns the digest that a regular file has for its name.
fn digest_of(path: &Path) -> Option<Digest> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    let name = path.file_name().filter(|_| is_file)?;
    Digest::from_hex(name.to_str()?)
}

/// Reads a small file of the store; `None` where it isn't one.
fn read<T: DeserializeOwned>(path: &Path, limit: u64) -> Option<T> {
    let file = publish::open(path).ok().flatten()?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests;

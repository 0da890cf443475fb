//! The list of the cache's images: those that were pulled, and what was made of these and of others.
//!
//! Archives, EROFS images and root folders are named by hashes of the identities of their images. So what was made of a pulled image, or of
//! one that an engine saved, is found by that; an archive or EROFS image of another image has its own row, with the names by which
//! templates know it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minivm_image::inventory::{Others, Stored, Tagged};
use minivm_image::{Digest, Platform};

use super::evict::files;
use super::{ImageCache, Init, MADE, erofs_key, init_name, key, root};
use crate::MachineSpec;
use crate::templates::{Listed, Templates, lab};

/// All that the cache has of images.
#[derive(Debug, Default)]
pub struct Listing {
    /// The images, by their names. Those without one come last.
    pub images: Vec<CachedImage>,
    /// Files that belong to none of them.
    pub others: Others,
}

/// An image of which the cache has something.
#[derive(Clone, Debug, Default)]
pub struct CachedImage {
    /// The names by which `minivm run` takes it, as far as they are known.
    pub names: Vec<String>,
    /// The id: the digest of its configuration, as it has in Docker; or where that isn't known, the name of the one file or folder that
    /// was made of it.
    pub id: String,
    /// The digests of its manifests and indexes.
    pub digests: Vec<Digest>,
    /// The machine that it is for, if that is known.
    pub platform: Option<Platform>,
    /// The time of the last use of any of it.
    pub used: Option<SystemTime>,
    /// Bytes of its layers and documents, as they are stored.
    pub stored: u64,
    /// Whether it can be opened without a network, as far as that is known.
    pub is_whole: bool,
    /// Bytes of its archives.
    pub initramfs: u64,
    /// Bytes of its EROFS image.
    pub erofs: u64,
    /// Bytes of its root folder.
    pub rootfs: u64,
    /// Bytes of its templates that have no name.
    pub templates: u64,
    /// The files of its names in registries.
    pub(super) tags: Vec<Tagged>,
    /// What is removed with it, in this order.
    pub(super) parts: Vec<Part>,
    /// A template with a name that needs what was made of it.
    pub(super) needed_by: Option<String>,
}

/// A part of an image that can be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Template(String),
    Root(PathBuf),
    File(PathBuf),
}

impl ImageCache {
    /// Lists the images, and what was made of them. Nothing of that counts as used.
    pub fn list(&self) -> Listing {
        let inventory = self.store().inventory();
        let mut made = Made::of(&self.folder);
        let mut images: Vec<CachedImage> = Vec::new();
        for stored in inventory.images {
            images.push(made.with(stored, self));
        }
        images.extend(made.rest());
        images.sort_by(|one, other| order(one).cmp(&order(other)));
        let mut others = inventory.others;
        made.strangers.iter().for_each(|size| others.add(*size));
        Listing { images, others }
    }
}

/// Returns what images are sorted by.
fn order(image: &CachedImage) -> (bool, Option<&String>, Option<String>, &str) {
    let platform = image.platform.as_ref().map(Platform::to_string);
    (
        image.names.is_empty(),
        image.names.first(),
        platform,
        &image.id,
    )
}

impl CachedImage {
    /// Returns the bytes of all that the cache has of it.
    pub fn size(&self) -> u64 {
        self.stored + self.made()
    }

    /// Returns the bytes of all that was made of it.
    pub fn made(&self) -> u64 {
        self.initramfs + self.erofs + self.rootfs + self.templates
    }

    /// Returns the first digits of its id, as Docker prints them.
    pub fn short_id(&self) -> &str {
        let digits = self.id_digits();
        digits.get(..12).unwrap_or(digits)
    }

    /// Returns its id without the name of the hash.
    pub(super) fn id_digits(&self) -> &str {
        self.id.strip_prefix("sha256:").unwrap_or(&self.id)
    }

    fn of(stored: Stored) -> CachedImage {
        CachedImage {
            names: stored
                .names
                .iter()
                .map(|tag| tag.name.to_string())
                .collect(),
            id: stored.id.to_string(),
            digests: stored.manifests.into_iter().collect(),
            platform: stored.platform,
            used: stored.used,
            stored: stored.size,
            is_whole: stored.is_whole,
            tags: stored.names,
            parts: stored.own.into_iter().map(Part::File).collect(),
            ..CachedImage::default()
        }
    }

    fn use_at(&mut self, used: Option<SystemTime>) {
        self.used = self.used.max(used);
    }
}

/// An archive, an EROFS image or a root folder.
struct Entry {
    path: PathBuf,
    size: u64,
    used: Option<SystemTime>,
}

/// What was made of images.
struct Made {
    /// Archives by their keys, which are their names.
    archives: BTreeMap<String, Entry>,
    erofs: BTreeMap<String, Entry>,
    roots: BTreeMap<String, Entry>,
    /// Templates by the keys of their EROFS images, or archives, which needn't be there.
    templates: BTreeMap<String, Vec<Listed>>,
    /// The sizes of files whose names are no keys.
    strangers: Vec<u64>,
}

impl Made {
    /// Looks at the cache in `folder`.
    fn of(folder: &Path) -> Made {
        let mut made = Made {
            archives: BTreeMap::new(),
            erofs: BTreeMap::new(),
            roots: BTreeMap::new(),
            templates: BTreeMap::new(),
            strangers: Vec::new(),
        };
        let [initramfs, erofs] = MADE.map(|name| folder.join(name));
        (made.archives, made.strangers) = find(&initramfs, "cpio");
        let (found, strangers) = find(&erofs, "erofs");
        made.erofs = found;
        made.strangers.extend(strangers);
        made.find_roots(&folder.join("rootfs"));
        made.find_templates(folder);
        made
    }

    fn find_roots(&mut self, folder: &Path) {
        for path in root::all(folder).unwrap_or_default() {
            let key = key_in(&path, "");
            let used = root::used(&path).ok().filter(|_| path.is_dir());
            if let (Some(key), Some((used, size))) = (key, used) {
                let used = Some(used);
                self.roots.insert(key, Entry { path, size, used });
            }
        }
    }

    /// Finds the templates: those in the cache, and those of kept labs.
    fn find_templates(&mut self, cache: &Path) {
        let mut all = Templates::new(cache).list().unwrap_or_default();
        all.extend(lab::kept(cache).into_iter().map(Listed::of_kept_lab));
        for template in all {
            let machine = template.recipe.as_ref().map(|recipe| &recipe.machine);
            if let Some(key) = machine.and_then(|machine| key_of_image(machine, cache)) {
                self.templates.entry(key).or_default().push(template);
            }
        }
    }

    /// Returns a stored image with what was made of it, which is taken out.
    fn with(&mut self, stored: Stored, cache: &ImageCache) -> CachedImage {
        let mut image = CachedImage::of(stored);
        let content = std::mem::take(&mut image.parts);
        for init in Init::all() {
            self.take_file(&key(&image.id, init), &mut image);
        }
        self.take_file(&erofs_key(&image.id), &mut image);
        if let Some(root) = cache.root_path(&image.id).file_name() {
            self.take_root(&root.to_string_lossy(), &mut image);
        }
        // What makes it an image goes last.
        image.parts.extend(content);
        image
    }

    /// Returns the rest, of images that aren't known.
    fn rest(&mut self) -> Vec<CachedImage> {
        let unknown = |key: &String| CachedImage {
            id: key.clone(),
            is_whole: true,
            ..CachedImage::default()
        };
        let keys = self.archives.keys().chain(self.erofs.keys());
        let keys = keys.chain(self.templates.keys());
        let mut images: BTreeMap<String, CachedImage> =
            keys.map(|key| (key.clone(), unknown(key))).collect();
        for (key, image) in &mut images {
            self.take_file(key, image);
        }
        let mut images: Vec<_> = images.into_values().collect();
        let roots: Vec<_> = self.roots.keys().cloned().collect();
        for key in roots {
            let mut image = unknown(&key);
            self.take_root(&key, &mut image);
            images.push(image);
        }
        images
    }

    /// Adds the archive or EROFS image of this key to an image, with the templates of it.
    fn take_file(&mut self, key: &str, image: &mut CachedImage) {
        for template in self.templates.remove(key).unwrap_or_default() {
            self.take_template(template, image);
        }
        if let Some(Entry { path, size, used }) = self.archives.remove(key) {
            image.initramfs += size;
            image.use_at(used);
            image.parts.push(Part::File(path));
        }
        if let Some(Entry { path, size, used }) = self.erofs.remove(key) {
            image.erofs += size;
            image.use_at(used);
            image.parts.push(Part::File(path));
        }
    }

    fn take_template(&self, template: Listed, image: &mut CachedImage) {
        let name = template.recipe.as_ref().map(|recipe| recipe.image.clone());
        if image.tags.is_empty()
            && let Some(name) = name
            && !image.names.contains(&name)
        {
            image.names.push(name);
            image.names.sort();
        }
        match template.is_unnamed() {
            true => {
                image.templates += template.size;
                image.use_at(template.used);
                image.parts.push(Part::Template(template.name));
            }
            false if template.needs().is_empty() => {}
            false => image.needed_by = Some(template.name),
        }
    }

    fn take_root(&mut self, key: &str, image: &mut CachedImage) {
        if let Some(Entry { path, size, used }) = self.roots.remove(key) {
            image.rootfs += size;
            image.use_at(used);
            image.parts.push(Part::Root(path));
        }
    }
}

/// Returns the files in a folder whose names are keys with this extension, and the sizes of others. Archives of init alone are neither:
/// they belong to no image, and to all.
fn find(folder: &Path, extension: &str) -> (BTreeMap<String, Entry>, Vec<u64>) {
    let of_init: Vec<_> = Init::all().iter().map(init_name).collect();
    let (mut found, mut strangers) = (BTreeMap::new(), Vec::new());
    for (path, size, used) in files(folder) {
        match key_in(&path, extension) {
            Some(key) => {
                let used = Some(used);
                found.insert(key, Entry { path, size, used });
            }
            // One that is being made.
            None if key_in(&path, "partial").is_some() => {}
            None if of_init.iter().any(|name| path.ends_with(name)) => {}
            None => strangers.push(size),
        }
    }
    (found, strangers)
}

/// Returns the key of the file that was made of a machine's image, if it is one of the cache's.
fn key_of_image(machine: &MachineSpec, cache: &Path) -> Option<String> {
    let (path, folder, extension) = match &machine.image {
        Some(image) => (image, "erofs", "erofs"),
        None => (&machine.initramfs, "initramfs", "cpio"),
    };
    let is_there = path.parent() == Some(&cache.join(folder));
    is_there.then(|| key_in(path, extension)).flatten()
}

/// Returns the key that a file or folder has for its name, before this extension.
fn key_in(path: &Path, extension: &str) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let key = match extension {
        "" => name,
        extension => name.strip_suffix(extension)?.strip_suffix('.')?,
    };
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (key.len() == 32 && key.bytes().all(is_hex)).then(|| key.to_owned())
}

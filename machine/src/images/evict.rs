//! Eviction: the cache is kept within a limit, and what was used longest ago is removed.
//!
//! Eviction runs when something was put into the cache, and never before something is used. Images, archives, EROFS images, folders and
//! the templates without a name count, each with the size of its file or the size in its lock's file, so that no tree is walked.
//! Kernels and tools don't count, nor do templates with names and the files that those need: the user has asked for them.
//!
//! A file's modification time is that of its last use; for a folder that of its lock counts, and for a template that of its
//! record. An entry that is used has its lock held, and stays. An entry that is larger than the limit goes first, as soon as it
//! isn't used: it would leave no room for the rest, which until then stays as if the large one weren't there.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use minivm_image::Store;
use minivm_image::publish::{Lock, tree};

use super::{ImageCache, MADE, root};
use crate::templates::{self, Listed, Templates};

/// How many bytes the cache may hold by default.
pub const LIMIT: u64 = 10 << 30;
/// How much later an image counts as used than what was made of it: the image is removed after that, for only the image takes a
/// network to get again.
const LATER: Duration = Duration::from_secs(1);
/// How often eviction starts over, for other processes put entries in too.
const TURNS: u32 = 3;

static SET: AtomicU64 = AtomicU64::new(LIMIT);

/// Sets how many bytes the cache may hold, for this process.
pub fn set_limit(bytes: u64) {
    SET.store(bytes, Ordering::Relaxed);
}

/// Keeps the cache in `folder` within its limit. The template `spared` has just been made.
pub(super) fn evict(folder: &Path, spared: Option<&str>) {
    evict_to(SET.load(Ordering::Relaxed), folder, spared);
}

fn evict_to(limit: u64, folder: &Path, spared: Option<&str>) {
    // Two at once would take more than they have to. Where it can't be locked, it is one at a time all the same, mostly.
    let path = folder.join("eviction.lock");
    let alone = Lock::try_alone(&path);
    if matches!(alone, Ok(None)) {
        return;
    }
    let mut cache = Cache::new(folder);
    for _ in 0..TURNS {
        if !cache.shrink(limit, spared) {
            break;
        }
    }
}

/// An entry that can be removed.
struct Entry {
    what: What,
    size: u64,
    used: SystemTime,
}

#[derive(Debug)]
enum What {
    /// A file of an image.
    Image(PathBuf),
    /// An archive or an EROFS image, or the beginning of one.
    Made(PathBuf),
    Root(PathBuf),
    Template(String),
}

struct Cache<'a> {
    folder: &'a Path,
    store: Store,
    templates: Templates,
    /// The lock that keeps images from being pulled, once one of them has to go; `None` inside where one is being pulled.
    alone: Option<Option<Lock>>,
}

impl<'a> Cache<'a> {
    fn new(folder: &'a Path) -> Self {
        Cache {
            folder,
            store: ImageCache::new(folder).store(),
            templates: Templates::new(folder),
            alone: None,
        }
    }

    /// Removes what has to go; returns whether anything was removed.
    fn shrink(&mut self, limit: u64, spared: Option<&str>) -> bool {
        let mut entries = self.entries();
        let total: u64 = entries.iter().map(|entry| entry.size).sum();
        let mut over = total.saturating_sub(limit);
        entries.sort_by_key(|entry| (entry.size <= limit, entry.used));
        let mut any = false;
        for entry in entries {
            if over == 0 {
                break;
            }
            let gone = self.remove(&entry.what, spared);
            if gone {
                log::debug!("the cache is full: {:?} is removed", entry.what);
                any = true;
            }
            if gone || entry.size > limit {
                over = over.saturating_sub(entry.size);
            }
        }
        self.alone = None;
        any
    }

    /// Removes an entry; returns whether it is gone: it isn't where it is in use, or can't be removed.
    fn remove(&mut self, what: &What, spared: Option<&str>) -> bool {
        match what {
            What::Image(path) => {
                let hold = || self.store.hold_alone().ok().flatten();
                let alone = self.alone.get_or_insert_with(hold);
                alone.is_some() && tree::remove_if_unlocked(path)
            }
            What::Made(path) => tree::remove_if_unlocked(path),
            What::Root(path) => root::remove_unused(path).1,
            What::Template(name) if spared == Some(name) => false,
            What::Template(name) => matches!(
                self.templates.remove(name),
                Ok(_) | Err(templates::Error::Missing(_))
            ),
        }
    }

    /// Returns all entries that count.
    fn entries(&self) -> Vec<Entry> {
        let (mut entries, kept) = self.templates();
        for folder in ["blobs/sha256", "engine", "known", "partial"] {
            let found = files(&self.store.folder().join(folder));
            entries.extend(found.map(|(path, size, used)| Entry {
                what: What::Image(path),
                size,
                // A clock that was wrong may have left any time.
                used: used.checked_add(LATER).unwrap_or(used),
            }));
        }
        for folder in MADE {
            let found = files(&self.folder.join(folder));
            let found = found.filter(|(path, ..)| !kept.contains(path));
            entries.extend(found.map(|(path, size, used)| Entry {
                what: What::Made(path),
                size,
                used,
            }));
        }
        let roots = root::all(&self.folder.join("rootfs")).unwrap_or_default();
        entries.extend(roots.into_iter().filter_map(|path| {
            let (used, size) = root::used(&path).ok()?;
            let what = What::Root(path);
            Some(Entry { what, size, used })
        }));
        entries
    }

    /// Returns the templates without a name, and the files that the others need.
    fn templates(&self) -> (Vec<Entry>, HashSet<PathBuf>) {
        let all = self.templates.list().unwrap_or_default();
        let kept = all.iter().flat_map(Listed::needs).collect();
        let unnamed = all.into_iter().filter(|template| template.is_unnamed());
        let entries = unnamed.filter_map(|template| {
            Some(Entry {
                what: What::Template(template.name),
                size: template.size,
                used: template.used?,
            })
        });
        (entries.collect(), kept)
    }
}

/// Returns the files in a folder, with their sizes and times.
pub(super) fn files(folder: &Path) -> impl Iterator<Item = (PathBuf, u64, SystemTime)> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((entry.path(), metadata.len(), metadata.modified().ok()?))
    })
}

#[cfg(test)]
mod tests;

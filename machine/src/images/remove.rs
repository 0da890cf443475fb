//! Removal of single images from the cache, with all that was made of them.
//!
//! An image goes whole, or stays. First its files are looked at: one that is in use keeps them all. Then goes what was made of it,
//! then its content, its records, and its names at last. So a process that is killed in between leaves an image that is still listed
//! and can be removed again; what it has left of the files, each whole, no run takes for all of the image.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use minivm_image::Source;
use minivm_image::inventory::Tagged;
use minivm_image::io_error::failed;
use minivm_image::publish::{self, tree};

use super::list::{CachedImage, Part};
use super::{ImageCache, root};
use crate::templates::{self, Templates};

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The image, with so many bytes.
    Image(u64),
    /// The name alone: the image has this one, too.
    Name(String),
}

/// The reason why an image can't be removed.
#[derive(Debug, thiserror::Error)]
pub enum Unremoved {
    /// The cache has no such image.
    #[error("there is no image {0:?} in the cache: `minivm images` shows those that are there")]
    Missing(String),
    /// The text is the beginning of several ids.
    #[error("{0:?} is the beginning of {1} ids: write more of it")]
    Ambiguous(String, usize),
    /// A process uses the image.
    #[error("{0} is in use, and stays: remove it when the commands that use it have ended")]
    InUse(String),
    /// A template with a name needs the image.
    #[error(
        "{image} stays, for the template {template} needs it: `minivm template rm {template}` removes that"
    )]
    Needed {
        /// The image.
        image: String,
        /// The template's name.
        template: String,
    },
    /// Another process changes the store.
    #[error("an image is being pulled or removed: try again when that is done")]
    Busy,
    /// The store can't be locked.
    #[error(transparent)]
    Image(#[from] minivm_image::Error),
    /// A file or folder can't be removed.
    #[error(transparent)]
    Cache(#[from] super::Error),
    /// A template can't be removed.
    #[error(transparent)]
    Template(#[from] templates::Error),
}

impl ImageCache {
    /// Removes the image that has this name, digest or id, or the only one whose id begins so. A name that isn't the image's
    /// only one is removed alone.
    ///
    /// # Errors
    ///
    /// [`Unremoved`]. The image stays where it is in use; where a part of it can't be removed, it can be removed again.
    pub fn remove(&self, text: &str) -> Result<Removed, Unremoved> {
        let store = self.store();
        let alone = match store.folder().exists() {
            true => Some(store.hold_alone()?.ok_or(Unremoved::Busy)?),
            false => None,
        };
        let all = self.list().images;
        let plan = Plan::by_name(&all, text).map_or_else(|| Plan::by_digest(&all, text), Ok)?;
        for image in &plan.gone {
            check(image)?;
        }
        let mut freed = 0;
        for image in &plan.gone {
            freed += self.remove_one(&image.id)?;
        }
        for tag in plan.tags {
            remove_file(tag)?;
        }
        drop(alone);
        Ok(match plan.other {
            Some(other) if plan.gone.is_empty() => Removed::Name(other),
            _ => Removed::Image(freed),
        })
    }

    /// Removes the image of this id but for its names; returns its bytes. It is looked up anew, for it may share content with one that
    /// has just gone.
    fn remove_one(&self, id: &str) -> Result<u64, Unremoved> {
        let images = self.list().images;
        let mut freed = 0;
        for image in images.iter().filter(|image| image.id == id) {
            for part in &image.parts {
                freed += self.remove_part(part, image)?;
            }
        }
        Ok(freed)
    }

    fn remove_part(&self, part: &Part, image: &CachedImage) -> Result<u64, Unremoved> {
        let in_use = || Unremoved::InUse(called(image));
        match part {
            Part::File(path) => remove_file(path)?.ok_or_else(in_use),
            Part::Root(path) => match root::remove_unused(path) {
                (cleared, true) => Ok(cleared.freed),
                (cleared, false) if cleared.left.is_empty() => Err(in_use()),
                (cleared, false) => Ok(cleared.whole()?),
            },
            Part::Template(name) => match Templates::new(&self.folder).remove(name) {
                Err(templates::Error::Missing(_)) => Ok(0),
                removed => Ok(removed?),
            },
        }
    }
}

/// What is removed.
#[derive(Default)]
struct Plan<'l> {
    gone: Vec<&'l CachedImage>,
    /// The files of names.
    tags: BTreeSet<&'l Path>,
    /// Another name of an image that stays.
    other: Option<String>,
}

impl<'l> Plan<'l> {
    /// Plans the removal of a name, as `minivm run` takes it, with the images that have no other; `None` where no image has it.
    fn by_name(images: &'l [CachedImage], text: &str) -> Option<Plan<'l>> {
        let source: Source = text.parse().ok()?;
        let name = source.to_string();
        let mut plan = Plan::default();
        for image in images.iter().filter(|image| image.names.contains(&name)) {
            let is_it = |tag: &&Tagged| tag.name.to_string() == name;
            let tags = image.tags.iter().filter(is_it);
            plan.tags.extend(tags.map(|tag| tag.path.as_path()));
            match image.tags.iter().find(|tag| !is_it(tag)) {
                Some(other) => plan.other = Some(other.name.to_string()),
                None => plan.gone.push(image),
            }
        }
        (plan.other.is_some() || !plan.gone.is_empty()).then_some(plan)
    }

    /// Plans the removal of images by a digest, `NAME@DIGEST`, an id, or the beginning of an id.
    fn by_digest(images: &'l [CachedImage], text: &str) -> Result<Plan<'l>, Unremoved> {
        let digits = text.rsplit_once('@').map_or(text, |(_, digest)| digest);
        let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
        // An index is that of all its images.
        let is_it = |image: &&CachedImage| {
            image.id_digits() == digits || image.digests.iter().any(|digest| digest.hex() == digits)
        };
        let begins = |image: &&CachedImage| image.id_digits().starts_with(digits);
        let exact: Vec<_> = images.iter().filter(is_it).collect();
        let begun = images.iter().filter(begins);
        let begun: Vec<_> = begun.filter(|_| !digits.is_empty()).collect();
        match (exact.len(), begun.len()) {
            (0, 0) => Err(Unremoved::Missing(text.to_owned())),
            (0, 1) => Ok(Plan::of(begun, images)),
            (0, count) => Err(Unremoved::Ambiguous(text.to_owned(), count)),
            _ => Ok(Plan::of(exact, images)),
        }
    }

    /// Plans the removal of these images. Names that stand for others too stay theirs.
    fn of(gone: Vec<&'l CachedImage>, all: &'l [CachedImage]) -> Plan<'l> {
        let stays = |image: &&CachedImage| gone.iter().all(|gone| gone.id != image.id);
        let theirs = all.iter().filter(stays).flat_map(|image| &image.tags);
        let theirs: BTreeSet<_> = theirs.map(|tag| tag.path.as_path()).collect();
        let tags = gone.iter().flat_map(|image| &image.tags);
        let tags = tags.map(|tag| tag.path.as_path());
        Plan {
            tags: tags.filter(|tag| !theirs.contains(tag)).collect(),
            gone,
            other: None,
        }
    }
}

/// Refuses an image that is needed or in use.
fn check(image: &CachedImage) -> Result<(), Unremoved> {
    if let Some(template) = &image.needed_by {
        return Err(Unremoved::Needed {
            image: called(image),
            template: template.clone(),
        });
    }
    let is_in_use = |part: &Part| match part {
        Part::File(path) => publish::is_in_use(path),
        Part::Root(path) => publish::is_in_use(&publish::Folder::new(path).lock_path()),
        // A clone keeps what it needs of it.
        Part::Template(_) => false,
    };
    match image.parts.iter().any(is_in_use) {
        true => Err(Unremoved::InUse(called(image))),
        false => Ok(()),
    }
}

/// Returns what an image is called in a message.
fn called(image: &CachedImage) -> String {
    let name = image.names.first().map(String::as_str);
    name.unwrap_or_else(|| image.short_id()).to_owned()
}

/// Removes a file; returns how many bytes it had, or `None` where it is in use.
fn remove_file(path: &Path) -> Result<Option<u64>, super::Error> {
    let size = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    let removed = tree::remove_file(path).map_err(failed("remove", path))?;
    Ok(removed.then_some(size))
}

#[cfg(test)]
mod tests;

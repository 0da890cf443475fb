//! Removal of single images from the cache, with all that was made of them.
//!
//! An image goes whole, or stays. First its files are looked at: one that is in use keeps them all. Then goes what was made of it,
//! then its content, its records, and its names at last. So a process that is killed in between leaves an image that is still listed
//! and can be removed again; what it has left of the files, each whole, no run takes for all of the image.

use std::fs;
use std::path::Path;

use minivm_image::io_error::failed;
use minivm_image::publish::{self, tree};
use minivm_image::{Digest, Source};

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
        "{image} stays, for the template {template} is made anew of it: `minivm template rm {template}` removes that"
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
    /// Removes the image that has this name, digest or id, or the only one whose id or digest begins so. A name that isn't the image's
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
        let found = find(&all, text)?;
        if let Found::Name { name, other } = &found {
            remove_tags(all.iter(), |tag| tag == name)?;
            return Ok(Removed::Name(other.clone()));
        }
        let Found::Images(images) = found else {
            return Err(Unremoved::Missing(text.to_owned()));
        };
        for image in &images {
            check(image)?;
        }
        let mut freed = 0;
        for image in &images {
            freed += self.remove_one(&image.id)?;
        }
        // Names that stand for other images too stay theirs.
        let gone = |image: &CachedImage| images.iter().any(|gone| gone.id == image.id);
        let theirs: Vec<_> = all.iter().filter(|image| !gone(image)).collect();
        let named = spelled(text);
        remove_tags(images.iter().copied(), |name| {
            named.as_deref() == Some(name)
                || !theirs
                    .iter()
                    .any(|image| image.names.iter().any(|n| n == name))
        })?;
        drop(alone);
        Ok(Removed::Image(freed))
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

/// What a text stands for.
enum Found<'l> {
    Images(Vec<&'l CachedImage>),
    /// A name of images that have others, too.
    Name {
        name: String,
        other: String,
    },
}

/// Finds what a text stands for: a name first, as in `minivm run`, then a digest, and then the beginning of one.
fn find<'l>(images: &'l [CachedImage], text: &str) -> Result<Found<'l>, Unremoved> {
    if let Some(name) = spelled(text) {
        let named = images.iter().filter(|image| image.names.contains(&name));
        let named: Vec<_> = named.collect();
        let other = |image: &&CachedImage| {
            let others = image.tags.iter().map(|tag| tag.name.to_string());
            others.into_iter().find(|other| *other != name)
        };
        let others: Vec<_> = named.iter().filter_map(other).collect();
        match others.into_iter().next() {
            Some(other) if named.iter().all(|image| image.tags.len() > 1) => {
                return Ok(Found::Name { name, other });
            }
            _ if !named.is_empty() => return Ok(Found::Images(named)),
            _ => {}
        }
    }
    by_digest(images, text)
}

/// Finds images by a digest, `NAME@DIGEST`, an id, or the beginning of one.
fn by_digest<'l>(images: &'l [CachedImage], text: &str) -> Result<Found<'l>, Unremoved> {
    let digits = text.rsplit_once('@').map_or(text, |(_, digest)| digest);
    let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
    if digits.is_empty() {
        return Err(Unremoved::Missing(text.to_owned()));
    }
    let is_so = |is: &dyn Fn(&str) -> bool| -> Vec<&CachedImage> {
        let of = |image: &&CachedImage| {
            let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
            is(id) || image.digests.iter().map(Digest::hex).any(is)
        };
        images.iter().filter(of).collect()
    };
    // An index is that of all its images.
    let exact = is_so(&|id| id == digits);
    if !exact.is_empty() {
        return Ok(Found::Images(exact));
    }
    let begun = is_so(&|id| id.starts_with(digits));
    match begun.len() {
        0 => Err(Unremoved::Missing(text.to_owned())),
        1 => Ok(Found::Images(begun)),
        count => Err(Unremoved::Ambiguous(text.to_owned(), count)),
    }
}

/// Returns a name as images' names are spelled here.
fn spelled(text: &str) -> Option<String> {
    let source: Source = text.parse().ok()?;
    Some(source.to_string())
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

/// Removes the files of the names that are `meant`.
fn remove_tags<'l>(
    images: impl Iterator<Item = &'l CachedImage>,
    meant: impl Fn(&str) -> bool,
) -> Result<(), Unremoved> {
    let tags = images.flat_map(|image| &image.tags);
    for tag in tags.filter(|tag| meant(&tag.name.to_string())) {
        remove_file(&tag.path)?;
    }
    Ok(())
}

/// Removes a file; returns how many bytes it had, or `None` where it is in use.
fn remove_file(path: &Path) -> Result<Option<u64>, super::Error> {
    let size = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    let removed = tree::remove_file(path).map_err(failed("remove", path))?;
    Ok(removed.then_some(size))
}

#[cfg(test)]
mod tests;

//! Images in OCI layouts, which are folders or archives of them.
//!
//! `index.json` is an index of the layout's images, whose names are annotations; content is in `blobs/sha256/<hex>` (OCI
//! image specification, "Image Layout").

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use super::archive::Archive;
use super::digest::Digest;
use super::error::Error;
use super::files;
use super::image::{Blob, Described};
use super::manifest::{self, Descriptor, Documents, Kind, LARGEST_MANIFEST};
use super::platform::Platform;
use super::reference::Reference;
use super::saved::not_chosen;
use super::shown::shown;

/// The annotation that has the image's name in the layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Docker's annotation, which has the repository as well.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// The container of a layout's files. Names come from here or from digests, never from a document.
pub(super) trait Members {
    fn name(&self) -> &str;
    fn member(&self, name: &str) -> Result<Option<Blob>, Error>;
}

impl Members for Archive {
    fn name(&self) -> &str {
        &self.name
    }

    fn member(&self, name: &str) -> Result<Option<Blob>, Error> {
        Ok(Archive::member(self, name))
    }
}

/// A folder on the host.
pub(super) struct Folder {
    name: String,
    path: PathBuf,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Folder {
        let name = path.display().to_string();
        Folder { name, path }
    }
}

impl Members for Folder {
    fn name(&self) -> &str {
        &self.name
    }

    fn member(&self, name: &str) -> Result<Option<Blob>, Error> {
        let path = self.path.join(name);
        let blob = files::open_regular(&path)
            .and_then(|file| files::whole(file, format!("{name} of {}", self.name)));
        match blob {
            Ok(blob) => Ok(Some(blob)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.is_dir() => Ok(None),
            Err(error) => Err(Error::reading(path.display())(error)),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<Descriptor>>,
}

struct Layout<'a>(&'a dyn Members);

impl Layout<'_> {
    fn blob(&self, digest: &Digest) -> Result<Blob, Error> {
        let blob = self.0.member(&format!("blobs/sha256/{}", digest.hex()))?;
        blob.ok_or_else(|| {
            let problem = format!("has no {digest}: it is incomplete, copy the image again");
            Error::invalid(self.0.name(), problem)
        })
    }
}

impl Documents for Layout<'_> {
    fn document(&self, descriptor: &Descriptor, kind: Kind) -> Result<Vec<u8>, Error> {
        files::read_document(&self.blob(&descriptor.digest)?, descriptor, kind)
    }
}

/// Opens the layout's image of that name, or its only one.
pub(super) fn open(
    members: &dyn Members,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Described, Error> {
    let name = members.name();
    let index = members.member("index.json")?.ok_or_else(|| {
        Error::invalid(name, "has no index.json: it is neither an OCI layout nor what `docker save` writes; a root file system is tar:FILE or dir:FOLDER")
    })?;
    let index = files::read(&index, LARGEST_MANIFEST)?;
    let index: Index = crate::json::read(&index).map_err(|source| Error::Json {
        image: name.into(),
        what: "index.json",
        source,
    })?;
    let layout = Layout(members);
    let top = choose(name, index.manifests.unwrap_or_default(), tag, platform)?;
    let documented = manifest::read(&layout, name, &top, platform)?;
    let mut blobs = Vec::new();
    for layer in &documented.manifest.layers {
        let mut blob = layout.blob(&layer.digest)?;
        blob.name = format!("layer {} of {name}", layer.digest);
        files::check_size(&blob, layer)?;
        blobs.push(blob);
    }
    Ok(documented.image(blobs))
}

fn names(entry: &Descriptor) -> impl Iterator<Item = &String> {
    let annotations = entry.annotations.iter();
    annotations.flat_map(|all| {
        [REF_NAME, IMAGE_NAME]
            .into_iter()
            .filter_map(|key| all.get(key))
    })
}

/// Chooses the entry to start from. Entries with one name, or all without one, may be one image for several platforms.
fn choose(
    name: &str,
    entries: Vec<Descriptor>,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Descriptor, Error> {
    let reference = tag.and_then(|tag| tag.parse::<Reference>().ok());
    // Attestations are hidden so from searches for a platform.
    let unknown = |entry: &Descriptor| entry.platform.as_ref().is_some_and(|p| p.os == "unknown");
    let wanted = |entry: &Descriptor| match tag {
        None => true,
        Some(tag) => names(entry).any(|name| {
            name == tag || (reference.is_some() && name.parse::<Reference>().ok() == reference)
        }),
    };
    let entries = entries.into_iter().filter(|entry| !unknown(entry));
    let (mut found, others): (Vec<_>, Vec<_>) = entries.partition(wanted);
    let total = found.len() + others.len();
    let there: BTreeSet<String> = found
        .iter()
        .chain(&others)
        .flat_map(names)
        .map(|name| shown(name))
        .take(50)
        .collect();
    found.sort_by(|a, b| a.digest.cmp(&b.digest));
    found.dedup_by(|a, b| a.digest == b.digest);
    if is_one_image(&found) {
        return for_platform(name, found, platform);
    }
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        _ => {
            let there: Vec<String> = there.into_iter().collect();
            Err(not_chosen(name, tag.map(str::to_owned), &there, total))
        }
    }
}

/// Whether several entries are one image for several platforms.
fn is_one_image(entries: &[Descriptor]) -> bool {
    let called: BTreeSet<_> = entries.iter().map(|entry| names(entry).next()).collect();
    let platforms = entries.iter().all(|entry| entry.platform.is_some());
    entries.len() > 1 && called.len() == 1 && platforms
}

fn for_platform(
    name: &str,
    entries: Vec<Descriptor>,
    wanted: &Platform,
) -> Result<Descriptor, Error> {
    let platforms = entries.iter().filter_map(|entry| entry.platform.as_ref());
    let there: Vec<String> = platforms.map(Platform::to_string).collect();
    let fits = |entry: &Descriptor| entry.platform.as_ref().is_some_and(|p| p.fits(wanted));
    entries
        .into_iter()
        .find(fits)
        .ok_or_else(|| Error::Platform {
            image: name.into(),
            wanted: wanted.to_string(),
            there: there.join(", "),
        })
}

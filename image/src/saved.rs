//! Images in archives of `docker save`.
//!
//! `manifest.json` lists the images: the name of each one's configuration, its tags, and the names of its layers. Older
//! Dockers name a layer `<id>/layer.tar` and link equal ones; newer ones (25 on) write an OCI layout beside it and name
//! `blobs/sha256/<hex>`; Podman names `<hex>.tar`. Nothing here depends on which.

use serde::Deserialize;

use super::archive::Archive;
use super::config;
use super::digest::Digest;
use super::error::Error;
use super::files;
use super::image::{Blob, Described, Originals};
use super::manifest::{self, LARGEST_CONFIG, LARGEST_MANIFEST};
use super::platform::Platform;
use super::reference::Reference;
use super::shown::shown;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Whether `docker save` wrote the archive.
pub(super) fn is_saved(archive: &Archive) -> bool {
    archive.member("manifest.json").is_some()
}

/// Opens the archive's image of that name, or its only one.
pub(super) fn open(
    archive: &Archive,
    wanted: Option<&Reference>,
    platform: &Platform,
) -> Result<Described, Error> {
    let list = files::read(&member(archive, "manifest.json")?, LARGEST_MANIFEST)?;
    let list: Vec<Saved> = crate::json::read(&list).map_err(|source| Error::Json {
        image: archive.name.clone(),
        what: "manifest.json",
        source,
    })?;
    let saved = choose(archive, list, wanted)?;
    let bytes = files::read(&member(archive, &saved.config)?, LARGEST_CONFIG)?;
    let digest = Digest::of(&bytes);
    // The configuration is named by its digest; where the name is not a digest, there is nothing to compare.
    let stem = saved.config.trim_end_matches(".json");
    let stem = stem.rsplit('/').next().unwrap_or(stem);
    if let Some(named) = Digest::from_hex(stem) {
        let what = format!("the configuration of {}", archive.name);
        files::check_digest(&what, &bytes, &named)?;
    }
    let (config, diff_ids) = config::read(&archive.name, &bytes, platform)?;
    let names = saved.layers.unwrap_or_default();
    manifest::check_layer_count(&archive.name, names.len(), diff_ids.len())?;
    let layers = names.iter().map(|name| layer(archive, name));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    Ok(Described {
        image: manifest::assemble(digest, config, diff_ids, layers),
        originals: Some(Originals {
            config: bytes,
            manifest: None,
        }),
    })
}

fn layer(archive: &Archive, name: &str) -> Result<Blob, Error> {
    let mut blob = member(archive, name)?;
    blob.name = format!("layer {}", blob.name);
    Ok(blob)
}

fn member(archive: &Archive, name: &str) -> Result<Blob, Error> {
    archive.member(name).ok_or_else(|| {
        let problem = format!("has no {}: it is incomplete, save it again", shown(name));
        Error::invalid(&archive.name, problem)
    })
}

fn choose(
    archive: &Archive,
    mut list: Vec<Saved>,
    wanted: Option<&Reference>,
) -> Result<Saved, Error> {
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let found = match wanted {
        None if list.len() == 1 => Some(0),
        None => None,
        Some(wanted) => {
            let is = |tag: &String| tag.parse::<Reference>().is_ok_and(|tag| tag == *wanted);
            list.iter().position(|saved| tags(saved).iter().any(is))
        }
    };
    if let Some(found) = found {
        return Ok(list.swap_remove(found));
    }
    let all: Vec<String> = list
        .iter()
        .flat_map(tags)
        .map(|tag| shown(&tag))
        .take(50)
        .collect();
    Err(not_chosen(
        &archive.name,
        wanted.map(ToString::to_string),
        &all,
        list.len(),
    ))
}

/// Returns why nothing was chosen: there is no such image, or there are several and no name.
pub(super) fn not_chosen(
    name: &str,
    wanted: Option<String>,
    there: &[String],
    count: usize,
) -> Error {
    let there = match there {
        [] => "its images have no names".to_owned(),
        there => format!("there are: {}", there.join(", ")),
    };
    match wanted {
        Some(wanted) => Error::NoImage {
            name: name.into(),
            wanted: shown(&wanted),
            remedy: there,
        },
        None if count == 0 => Error::invalid(name, "has no images"),
        None => Error::invalid(
            name,
            format!("has {count} images: add a colon and the name of one; {there}"),
        ),
    }
}

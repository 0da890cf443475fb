//! Images as archives of OCI layouts, which `docker load`, Podman and skopeo read.
//!
//! ```text
//! oci-layout            what the archive is
//! index.json            the image: its manifest, its platform, its names (OCI image specification, "Image Layout")
//! manifest.json         the same for engines that know no layouts, as `docker save` writes it
//! blobs/sha256/<hex>    configuration, manifest and layers
//! ```
//!
//! An image that has a manifest keeps it, its configuration and its layers byte for byte, and so all digests. One that has none, in an
//! archive of `docker save` or as a bare archive of a root file system, gets one that names plain layers. Its configuration stays what it
//! was, where there is one. No owner, time or order depends on when and where it is written: the same image makes the same bytes.
//!
//! Images are hostile. Each layer is hashed as it is copied, and one that isn't what its digest says is an error, before which the
//! archive has no end: a reader of a pipe finds it truncated.

mod archive;
mod content;
mod name;

use std::io::{self, Write};

use serde_json::{Value, json};

use super::digest::Digest;
use super::error::Error;
use super::image::{Described, Originals, Root};
use super::manifest::Manifest;
use super::platform::Platform;
use super::rootfs::{self, Summary};
use super::source::Source;

use archive::Archive;
use content::Content;
use name::Name;

/// Types of documents and layers (OCI image specification, "Media Types").
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's type of a manifest ("Image Manifest Version 2, Schema 2").
const DOCKERS_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The reason why an image can't be saved.
#[derive(Debug, thiserror::Error)]
pub enum Unsaved {
    /// The image, or a part of it.
    #[error(transparent)]
    Image(#[from] Error),
    /// A layer can't be decompressed.
    #[error(transparent)]
    Layer(#[from] rootfs::Error),
    /// The archive can't be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// Writes the image's archive. `source` is what the user called the image, which names it in the archive, and `platform` what it was
/// opened for. Layers may have `limit` bytes together. Returns the number of the archive's files, and its bytes.
///
/// # Errors
///
/// [`Unsaved`]; [`Error::Unsupported`] for a folder, which has no layers.
pub fn write(
    found: &Described,
    source: &Source,
    platform: &Platform,
    limit: u64,
    out: impl Write,
) -> Result<Summary, Unsaved> {
    let saved = Saved::of(found, source, platform, limit)?;
    let name = Name::of(source);
    let mut archive = Archive::new(out);
    archive.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.document("index.json", &bytes(&saved.index(&name, platform)))?;
    archive.document("manifest.json", &bytes(&saved.dockers(&name)))?;
    archive.document(&path(&saved.config_digest), &saved.config)?;
    archive.document(&path(&saved.manifest_digest), &saved.manifest)?;
    for layer in &saved.layers {
        archive.layer(&path(&layer.digest), layer)?;
    }
    archive.finish()
}

/// All that the archive gets.
struct Saved {
    config: Vec<u8>,
    config_digest: Digest,
    manifest: Vec<u8>,
    manifest_digest: Digest,
    media_type: &'static str,
    layers: Vec<Content>,
}

impl Saved {
    fn of(
        found: &Described,
        source: &Source,
        platform: &Platform,
        limit: u64,
    ) -> Result<Saved, Unsaved> {
        let Root::Layers(layers) = &found.image.root else {
            let problem = "is a folder, which has no layers: save an archive of it, as `tar -C FOLDER -cf FILE .` and tar:FILE";
            return Err(unsupported(source, problem));
        };
        let originals = found.originals.as_ref();
        if let Some(Originals {
            config,
            manifest: Some(manifest),
        }) = originals
        {
            let described = manifest.layers.iter().zip(layers);
            let layers =
                described.map(|(named, layer)| Content::stored(&named.digest, &layer.blob));
            let layers: Vec<_> = layers.collect();
            content::check_total(&source.to_string(), &layers, limit)?;
            return Ok(Saved::with_manifest(config, manifest, layers));
        }
        let name = source.to_string();
        let layers = content::plain(&name, layers, limit)?;
        let config = match originals {
            Some(originals) => originals.config.clone(),
            None => bytes(&bare_config(platform, &layers)),
        };
        Ok(Saved::without_manifest(config, layers))
    }

    fn with_manifest(config: &[u8], manifest: &Manifest, layers: Vec<Content>) -> Saved {
        Saved {
            config: config.to_owned(),
            config_digest: manifest.config.digest.clone(),
            manifest_digest: Digest::of(&manifest.bytes),
            media_type: media_type(&manifest.bytes),
            manifest: manifest.bytes.clone(),
            layers,
        }
    }

    fn without_manifest(config: Vec<u8>, layers: Vec<Content>) -> Saved {
        let config_digest = Digest::of(&config);
        let described = layers
            .iter()
            .map(|layer| descriptor(LAYER, &layer.digest, layer.len));
        let manifest = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config_digest, config.len() as u64),
            "layers": described.collect::<Vec<_>>(),
        }));
        Saved {
            config,
            config_digest,
            manifest_digest: Digest::of(&manifest),
            media_type: MANIFEST,
            manifest,
            layers,
        }
    }

    /// Returns the archive's index of its one image.
    fn index(&self, name: &Name, platform: &Platform) -> Value {
        let len = self.manifest.len() as u64;
        let mut manifest = descriptor(self.media_type, &self.manifest_digest, len);
        manifest["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
        let annotations = name.annotations();
        if !annotations.is_empty() {
            manifest["annotations"] = json!(annotations);
        }
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]})
    }

    /// Returns what `docker save` calls the manifest: the names of the archive's files.
    fn dockers(&self, name: &Name) -> Value {
        let layers = self.layers.iter().map(|layer| path(&layer.digest));
        json!([{
            "Config": path(&self.config_digest),
            "RepoTags": name.tagged().map(|name| [name]),
            "Layers": layers.collect::<Vec<_>>(),
        }])
    }
}

/// Returns the configuration of a root file system without one.
fn bare_config(platform: &Platform, layers: &[Content]) -> Value {
    let diff_ids = layers.iter().map(|layer| layer.digest.to_string());
    json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>()},
    })
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

/// Returns the type of a manifest, which OCI's needn't have in it.
fn media_type(manifest: &[u8]) -> &'static str {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed: Option<Typed> = super::json::read(manifest).ok();
    match typed.and_then(|typed| typed.media_type) {
        Some(dockers) if dockers == DOCKERS_MANIFEST => DOCKERS_MANIFEST,
        _ => MANIFEST,
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn unsupported(source: &Source, problem: &str) -> Unsaved {
    Unsaved::Image(Error::Unsupported {
        image: source.to_string(),
        problem: problem.into(),
    })
}

#[cfg(test)]
mod tests;

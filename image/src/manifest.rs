//! An image's documents: index, manifest and configuration.
//!
//! A *configuration* says how an image is run and, by their decompressed digests, what its layers are. A *manifest* names
//! one configuration and the layers as they are stored. An *index* (Docker's "manifest list") names manifests, or further
//! indexes, for several platforms. Docker's and OCI's differ in their media types only (OCI image specification,
//! "Image Manifest", "Image Index", "Image Configuration"; Docker's "Image Manifest Version 2, Schema 2").

use std::collections::BTreeMap;

use serde::Deserialize;

use super::config;
use super::digest::Digest;
use super::error::Error;
use super::image::{Blob, Config, Described, Image, Layer, Originals, Root};
use super::platform::Platform;
use super::shown::shown;

/// The largest index or manifest, as registries have it.
pub(super) const LARGEST_MANIFEST: u64 = 4 << 20;
/// The largest configuration.
pub(super) const LARGEST_CONFIG: u64 = 8 << 20;
const MOST_LAYERS: usize = 1000;
/// How deep indexes may be nested.
const DEEPEST: usize = 4;
/// How many indexes and manifests are looked at for one image.
const MOST_DOCUMENTS: usize = 100;

/// The name of a piece of content, and what is known of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    /// In bytes; unknown where all that is known is the digest.
    pub(super) size: Option<u64>,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(super) fn bare(digest: Digest) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest,
            size: None,
            platform: None,
            annotations: None,
        }
    }
}

/// The kind of a document, by which it is found and limited in size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Config,
}

impl Kind {
    pub(super) fn limit(self) -> u64 {
        match self {
            Kind::Manifest => LARGEST_MANIFEST,
            Kind::Config => LARGEST_CONFIG,
        }
    }

    pub(super) fn noun(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Config => "configuration",
        }
    }
}

/// A source of documents by their digests.
pub(super) trait Documents {
    /// Returns the document, its size and digest checked.
    fn document(&self, descriptor: &Descriptor, kind: Kind) -> Result<Vec<u8>, Error>;
}

/// An image's manifest.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) bytes: Vec<u8>,
    pub(super) config: Descriptor,
    /// The layers as they are stored, the lowest first.
    pub(super) layers: Vec<Descriptor>,
}

/// An image's documents, read and found to be consistent.
#[derive(Debug)]
pub(super) struct Documented {
    pub(super) manifest: Manifest,
    /// The configuration, as it was found.
    bytes: Vec<u8>,
    config: Config,
    diff_ids: Vec<Digest>,
}

/// Reads an image's documents, starting from its index or manifest.
pub(super) fn read(
    documents: &dyn Documents,
    image: &str,
    top: &Descriptor,
    platform: &Platform,
) -> Result<Documented, Error> {
    let mut search = Search {
        documents,
        image,
        platform,
        seen: Vec::new(),
        left: MOST_DOCUMENTS,
    };
    let manifest = search.manifest(top, 0)?;
    let manifest = manifest.ok_or_else(|| search.no_platform())?;
    let bytes = documents.document(&manifest.config, Kind::Config)?;
    let (config, diff_ids) = config::read(image, &bytes, platform)?;
    check_layer_count(image, manifest.layers.len(), diff_ids.len())?;
    Ok(Documented {
        manifest,
        bytes,
        config,
        diff_ids,
    })
}

impl Documented {
    /// Returns the image with its layers.
    pub(super) fn image(self, blobs: Vec<Blob>) -> Described {
        let digest = self.manifest.config.digest.clone();
        Described {
            image: assemble(digest, self.config, self.diff_ids, blobs),
            originals: Some(Originals {
                config: self.bytes,
                manifest: Some(self.manifest),
            }),
        }
    }
}

/// Returns an image of these parts.
pub(super) fn assemble(
    digest: Digest,
    config: Config,
    diff_ids: Vec<Digest>,
    blobs: Vec<Blob>,
) -> Image {
    let layers = blobs.into_iter().zip(diff_ids);
    let layers = layers.map(|(blob, diff_id)| Layer {
        blob,
        diff_id: Some(diff_id.to_string()),
    });
    Image {
        identity: digest.to_string(),
        config,
        root: Root::Layers(layers.collect()),
    }
}

/// Refuses layers that the configuration has no digests for: its digest is the image's identity, so it must cover them all.
pub(super) fn check_layer_count(image: &str, layers: usize, diff_ids: usize) -> Result<(), Error> {
    if layers > MOST_LAYERS {
        let problem = format!("has {layers} layers, more than the {MOST_LAYERS} that are accepted");
        return Err(Error::invalid(image, problem));
    }
    if layers != diff_ids {
        let problem = format!(
            "has {layers} layers, but its configuration has the digests of {diff_ids} (rootfs.diff_ids)"
        );
        return Err(Error::invalid(image, problem));
    }
    Ok(())
}

/// The search for the one manifest that fits.
struct Search<'a> {
    documents: &'a dyn Documents,
    image: &'a str,
    platform: &'a Platform,
    /// The platforms found that don't fit.
    seen: Vec<String>,
    left: usize,
}

/// An index, a manifest, or Docker's first kind of manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u32>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

impl Search<'_> {
    fn manifest(
        &mut self,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Option<Manifest>, Error> {
        if depth > DEEPEST || self.left == 0 {
            let problem = "has too many or too deeply nested indexes";
            return Err(Error::invalid(self.image, problem));
        }
        self.left -= 1;
        let bytes = self.documents.document(descriptor, Kind::Manifest)?;
        let document: Document = crate::json::read(&bytes).map_err(|source| Error::Json {
            image: self.image.into(),
            what: "manifest",
            source,
        })?;
        match document {
            Document { schema_version: Some(1), .. } => Err(self.unsupported(
                "has a manifest of Docker's old schema 1: pull and push it again with a current Docker",
            )),
            Document { manifests: Some(manifests), config: None, layers: None, .. } => {
                self.index(manifests, depth)
            }
            Document { config: Some(config), layers: Some(layers), manifests: None, .. } => {
                self.check_types(&config, &layers)?;
                Ok(Some(Manifest { bytes, config, layers }))
            }
            _ => Err(Error::invalid(self.image, "has a manifest that is neither an OCI nor a Docker one")),
        }
    }

    /// Searches an index. Entries for the very platform come first; those without one are looked into, since their
    /// configuration has it.
    fn index(&mut self, entries: Vec<Descriptor>, depth: usize) -> Result<Option<Manifest>, Error> {
        let mut candidates = Vec::new();
        for entry in entries {
            match &entry.platform {
                Some(platform) if !platform.fits(self.platform) => self.note(platform),
                Some(platform) if platform.is_basic() => candidates.push((0, entry)),
                Some(_) => candidates.push((1, entry)),
                None => candidates.push((2, entry)),
            }
        }
        candidates.sort_by_key(|(rank, _)| *rank);
        for (rank, entry) in candidates {
            match self.manifest(&entry, depth + 1)? {
                // Without a platform a manifest may be for another machine: then the next one has a chance.
                Some(found) if rank == 2 && !self.config_fits(&found.config)? => {}
                Some(found) => return Ok(Some(found)),
                None => {}
            }
        }
        Ok(None)
    }

    fn config_fits(&mut self, config: &Descriptor) -> Result<bool, Error> {
        let bytes = self.documents.document(config, Kind::Config)?;
        match config::read(self.image, &bytes, self.platform) {
            Ok(_) => Ok(true),
            Err(Error::Platform { there, .. }) => {
                self.seen.push(there);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes a platform that doesn't fit. Attestations are hidden in an index as `unknown/unknown`: a platform of no machine.
    fn note(&mut self, platform: &Platform) {
        let platform_text = platform.to_string();
        if platform.os != "unknown" && !self.seen.contains(&platform_text) && self.seen.len() < 50 {
            self.seen.push(platform_text);
        }
    }

    fn no_platform(&self) -> Error {
        let there = match self.seen.is_empty() {
            true => "none: its index is empty".to_owned(),
            false => self.seen.join(", "),
        };
        Error::Platform {
            image: self.image.into(),
            wanted: self.platform.to_string(),
            there,
        }
    }

    fn check_types(&self, config: &Descriptor, layers: &[Descriptor]) -> Result<(), Error> {
        let image_types = [
            "",
            "application/octet-stream",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        ];
        if !image_types.contains(&config.media_type.as_str()) {
            let kind = shown(&config.media_type);
            return Err(self.unsupported(&format!(
                "is not a container image: its configuration has the type {kind}"
            )));
        }
        if layers
            .iter()
            .any(|layer| layer.media_type.ends_with("+encrypted"))
        {
            return Err(self.unsupported("has encrypted layers: decrypt it first, with skopeo"));
        }
        Ok(())
    }

    fn unsupported(&self, problem: &str) -> Error {
        Error::Unsupported {
            image: self.image.into(),
            problem: problem.into(),
        }
    }
}

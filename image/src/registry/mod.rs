//! Pulls images from registries (OCI distribution specification, "Pull").
//!
//! A tag is resolved to the digest of a manifest or an index; all else is requested by digest and therefore kept for good.
//! What the store has is not requested again, so an image that was pulled opens without a network.

mod auth;
mod client;
mod content;
mod download;
mod failure;
mod redirect;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::File;
use std::sync::{Mutex, OnceLock};

use super::digest::Digest;
use super::error::Error;
use super::files;
use super::image::{Described, Image, Known};
use super::manifest::{self, Descriptor, Documents, Kind};
use super::options::{Options, Pull};
use super::progress::Progress;
use super::reference::Reference;
use super::store::{Record, Store};

use client::Client;

/// Opens an image of a registry.
pub(super) fn open(
    name: &Reference,
    store: &Store,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Described, Error> {
    let pulled = Pulled {
        name,
        image: name.to_string(),
        store,
        options,
        client: OnceLock::new(),
        read: Mutex::default(),
    };
    let top = pulled.top()?;
    let descriptor = Descriptor::bare(top.digest.clone());
    let documented = manifest::read(&pulled, &pulled.image, &descriptor, &options.platform)?;
    let layers = &documented.manifest.layers;
    let files = pulled.layers(layers, progress)?;
    // Not before: the tag of a failed pull is to be resolved again.
    if let Some(key) = top.news {
        store.remember(&key, &top.digest)?;
    }
    let mut blobs = Vec::new();
    for (layer, file) in layers.iter().zip(files) {
        let blob = files::whole(file, format!("layer {} of {}", layer.digest, pulled.image));
        blobs.push(blob.map_err(|source| Error::Store {
            path: store.blob_path(&layer.digest),
            source,
        })?);
    }
    let layers = layers.iter().map(|layer| layer.digest.clone());
    let layers: Vec<_> = layers.collect();
    let described = documented.image(blobs);
    pulled.record(top.digest, layers, &described.image);
    Ok(described)
}

/// Returns what opening an image would find, where it was opened before and all of it is still in the store.
pub(super) fn known(
    name: &Reference,
    store: &Store,
    options: &Options,
) -> Result<Option<Known>, Error> {
    let digest = match name.digest() {
        Some(digest) => Some(digest.clone()),
        None if options.pull == Pull::Always => None,
        None => store.remembered(&name.unabridged())?,
    };
    let Some(digest) = digest else {
        return Ok(None);
    };
    let Some(record) = store.recorded(&digest, &options.platform)? else {
        return Ok(None);
    };
    let mut held = Vec::new();
    for blob in &record.blobs {
        match store.blob(blob, None)? {
            Some(file) => held.push(file),
            None => return Ok(None),
        }
    }
    Ok(Some(Known {
        identity: record.identity,
        config: record.config,
        _held: held,
    }))
}

/// An image, pulled as far as it is in the store.
struct Pulled<'a> {
    name: &'a Reference,
    image: String,
    store: &'a Store,
    options: &'a Options,
    /// Made when it is needed: it reads the system's root certificates and starts a thread.
    client: OnceLock<Client<'a>>,
    /// The documents that were read.
    read: Mutex<Vec<Digest>>,
}

/// The index or manifest that a name stands for.
struct Top {
    digest: Digest,
    /// The name to remember it by, if the registry resolved it just now.
    news: Option<String>,
}

impl<'a> Pulled<'a> {
    fn top(&self) -> Result<Top, Error> {
        let known = |digest| Top { digest, news: None };
        if let Some(digest) = self.name.digest() {
            return Ok(known(digest.clone()));
        }
        let key = self.name.unabridged();
        if self.options.pull != Pull::Always
            && let Some(digest) = self.store.remembered(&key)?
        {
            return Ok(known(digest));
        }
        let (bytes, announced) =
            self.client()?
                .document("manifests", self.name.tag(), Kind::Manifest)?;
        let digest = Digest::of(&bytes);
        if let Some(announced) = announced
            && announced != digest
        {
            let what = format!("the manifest of {}", self.image);
            files::check_digest(&what, &bytes, &announced)?;
        }
        self.store.keep(&digest, &bytes)?;
        let news = Some(key);
        Ok(Top { digest, news })
    }

    /// Records what was found. The next process that can't read it opens the image anew.
    fn record(&self, manifest: Digest, layers: Vec<Digest>, image: &Image) {
        let mut blobs = self.read.lock().expect("no holder panics").clone();
        blobs.extend(layers);
        blobs.sort();
        blobs.dedup();
        let platform = self.options.platform.clone();
        let is_recorded = self.store.recorded(&manifest, &platform);
        if matches!(is_recorded, Ok(Some(_))) {
            return;
        }
        let record = Record {
            manifest,
            platform,
            identity: image.identity.clone(),
            config: image.config.clone(),
            blobs,
        };
        if let Err(error) = self.store.record(&record) {
            log::debug!("{error}: {} is read anew by the next run", self.image);
        }
    }

    /// Returns the client of the registry, if a pull is allowed.
    fn client(&self) -> Result<&Client<'a>, Error> {
        if self.options.pull == Pull::Never {
            return Err(Error::NotStored {
                image: self.image.clone(),
            });
        }
        match self.client.get() {
            Some(client) => Ok(client),
            None => {
                let client = Client::new(self.name, self.options)?;
                Ok(self.client.get_or_init(|| client))
            }
        }
    }

    /// Opens the layers. Those that the store lacks are pulled, some at once; the first failure ends all.
    fn layers(&self, layers: &[Descriptor], progress: &dyn Progress) -> Result<Vec<File>, Error> {
        // An image may have one layer several times.
        let mut seen = HashSet::new();
        let all = layers.iter().filter(|layer| seen.insert(&layer.digest));
        let all: Vec<&Descriptor> = all.collect();
        if let Ok(files) = self.opened(layers)? {
            all.iter().for_each(|layer| progress.done(&layer.digest));
            return Ok(files);
        }
        self.check_total(&all)?;
        self.client()?;
        // The store isn't cleared until all layers are open.
        let _held = self.store.hold()?;
        let missing = self.missing(&all)?;
        let there = |layer: &&&Descriptor| missing.iter().all(|m| m.digest != layer.digest);
        all.iter()
            .filter(there)
            .for_each(|layer| progress.done(&layer.digest));
        if !missing.is_empty() {
            self.pull(missing, progress)?;
        }
        self.opened(layers)?
            .map_err(|missing| self.vanished(&missing.digest))
    }

    /// Opens the layers, or returns the first that the store lacks. Those that are open stay in the store.
    fn opened<'d>(
        &self,
        layers: &'d [Descriptor],
    ) -> Result<Result<Vec<File>, &'d Descriptor>, Error> {
        let mut files = Vec::new();
        for layer in layers {
            match self.store.blob(&layer.digest, layer.size)? {
                Some(file) => files.push(file),
                None => return Ok(Err(layer)),
            }
        }
        Ok(Ok(files))
    }

    /// Returns the layers that the store lacks.
    fn missing<'d>(&self, layers: &[&'d Descriptor]) -> Result<Vec<&'d Descriptor>, Error> {
        let mut missing = Vec::new();
        for layer in layers {
            if self.store.blob(&layer.digest, layer.size)?.is_none() {
                missing.push(*layer);
            }
        }
        Ok(missing)
    }

    /// Refuses layers that would be too much for a disk before any of them is pulled.
    fn check_total(&self, layers: &[&Descriptor]) -> Result<(), Error> {
        let limit = self.options.largest;
        let mut total: u64 = 0;
        for layer in layers {
            let size = layer.size.unwrap_or_default();
            total = total.saturating_add(size);
            let what = match size > limit {
                true => format!("layer {} of {}", layer.digest, self.image),
                false => self.image.clone(),
            };
            if total > limit {
                return Err(Error::TooLarge { what, limit });
            }
        }
        Ok(())
    }

    fn pull(&self, missing: Vec<&Descriptor>, progress: &dyn Progress) -> Result<(), Error> {
        let client = self.client()?;
        let threads = self.options.parallel.clamp(1, missing.len());
        let queue = Mutex::new(missing.into_iter());
        let failure = Mutex::new(None);
        let next = || queue.lock().expect("no holder panics").next();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(layer) = next() {
                        if let Err(error) = download::layer(client, self.store, layer, progress) {
                            // The other threads stop too, with errors that mean nothing.
                            let mut failure = failure.lock().expect("no holder panics");
                            failure.get_or_insert(error);
                            client.stop();
                        }
                        if client.is_stopped() {
                            break;
                        }
                    }
                });
            }
        });
        failure
            .into_inner()
            .expect("no holder panics")
            .map_or(Ok(()), Err)
    }

    fn vanished(&self, digest: &Digest) -> Error {
        Error::Store {
            path: self.store.blob_path(digest),
            source: std::io::Error::other("the layer was removed again: run it once more"),
        }
    }
}

impl Documents for Pulled<'_> {
    fn document(&self, descriptor: &Descriptor, kind: Kind) -> Result<Vec<u8>, Error> {
        let digest = &descriptor.digest;
        let mut read = self.read.lock().expect("no holder panics");
        read.push(digest.clone());
        drop(read);
        let what = format!("the {} {digest} of {}", kind.noun(), self.image);
        if let Some(file) = self.store.blob(digest, descriptor.size)?
            && let Ok(blob) = files::whole(file, what.clone())
            && let Ok(bytes) = files::read_document(&blob, descriptor, kind)
        {
            return Ok(bytes);
        }
        let client = self.client()?;
        if descriptor.size.is_some_and(|size| size > kind.limit()) {
            let limit = kind.limit();
            return Err(Error::TooLarge { what, limit });
        }
        let folder = match kind {
            Kind::Manifest => "manifests",
            Kind::Config => "blobs",
        };
        let (bytes, _) = client.document(folder, &digest.to_string(), kind)?;
        files::check_digest(&what, &bytes, digest)?;
        self.store.keep(digest, &bytes)?;
        Ok(bytes)
    }
}

//! Pulls one layer into the store.

use std::io::{Seek, SeekFrom, Write};

use reqwest::StatusCode;
use reqwest::blocking::Response;
use reqwest::header::CONTENT_RANGE;

use super::client::Client;
use super::failure::Failure;
use crate::digest::Hasher;
use crate::error::Error;
use crate::manifest::Descriptor;
use crate::progress::Progress;
use crate::publish::Partial;
use crate::store::Store;

/// Pulls a layer, or goes on where an earlier pull ended; waits if another process is at it.
pub(super) fn layer(
    client: &Client<'_>,
    store: &Store,
    layer: &Descriptor,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let what = format!("layer {} of {}", layer.digest, client.image());
    let size = layer
        .size
        .ok_or_else(|| Error::invalid(&what, "has no size in the manifest"))?;
    let partial = store.partial(layer.digest.hex())?;
    if store.blob(&layer.digest, layer.size)?.is_some() {
        progress.done(&layer.digest);
        return Ok(partial.discard()?);
    }
    progress.started(&layer.digest, size);
    let mut download = Download {
        client,
        layer,
        size,
        what,
        progress,
        partial,
        hasher: Hasher::default(),
        len: 0,
        furthest: 0,
    };
    download.take_up()?;
    let finished = download.finish();
    let Download { partial, len, .. } = download;
    if let Err(error) = finished {
        // What was wrong is gone; a good beginning stays.
        if len == 0 {
            partial.discard()?;
        }
        return Err(error);
    }
    drop(partial.publish(&store.blob_path(&layer.digest))?);
    progress.done(&layer.digest);
    Ok(())
}

struct Download<'a> {
    client: &'a Client<'a>,
    layer: &'a Descriptor,
    size: u64,
    what: String,
    progress: &'a dyn Progress,
    partial: Partial,
    /// Of what is in the partial file.
    hasher: Hasher,
    len: u64,
    /// The most that there ever was of it.
    furthest: u64,
}

impl Download<'_> {
    /// Goes on from what an earlier pull left, unless that is more than all of it.
    fn take_up(&mut self) -> Result<(), Error> {
        let length = self.partial.file.metadata().map(|metadata| metadata.len());
        if length.map_err(|source| self.partial.failed(source))? > self.size {
            return self.restart();
        }
        let read = self
            .partial
            .file
            .rewind()
            .and_then(|()| self.hasher.read(&self.partial.file));
        self.len = read.map_err(|source| self.partial.failed(source))?;
        self.furthest = self.len;
        self.progress.advanced(&self.layer.digest, self.len);
        Ok(())
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.partial.restart()?;
        self.hasher = Hasher::default();
        self.len = 0;
        self.progress.advanced(&self.layer.digest, 0);
        Ok(())
    }

    /// Pulls the rest and checks the whole. What an earlier pull left may be wrong: then all of it is pulled once more.
    fn finish(&mut self) -> Result<(), Error> {
        let mut resumed = self.len > 0;
        loop {
            let client = self.client;
            client.retrying(|| {
                // What began anew brings what was there before: no headway, or it could go on so for ever.
                let furthest = self.furthest;
                let rest = self.rest();
                rest.map_err(|failure| failure.after_headway(self.len.saturating_sub(furthest)))
            })?;
            let actual = self.hasher.clone().finish();
            if actual == self.layer.digest {
                return Ok(());
            }
            // None of it is good, nor would it be for the next pull.
            self.restart()?;
            if !resumed {
                return Err(Error::Digest {
                    what: self.what.clone(),
                    expected: self.layer.digest.clone(),
                    actual,
                });
            }
            (resumed, self.furthest) = (false, 0);
        }
    }

    fn rest(&mut self) -> Result<(), Failure> {
        if self.len == self.size {
            return Ok(());
        }
        let path = format!("blobs/{}", self.layer.digest);
        let response = match self.client.get(&path, self.len) {
            Ok(response) => response,
            Err(failure) => {
                // The registry has nothing from there on: the next attempt asks for all of it.
                if failure.is_out_of_range() {
                    self.restart()?;
                }
                return Err(failure);
            }
        };
        if self.len > 0 && !goes_on_at(&response, self.len) {
            self.restart()?;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                return Err(self.client.broken_off(0, None));
            }
        }
        let client = self.client;
        let end = self.partial.file.seek(SeekFrom::Start(self.len));
        end.map_err(|source| self.partial.failed(source))?;
        client.read(response, &mut |part| self.append(part))?;
        match self.len < self.size {
            true => Err(client.broken_off(0, None)),
            false => Ok(()),
        }
    }

    fn append(&mut self, part: &[u8]) -> Result<(), Error> {
        if self.len + part.len() as u64 > self.size {
            self.restart()?;
            let problem = format!("is longer than the {} bytes in the manifest", self.size);
            return Err(Error::invalid(&self.what, problem));
        }
        let written = self.partial.file.write_all(part);
        written.map_err(|source| self.partial.failed(source))?;
        self.hasher.update(part);
        self.len += part.len() as u64;
        self.furthest = self.furthest.max(self.len);
        self.progress.advanced(&self.layer.digest, self.len);
        Ok(())
    }
}

/// Whether the answer is the rest that was asked for, and not the whole, or another part.
fn goes_on_at(response: &Response, start: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

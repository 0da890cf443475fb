//! A layer's bytes, decompressed ahead of their reader.
//!
//! Decompressing is most of the work, so it has a thread of its own, which sends chunks; the reader hashes and parses one while
//! the thread fills the next. Chunks go back to be filled again, so a stream holds a few of them whatever a layer's size.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, Scope};

use super::error::Error;
use super::limits::Budget;
use crate::blob_reader::BlobReader;
use crate::compression::{Format, START, decompress, format};
use crate::digest::Hasher;
use crate::image::Blob;
use crate::tar_reader::Input;

const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;

/// Opens a blob for its decompressed bytes.
pub(crate) fn open(blob: &Blob) -> Result<Box<dyn Read + Send>, Error> {
    let mut start = Vec::new();
    let compressed = BlobReader::new(blob.clone());
    (compressed.take(START as u64).read_to_end(&mut start))
        .map_err(|error| Error::read(&blob.name, error))?;
    let input = BufReader::with_capacity(128 << 10, BlobReader::new(blob.clone()));
    match format(&start) {
        Format::Other(format) => Err(Error::Compression {
            layer: blob.name.clone(),
            format,
        }),
        format => decompress(format, input).map_err(|error| Error::read(&blob.name, error)),
    }
}

/// A digest of a stream, and a check of its size against a budget.
pub(super) struct Check<'b> {
    hash: Hasher,
    budget: &'b Budget,
}

impl<'b> Check<'b> {
    pub(super) fn new(budget: &'b Budget) -> Check<'b> {
        Check {
            hash: Hasher::default(),
            budget,
        }
    }

    fn chunk(&mut self, chunk: &[u8]) -> io::Result<()> {
        (self.budget.expand(chunk.len() as u64)).map_err(io::Error::other)?;
        self.hash.update(chunk);
        Ok(())
    }

    /// The digest in the form of container images.
    pub(super) fn digest(self) -> String {
        self.hash.finish().to_string()
    }
}

/// The reading end of a stream.
pub(super) struct Stream<'b> {
    full: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    check: Option<Check<'b>>,
}

impl<'b> Stream<'b> {
    /// Starts the thread that decompresses. It ends with the data, or soon after the stream is dropped.
    pub(super) fn start<'s>(
        scope: &'s Scope<'s, '_>,
        blob: &Blob,
        check: Option<Check<'b>>,
    ) -> Result<Stream<'b>, Error> {
        let source = open(blob)?;
        let (full_sender, full) = sync_channel(CHUNKS);
        let (empty, empty_receiver) = channel();
        for _ in 0..CHUNKS {
            let sent = empty.send(Vec::new());
            sent.expect("the receiver is two lines above");
        }
        Builder::new()
            .spawn_scoped(scope, move || fill(source, &full_sender, &empty_receiver))
            .map_err(|error| Error::read(&blob.name, error))?;
        Ok(Stream {
            full,
            empty,
            chunk: Vec::new(),
            at: 0,
            ended: false,
            check,
        })
    }

    /// Reads to the end and returns the check.
    pub(super) fn finish(mut self) -> io::Result<Option<Check<'b>>> {
        loop {
            let count = self.fill_buf()?.len();
            if count == 0 {
                return Ok(self.check);
            }
            self.consume(count);
        }
    }
}

/// Fills chunks until the data end, or the stream is dropped.
fn fill(
    mut source: Box<dyn Read + Send>,
    full: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) {
    while let Ok(mut chunk) = empty.recv() {
        chunk.resize(CHUNK, 0);
        let filled = read_full(&mut source, &mut chunk);
        let failed = filled.is_err();
        let filled = filled.map(|count| {
            chunk.truncate(count);
            chunk
        });
        let last = failed || matches!(&filled, Ok(chunk) if chunk.is_empty());
        if full.send(filled).is_err() || last {
            return;
        }
    }
}

fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match source.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

impl BufRead for Stream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() && !self.ended {
            let used = std::mem::take(&mut self.chunk);
            self.at = 0;
            if used.capacity() > 0 {
                // The thread is gone once it has sent its last chunk.
                let _ = self.empty.send(used);
            }
            let next = self.full.recv();
            let next = next.map_err(|_| io::Error::other("the decompressing thread is gone"))?;
            self.ended = !matches!(&next, Ok(chunk) if !chunk.is_empty());
            let chunk = next?;
            if let Some(check) = &mut self.check {
                check.chunk(&chunk)?;
            }
            self.chunk = chunk;
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.chunk.len());
    }
}

impl Input for Stream<'_> {}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

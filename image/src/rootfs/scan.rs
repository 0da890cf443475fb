//! A layer is read for its entries, and checked against its digest.

use std::io;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::entries::Entries;
use super::entry::{Entry, Kind};
use super::error::{Error, Fault};
use super::limits::Budget;
use super::stream::{Check, Stream};
use crate::image::Layer;

/// A layer as the first pass found it.
pub(super) struct Scanned {
    pub(super) entries: Vec<Entry>,
    /// The digest of its decompressed bytes, which it has to have again in the second pass.
    pub(super) digest: String,
}

/// A layer's result, once its scan has ended.
type Slot = Mutex<Option<Result<Scanned, Error>>>;

/// Reads the entries of every layer, whose files an initramfs has to hold. Layers are independent here, so each thread takes the
/// next one that is left.
pub(super) fn all(layers: &[Layer], budget: &Budget) -> Result<Vec<Scanned>, Error> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    // A decompressor may need 128 MiB, if the layer says so.
    let threads = processors.min(layers.len()).min(8);
    let next = AtomicUsize::new(0);
    let found: Vec<Slot> = layers.iter().map(|_| Slot::default()).collect();
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(layer), Some(slot)) = (layers.get(index), found.get(index)) else {
                return;
            };
            let result = one(layer, budget, |_, entry, _| fits(layer, entry));
            *slot.lock().expect("a slot has one writer") = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without another thread it only takes longer.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let found = found.into_iter().map(Mutex::into_inner);
    found
        .map(|result| {
            result
                .ok()
                .flatten()
                .expect("each layer was taken by a thread")
        })
        .collect()
}

/// Refuses a file that an initramfs can't hold.
fn fits(layer: &Layer, entry: &Entry) -> Result<(), Error> {
    match entry.kind {
        Kind::File { size } if u32::try_from(size).is_err() => {
            let fault = Fault::TooLarge { size };
            Err(Error::entry(&layer.blob.name, &entry.path, fault))
        }
        _ => Ok(()),
    }
}

/// The entries of a layer that is being scanned.
pub(super) type Scanning<'a, 'b> = Entries<'a, Stream<'b>>;

/// Reads one layer's entries. `take` gets each with its number, and may read its data.
pub(super) fn one(
    layer: &Layer,
    budget: &Budget,
    mut take: impl FnMut(usize, &Entry, &mut Scanning<'_, '_>) -> Result<(), Error>,
) -> Result<Scanned, Error> {
    let name = &layer.blob.name;
    thread::scope(|scope| {
        let stream = Stream::start(scope, &layer.blob, Some(Check::new(budget)))?;
        let mut read = Entries::new(stream, name, &budget.limits);
        let mut entries = Vec::new();
        while let Some(entry) = read.next()? {
            charge(&entry, budget).map_err(|fault| Error::entry(name, &entry.path, fault))?;
            take(entries.len(), &entry, &mut read)?;
            entries.push(entry);
        }
        let (stream, marked) = read.finish();
        let check = stream.finish().map_err(|error| Error::read(name, error))?;
        let digest = check.map(Check::digest).unwrap_or_default();
        verify(layer, &digest, marked)?;
        Ok(Scanned { entries, digest })
    })
}

/// Adds an entry to the use that is made of the limits.
pub(super) fn charge(entry: &Entry, budget: &Budget) -> Result<(), Fault> {
    budget.entry()?;
    let xattrs = entry.xattrs.iter();
    // An attribute takes memory even if it is of two bytes, and an entry may have tens of thousands.
    let xattrs: usize = xattrs
        .map(|(name, value)| name.len() + value.len() + 64)
        .sum();
    let target = match &entry.kind {
        Kind::Symlink(target) | Kind::HardLink(target) => target.len(),
        // A file's holes take no room in the layer, but they will in the archive, where `write` counts them.
        Kind::File { .. } | Kind::Folder | Kind::Node(_) => 0,
    };
    Ok(budget.names(entry.path.len() + target + xattrs)?)
}

fn verify(layer: &Layer, actual: &str, marked: bool) -> Result<(), Error> {
    match &layer.diff_id {
        Some(expected) if expected != actual => Err(Error::Digest {
            layer: layer.blob.name.clone(),
            expected: expected.clone(),
            actual: actual.to_owned(),
        }),
        // Its digest vouches for its end.
        Some(_) => Ok(()),
        None if !marked => Err(Error::read(
            &layer.blob.name,
            io::ErrorKind::UnexpectedEof.into(),
        )),
        None => Ok(()),
    }
}

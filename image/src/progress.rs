//! Reports of a pull's progress.

use super::digest::Digest;

/// A receiver of a pull's progress. Several threads call its methods at once, and the pull waits for each call, so these
/// should be quick.
pub trait Progress: Sync {
    /// A layer of `total` bytes is about to be pulled.
    fn started(&self, layer: &Digest, total: u64);
    /// `bytes` of the layer are here now. Fewer than before means that it is pulled anew.
    fn advanced(&self, layer: &Digest, bytes: u64);
    /// The layer is here, whole and checked: pulled now, or, without [`started`](Progress::started) before, already there.
    fn done(&self, layer: &Digest);
}

/// A receiver that ignores all reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn started(&self, _: &Digest, _: u64) {}
    fn advanced(&self, _: &Digest, _: u64) {}
    fn done(&self, _: &Digest) {}
}

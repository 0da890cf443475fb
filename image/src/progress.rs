//! Who wants to see how a pull goes on.

use super::digest::Digest;

/// Is told how a pull goes on, from several threads at once. What it does with it should be quick: the pull waits.
pub trait Progress: Sync {
    /// A layer of `total` bytes is about to be pulled.
    fn started(&self, layer: &Digest, total: u64);
    /// `bytes` of the layer are here now. Fewer than before means that it is pulled anew.
    fn advanced(&self, layer: &Digest, bytes: u64);
    /// The layer is here, whole and checked: pulled now, or, without [`started`](Progress::started) before, already there.
    fn done(&self, layer: &Digest);
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn started(&self, _: &Digest, _: u64) {}
    fn advanced(&self, _: &Digest, _: u64) {}
    fn done(&self, _: &Digest) {}
}

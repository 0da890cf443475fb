//! Settings for finding an image.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::helpers::{Helpers, Here};
use super::platform::Platform;

/// Permission to ask a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pull {
    /// Asks for what isn't in the store.
    #[default]
    Missing,
    /// Asks what a tag stands for now, and then for what isn't in the store.
    Always,
    /// Never asks.
    Never,
}

/// Settings for finding an image.
#[derive(Clone, Debug)]
pub struct Options {
    /// Permission to ask a registry, or a container engine, for what the store lacks.
    pub pull: Pull,
    /// The machine that an image must be for.
    pub platform: Platform,
    /// Registries (`HOST` or `HOST:PORT`) to use without TLS, besides those on this machine.
    pub plain_http: Vec<String>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a registry may be silent, or slower than a kilobyte a second, before a transfer counts as stalled.
    pub stall_timeout: Duration,
    /// The most repetitions of a request after failures that may pass.
    pub retries: u32,
    /// The pause before the first repetition. It doubles with each further one.
    pub backoff: Duration,
    /// The longest pause between repetitions, also where a registry asks for one.
    pub longest_pause: Duration,
    /// The most layers that are pulled at once.
    pub parallel: usize,
    /// The most bytes of all layers of an image as a registry has them, and of an archive that is decompressed or read from
    /// standard input: as many as layers may have when they are unpacked.
    pub largest: u64,
    /// The answers for what this process can't, or may not, find out about credentials and container engines.
    pub helpers: Arc<dyn Helpers>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            pull: Pull::default(),
            platform: Platform::here(),
            plain_http: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retries: 4,
            backoff: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            parallel: 3,
            largest: EXPANDED_MAX,
            helpers: Arc::new(Here::default()),
        }
    }
}

/// The most bytes of all layers of an image when they are unpacked, by default: 16 GiB.
pub(super) const EXPANDED_MAX: u64 = 16 << 30;

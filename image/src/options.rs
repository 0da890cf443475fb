//! How images are found.

use std::time::Duration;

use super::platform::Platform;

/// Whether a registry may be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// For what isn't in the store.
    #[default]
    Missing,
    /// Always for what a tag stands for now, and then for what isn't in the store.
    Always,
    /// Never.
    Never,
}

/// How images are found.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether a registry, or a container engine, may be asked for what the store lacks.
    pub pull: Pull,
    /// The machine that an image must be for.
    pub platform: Platform,
    /// Registries (`HOST` or `HOST:PORT`) that are spoken to without TLS, besides those on this machine.
    pub plain_http: Vec<String>,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long a registry may be silent, or slower than a kilobyte a second, before a transfer counts as broken off.
    pub stall_timeout: Duration,
    /// How often a request is repeated after a failure that may pass.
    pub retries: u32,
    /// The pause before the first repetition; it doubles with each further one.
    pub backoff: Duration,
    /// The longest pause that a registry may ask for.
    pub longest_pause: Duration,
    /// How many layers are pulled at once.
    pub parallel: usize,
    /// How large all layers of an image may be together as a registry has them, and an archive that is decompressed or read
    /// from standard input, in bytes: as large as they may be when they are unpacked.
    pub largest: u64,
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
        }
    }
}

/// How large all layers of an image may be when they are unpacked, in bytes, where nothing else is said: 16 GiB.
pub(super) const EXPANDED_MAX: u64 = 16 << 30;

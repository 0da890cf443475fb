//! Where minivm keeps what it made: `$XDG_CACHE_HOME/minivm`, else `~/.cache/minivm`.

use std::env;
use std::path::PathBuf;

/// The folder, or `None` where neither `XDG_CACHE_HOME` nor `HOME` is set. It may not be there yet.
pub fn folder() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("minivm"))
}

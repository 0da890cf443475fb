//! Places in the guest, as flags name them.

use std::path::{Component, Path};

/// Returns whether it is an absolute path below the root, without `..`.
pub(super) fn is_below_root(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

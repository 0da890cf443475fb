//! The cache, `${XDG_CACHE_HOME:-~/.cache}/minivm`: what is made once is kept under a key of all that went into it.
//!
//! A result is made in a folder whose name starts with `.tmp-` and then renamed, so that a name without it always holds a
//! whole result, whatever was killed and when. Such leftovers are removed by the next [`Cache::open`], which is safe because
//! only one `cargo xtask` has the cache open at a time.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

/// Where a half-made result lives.
const TEMPORARY: &str = ".tmp-";

/// The folders of the cache that are xtask's; the kernels' is written by `kernel-config/build.sh`.
const FOLDERS: [&str; 6] = [
    "arm64",
    "demo",
    "coding",
    "debian",
    "debian-kernels",
    "tools",
];

/// The cache, held against every other `cargo xtask`.
pub(crate) struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    pub(crate) fn open() -> Result<Self> {
        let root = root()?;
        for folder in FOLDERS {
            let folder = root.join(folder);
            make_own(&root)
                .and_then(|()| make_own(&folder))
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let cache = Self {
            _lock: lock(&root.join("xtask.lock"))?,
            root,
        };
        cache.remove_leftovers()?;
        Ok(cache)
    }

    /// One of the cache's folders.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes `folder/key` by `fill`, which gets an empty folder to fill; all of the result appears at once, or nothing.
    pub(crate) fn make(
        &self,
        folder: &str,
        key: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let parent = self.folder(folder);
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&parent)
            .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
        let filled = temporary.path().join("result");
        fs::create_dir(&filled).with_context(|| format!("cannot create {}", filled.display()))?;
        fill(&filled)?;
        let result = parent.join(key);
        fs::rename(&filled, &result)
            .with_context(|| format!("cannot create {}", result.display()))?;
        Ok(result)
    }

    /// Points the symbolic link `folder/name` at its neighbour `target`, in one step. Returns the link.
    pub(crate) fn point(&self, folder: &str, name: &str, target: &str) -> Result<PathBuf> {
        let link = self.folder(folder).join(name);
        if fs::read_link(&link).is_ok_and(|now| now.as_os_str() == target) {
            return Ok(link);
        }
        let temporary = self.folder(folder).join(format!("{TEMPORARY}{name}"));
        std::os::unix::fs::symlink(target, &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .with_context(|| format!("cannot create {}", link.display()))?;
        Ok(link)
    }

    fn remove_leftovers(&self) -> Result<()> {
        for folder in FOLDERS {
            for entry in fs::read_dir(self.folder(folder))? {
                let path = entry?.path();
                if !path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY))
                {
                    continue;
                }
                let removed = if path.is_symlink() {
                    fs::remove_file(&path)
                } else {
                    fs::remove_dir_all(&path)
                };
                removed.with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// The key of a result: a hash over all that goes into it.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn root() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(base
        .ok_or_else(|| anyhow!("no place for the cache: set HOME or XDG_CACHE_HOME"))?
        .join("minivm"))
}

/// Makes a folder to which no other user may write, whatever the umask: minivm believes no other. One that is there becomes one.
fn make_own(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)?;
    let mode = fs::metadata(folder)?.mode();
    if mode & 0o022 == 0 {
        return Ok(());
    }
    fs::set_permissions(folder, Permissions::from_mode(mode & 0o755))
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("waiting for another `cargo xtask` …");
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_the_same_text_in_other_parts_apart() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["ab", "c"]), key(["ab", "c"]));
    }
}

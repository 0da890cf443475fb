//! The cache folder, in which minivm keeps what it has made: `$XDG_CACHE_HOME/minivm`, else `~/.cache/minivm`.
//!
//! minivm runs and trusts what lies there: kernels, programs, saved machines, the sockets of labs. So [`check`] accepts only a
//! folder into which its user alone can have put anything.

use std::env;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use minivm_image::publish::make_folder as make;

use crate::lab;

/// Permission bits by which others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;
/// Permission bits by which others than the owner may look names up in a folder.
const OTHERS_SEARCH: u32 = 0o011;
/// The permission bit by which names in a folder are their owners', whichever users may write to it.
const STICKY: u32 = 0o1000;

/// The reason why the cache folder is not used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the cache {} {why}, so others could change what is run from it: {remedy}",
    path.display()
)]
pub struct Untrusted {
    path: PathBuf,
    why: String,
    remedy: String,
}

/// The error where neither `XDG_CACHE_HOME` nor `HOME` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot tell where the cache is: set HOME or XDG_CACHE_HOME")]
pub struct Unknown;

/// Returns the cache folder, which may not be there yet.
///
/// # Errors
///
/// [`Unknown`].
pub fn find() -> Result<PathBuf, Unknown> {
    folder().ok_or(Unknown)
}

/// As [`find`], for callers that can do without: `None` where neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn folder() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("minivm"))
}

/// Checks that the cache folder, if there is one, can be trusted: it is a folder and no link to one, this user's, and no other user
/// may write to it; the same holds for the folders in it, where other users can reach those.
///
/// # Errors
///
/// [`Untrusted`], with what is wrong and the remedy.
pub fn check() -> Result<(), Untrusted> {
    match folder().map_or(Ok(()), |folder| check_folder(&folder)) {
        // Its only user is root, whatever files of the host's it shows.
        Err(_) if lab::is_inside() => Ok(()),
        checked => checked,
    }
}

fn check_folder(folder: &Path) -> Result<(), Untrusted> {
    let Ok(metadata) = fs::symlink_metadata(folder) else {
        return check_above(folder);
    };
    if metadata.is_symlink() {
        return Err(Untrusted {
            path: folder.to_owned(),
            why: "is a symbolic link".into(),
            remedy: "set XDG_CACHE_HOME to a folder with a `minivm` of its own in it, or put a folder there".into(),
        });
    }
    if !metadata.is_dir() {
        return Err(Untrusted {
            path: folder.to_owned(),
            why: "is not a folder".into(),
            remedy: "remove it, or set XDG_CACHE_HOME".into(),
        });
    }
    check_one(folder, &metadata)?;
    check_above(folder)?;
    if metadata.mode() & OTHERS_SEARCH == 0 {
        return Ok(());
    }
    // What it holds was made with whatever umask there was.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_dir()
        {
            check_one(&path, &metadata)?;
        }
    }
    Ok(())
}

fn check_one(path: &Path, metadata: &Metadata) -> Result<(), Untrusted> {
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        return Err(foreign(path, metadata));
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Err(Untrusted {
            path: path.to_owned(),
            why: format!("can be written to by others (mode {:04o})", mode(metadata)),
            remedy: format!("`chmod -R go-w {}`", path.display()),
        });
    }
    Ok(())
}

/// Checks the folder that it is in, whose owner can put another one in its place.
fn check_above(folder: &Path) -> Result<(), Untrusted> {
    let us = rustix::process::geteuid().as_raw();
    let mut above = folder.ancestors().skip(1);
    let there = above.find_map(|above| Some((above, fs::metadata(above).ok()?)));
    let Some((above, metadata)) = there else {
        return Ok(());
    };
    if ![us, 0].contains(&metadata.uid()) {
        return Err(foreign(above, &metadata));
    }
    if metadata.mode() & 0o002 != 0 && metadata.mode() & STICKY == 0 {
        return Err(Untrusted {
            path: folder.to_owned(),
            why: format!(
                "is in a folder that everybody may write to ({}, mode {:04o})",
                above.display(),
                mode(&metadata)
            ),
            remedy: format!("`chmod o-w {}`, or set XDG_CACHE_HOME", above.display()),
        });
    }
    Ok(())
}

fn foreign(path: &Path, metadata: &Metadata) -> Untrusted {
    let us = rustix::process::geteuid().as_raw();
    Untrusted {
        path: path.to_owned(),
        why: format!("is user {}'s, and this is user {us}", metadata.uid()),
        remedy: "set HOME to this user's own (`sudo -H`), or XDG_CACHE_HOME".into(),
    }
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// What is said of a cache that `prepare` has made.
    fn said(prepare: impl FnOnce(&Path)) -> String {
        let place = tempfile::tempdir().unwrap();
        prepare(place.path());
        let checked = check_folder(&place.path().join("minivm"));
        checked.map_or_else(|error| error.to_string(), |()| String::new())
    }

    fn folder_of(path: &Path, mode: u32) {
        fs::create_dir_all(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_of_the_users_alone_is_trusted() {
        assert_eq!(said(|_| ()), "", "it isn't there yet");
        for mode in [0o700, 0o755, 0o750] {
            assert_eq!(said(|place| folder_of(&place.join("minivm"), mode)), "");
        }
        let sticky = |place: &Path| {
            folder_of(place, 0o1777);
            folder_of(&place.join("minivm"), 0o700);
        };
        assert_eq!(said(sticky), "");
        let closed = |place: &Path| {
            folder_of(&place.join("minivm/labs"), 0o777);
            folder_of(&place.join("minivm"), 0o700);
        };
        assert_eq!(said(closed), "", "no other user gets there");
    }

    #[test]
    fn what_others_may_change_is_not() {
        for mode in [0o775, 0o777, 0o702, 0o1777] {
            let said = said(|place| folder_of(&place.join("minivm"), mode));
            assert!(said.contains(&format!("mode {mode:04o}")), "{said}");
            assert!(said.contains("chmod -R go-w"), "{said}");
        }
        let inner = said(|place| {
            folder_of(&place.join("minivm/kernel"), 0o775);
            folder_of(&place.join("minivm"), 0o755);
        });
        assert!(inner.contains("minivm/kernel can be"), "{inner}");
        let above = said(|place| {
            folder_of(place, 0o777);
            folder_of(&place.join("minivm"), 0o700);
        });
        assert!(above.contains("everybody may write to"), "{above}");
    }

    #[test]
    fn what_is_no_folder_is_not() {
        let link = said(|place| {
            folder_of(&place.join("real"), 0o700);
            symlink("real", place.join("minivm")).unwrap();
        });
        assert!(link.contains("is a symbolic link"), "{link}");
        let dangling = said(|place| symlink("gone", place.join("minivm")).unwrap());
        assert!(dangling.contains("is a symbolic link"), "{dangling}");
        let file = said(|place| fs::write(place.join("minivm"), "").unwrap());
        assert!(file.contains("is not a folder"), "{file}");
    }

    #[test]
    fn another_users_folder_is_not() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let give = |path: &Path| std::os::unix::fs::chown(path, Some(1234), None).unwrap();
        let itself = said(|place| {
            folder_of(&place.join("minivm"), 0o700);
            give(&place.join("minivm"));
        });
        assert!(
            itself.contains("is user 1234's, and this is user 0"),
            "{itself}"
        );
        let above = said(give);
        assert!(above.contains("sudo -H"), "{above}");
    }
}

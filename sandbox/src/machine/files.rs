//! Files into a guest and out of it, as cpio archives.
//!
//! What comes out of a guest can be anything. It is received whole, up to a limit, before any of it is unpacked; names stay
//! below the place that the user named, whatever links the guest or others may have put there (cap-std sees to that); links
//! that lead elsewhere, devices, and the bits that give privileges are left out.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use minivm_guest::channel::COPIED;
use minivm_guest::newc::{self, Archive};
use minivm_guest::unpack::{Entry, Kind, Unpack};
use minivm_guest::{Owner, append_path};

use super::session::Files;
use super::{Error, cannot};

/// Writes what is to go into the guest as one archive.
pub(super) fn pack<W: Write>(all: &[Files], out: W) -> Result<(), Error> {
    let wrap = |error: newc::Error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let action = error.to_string();
        let action = action.strip_prefix("cannot ").unwrap_or(&action).to_owned();
        Error::Host {
            action,
            source: io::Error::other(cause.unwrap_or_else(|| "it changed".into())),
        }
    };
    let mut archive = Archive::new(out);
    for files in all {
        let name = guest_name(&files.to, &files.from)?;
        append_path(&mut archive, &files.from, &name, Owner::Root).map_err(wrap)?;
    }
    archive.finish().map(drop).map_err(wrap)
}

/// What a path in the guest is called in an archive: a folder, written with a slash at its end, is filled.
fn guest_name(to: &Path, from: &Path) -> Result<PathBuf, Error> {
    let into_folder = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let whole = match (into_folder, from.file_name()) {
        (true, Some(name)) => to.join(name),
        _ => to.to_owned(),
    };
    let name = whole.strip_prefix("/").unwrap_or(&whole);
    let plain = name
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.as_os_str().is_empty() || !whole.is_absolute() {
        let action = format!("copy to {} in the guest", to.display());
        let why = "the path has to be absolute, without `..`, and not `/` alone";
        return Err(cannot(action)(io::Error::new(
            io::ErrorKind::InvalidInput,
            why,
        )));
    }
    Ok(name.to_owned())
}

/// An archive from the guest, while it comes.
#[derive(Debug)]
pub(super) struct Incoming {
    spool: File,
    size: u64,
    limit: u64,
}

impl Incoming {
    /// One of at most `limit` bytes.
    pub(super) fn new(limit: u64) -> io::Result<Self> {
        // It has no name, so that nothing is left of it, whatever becomes of us.
        Ok(Incoming {
            spool: tempfile::tempfile()?,
            size: 0,
            limit,
        })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        if self.size > self.limit {
            let text = format!("the guest sends more than {} bytes", self.limit);
            return Err(io::Error::other(text));
        }
        self.spool.write_all(bytes)
    }

    /// Unpacks it to where the user wants it. Returns what was left out, and why.
    pub(super) fn unpack(mut self, files: &Files) -> io::Result<Vec<String>> {
        self.spool.rewind()?;
        let target = target(files);
        let (Some(name), parent) = (target.file_name(), target.parent()) else {
            return Err(io::Error::other("it is no place for a file"));
        };
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        let root = Dir::open_ambient_dir(parent, ambient_authority())?;
        let mut unpack = Unpack::new(io::BufReader::new(self.spool));
        let mut left_out = Vec::new();
        let mut folders = Vec::new();
        while let Some(entry) = unpack.next()? {
            let below = entry
                .name
                .strip_prefix(COPIED)
                .map_err(|_| io::Error::other("the guest sends files that were not asked for"))?;
            let path = match below.as_os_str().is_empty() {
                true => PathBuf::from(name),
                false => Path::new(name).join(below),
            };
            match place(&root, &path, below, &entry, &mut unpack)? {
                Placed::Yes => {}
                Placed::No(why) => {
                    left_out.push(format!("{}: {why}", parent.join(&path).display()))
                }
            }
            if entry.kind == Kind::Folder {
                folders.push((path, entry.permissions));
            }
        }
        // The deepest first: a folder that its owner may not write to is closed when it is full.
        for (path, permissions) in folders.into_iter().rev() {
            set_permissions(&root, &path, permissions)?;
        }
        Ok(left_out)
    }
}

/// As with `cp`: into a folder that is there, or by the name that was given.
fn target(files: &Files) -> PathBuf {
    match files.from.file_name() {
        Some(name) if files.to.is_dir() => files.to.join(name),
        _ => files.to.clone(),
    }
}

enum Placed {
    Yes,
    No(&'static str),
}

fn place(
    root: &Dir,
    path: &Path,
    below: &Path,
    entry: &Entry,
    data: &mut impl Read,
) -> io::Result<Placed> {
    match &entry.kind {
        Kind::Folder => {
            if !root.is_dir(path) {
                root.create_dir(path)?;
            }
            // Until it is filled.
            set_permissions(root, path, 0o700)?;
        }
        Kind::File { .. } => {
            // A link that is in its place is replaced, not followed.
            if root
                .symlink_metadata(path)
                .is_ok_and(|there| !there.is_dir())
            {
                root.remove_file(path)?;
            }
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let mut file = root.open_with(path, &options)?;
            io::copy(data, &mut file)?;
            let permissions = fs::Permissions::from_mode(entry.permissions & 0o777);
            file.set_permissions(cap_std::fs::Permissions::from_std(permissions))?;
        }
        Kind::Symlink(to) if stays_below(below, to) => {
            if root.symlink_metadata(path).is_ok() {
                root.remove_file(path)?;
            }
            root.symlink(to, path)?;
        }
        Kind::Symlink(_) => return Ok(Placed::No("a link that leads elsewhere")),
        Kind::Other => return Ok(Placed::No("neither a file, a folder nor a link")),
    }
    Ok(Placed::Yes)
}

fn set_permissions(root: &Dir, path: &Path, permissions: u32) -> io::Result<()> {
    let permissions = fs::Permissions::from_mode(permissions & 0o777 | 0o700);
    root.set_permissions(path, cap_std::fs::Permissions::from_std(permissions))
}

/// Whether a link at `path`, which is relative to what is copied, leads to something in it.
fn stays_below(path: &Path, to: &Path) -> bool {
    let mut depth = path.components().count() as i64 - 1;
    to.components().all(|part| {
        depth += match part {
            Component::Normal(_) => 1,
            Component::ParentDir => -1,
            Component::CurDir => 0,
            Component::RootDir | Component::Prefix(_) => return false,
        };
        depth >= 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use minivm_guest::newc::{Attributes, Node};
    use std::os::unix::fs::symlink;

    /// Unpacks what `fill` puts into an archive to `to` in a new folder.
    fn unpacked(
        to: &str,
        prepare: impl FnOnce(&Path),
        fill: impl FnOnce(&mut Archive<&mut Vec<u8>>),
    ) -> (tempfile::TempDir, io::Result<Vec<String>>) {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        fill(&mut archive);
        archive.finish().unwrap();
        let mut incoming = Incoming::new(1 << 20).unwrap();
        incoming.push(&bytes).unwrap();
        let files = Files {
            from: "/work/out".into(),
            to: folder.path().join(to),
        };
        let result = incoming.unpack(&files);
        (folder, result)
    }

    fn file(archive: &mut Archive<&mut Vec<u8>>, name: &str, mode: u32, data: &str) {
        let size = data.len() as u64;
        archive
            .file(name, Attributes::new(mode), size, data.as_bytes())
            .unwrap();
    }

    #[test]
    fn a_file_is_called_as_asked_or_goes_into_a_folder_that_is_there() {
        let (folder, result) =
            unpacked("new", |_| {}, |archive| file(archive, COPIED, 0o4751, "x"));
        assert_eq!(result.unwrap(), Vec::<String>::new());
        let metadata = fs::metadata(folder.path().join("new")).unwrap();
        assert_eq!(
            metadata.permissions().mode() & 0o7777,
            0o751,
            "no set-user-ID"
        );
        let (folder, result) = unpacked(
            "there",
            |folder| fs::create_dir(folder.join("there")).unwrap(),
            |archive| file(archive, COPIED, 0o644, "y"),
        );
        result.unwrap();
        assert_eq!(fs::read(folder.path().join("there/out")).unwrap(), b"y");
    }

    #[test]
    fn folders_keep_their_modes_even_when_they_are_closed() {
        let (folder, result) = unpacked(
            "new",
            |_| {},
            |archive| {
                archive.directory(COPIED, Attributes::new(0o555)).unwrap();
                archive
                    .directory("copied/a", Attributes::new(0o750))
                    .unwrap();
                file(archive, "copied/a/b", 0o600, "deep");
                archive
                    .symlink("copied/l", "a/b", Attributes::new(0o777))
                    .unwrap();
            },
        );
        assert_eq!(result.unwrap(), Vec::<String>::new());
        let mode = |name: &str| {
            let metadata = fs::metadata(folder.path().join(name)).unwrap();
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(
            (mode("new"), mode("new/a")),
            (0o755, 0o750),
            "the owner can always clean up"
        );
        assert_eq!(fs::read(folder.path().join("new/l")).unwrap(), b"deep");
    }

    #[test]
    fn links_out_and_devices_are_left_out_and_told() {
        let (folder, result) = unpacked(
            "new",
            |_| {},
            |archive| {
                archive.directory(COPIED, Attributes::new(0o755)).unwrap();
                for (name, to) in [
                    ("copied/abs", "/etc"),
                    ("copied/up", ".."),
                    ("copied/far", "a/../../.."),
                ] {
                    archive.symlink(name, to, Attributes::new(0o777)).unwrap();
                }
                archive
                    .node("copied/pipe", Node::Fifo, Attributes::new(0o644))
                    .unwrap();
            },
        );
        assert_eq!(result.unwrap().len(), 4);
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_written_outside_through_links_that_are_there() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("victim"), "safe").unwrap();
        let (_folder, result) = unpacked(
            "new",
            |folder| {
                fs::create_dir(folder.join("new")).unwrap();
                symlink(outside.path(), folder.join("new/out")).unwrap();
            },
            |archive| {
                archive.directory(COPIED, Attributes::new(0o755)).unwrap();
                archive
                    .directory("copied/d", Attributes::new(0o755))
                    .unwrap();
                file(archive, "copied/victim", 0o644, "gone");
            },
        );
        // `new/out` is there and leads outside: as a folder of its own it can't be used.
        assert!(result.is_err());
        assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"safe");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_in_a_files_place_is_replaced() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "safe").unwrap();
        let (folder, result) = unpacked(
            "new",
            |folder| symlink(&victim, folder.join("new")).unwrap(),
            |archive| file(archive, COPIED, 0o644, "mine"),
        );
        result.unwrap();
        assert_eq!(fs::read(folder.path().join("new")).unwrap(), b"mine");
        assert_eq!(fs::read(&victim).unwrap(), b"safe");
    }

    #[test]
    fn more_than_the_limit_is_not_taken() {
        let mut incoming = Incoming::new(10).unwrap();
        incoming.push(&[0; 10]).unwrap();
        assert!(incoming.push(&[0]).is_err());
    }

    #[test]
    fn places_in_the_guest_are_absolute_and_plain() {
        let name = |to: &str| guest_name(Path::new(to), Path::new("a/b.txt")).ok();
        assert_eq!(name("/work/x"), Some("work/x".into()));
        assert_eq!(name("/work/"), Some("work/b.txt".into()));
        assert_eq!(name("/"), Some("b.txt".into()));
        assert_eq!(name("work"), None);
        assert_eq!(name("/a/../b"), None);
    }
}

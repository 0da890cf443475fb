//! Files into a guest and out of it, as cpio archives.
//!
//! What comes out of a guest can be anything. It is received whole, up to a limit, before any of it is unpacked. A folder is
//! unpacked into a folder that is opened once and never left: no entry's parent may be a link, and the guest's links are
//! made last, when no file can be put through one any more, and only those that stay in that folder. Devices, and the bits
//! that give privileges, are left out. A single file goes to what the user names, see [`crate::output_path`].

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use minivm_guest::channel::COPIED;
use minivm_guest::newc::{self, Archive};
use minivm_guest::unpack::{Kind, Unpack};
use minivm_guest::{Owner, append_path};
use rustix::fs::{Mode, OFlags};

use super::session::Files;
use super::{Error, cannot};
use crate::output_path::Output;

/// Files, folders and links that are taken out of a guest at the most.
const ENTRIES_MAX: usize = 1_000_000;
/// What was left out is told so often at the most.
const LEFT_OUT_MAX: usize = 10;

/// Writes what is to go into the guest as one archive.
pub(crate) fn pack<W: Write>(all: &[Files], out: W) -> Result<(), Error> {
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
pub(crate) fn guest_name(to: &Path, from: &Path) -> Result<PathBuf, Error> {
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

    /// How many bytes have come.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Unpacks it to where the user wants it. Returns what was left out, and why.
    pub(super) fn unpack(mut self, files: &Files) -> io::Result<Vec<String>> {
        self.spool.rewind()?;
        let target = target(files);
        if target.file_name().is_none() {
            return Err(io::Error::other("it is no place for a file"));
        }
        let mut unpack = Unpack::new(io::BufReader::new(self.spool));
        let first = unpack
            .next()?
            .filter(|entry| entry.name == Path::new(COPIED));
        match first.map(|entry| (entry.kind, entry.permissions)) {
            Some((Kind::File { .. }, permissions)) => {
                fs::create_dir_all(parent(&target))?;
                let mut output = Output::open(&target, 0o600)?;
                io::copy(&mut unpack, &mut output)?;
                if unpack.next()?.is_some() {
                    return Err(unasked());
                }
                output.set_permissions(permissions & 0o777)?;
                output.finish()?;
                Ok(Vec::new())
            }
            Some((Kind::Folder, permissions)) => {
                Folder::create(&target)?.fill(&mut unpack, permissions)
            }
            _ => Err(io::Error::other("it is neither a file nor a folder")),
        }
    }
}

/// As with `cp`: into a folder that is there, or by the name that was given.
fn target(files: &Files) -> PathBuf {
    match files.from.file_name() {
        Some(name) if files.to.is_dir() => files.to.join(name),
        _ => files.to.clone(),
    }
}

fn parent(target: &Path) -> &Path {
    let parent = target.parent();
    parent
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn name(target: &Path) -> &std::ffi::OsStr {
    target.file_name().expect("it was checked")
}

/// Opens a folder that the user named, made where it isn't there.
fn open_folder(path: &Path) -> io::Result<Dir> {
    fs::create_dir_all(path)?;
    Dir::open_ambient_dir(path, ambient_authority())
}

fn unasked() -> io::Error {
    io::Error::other("the guest sends files that were not asked for")
}

/// A folder that is filled with what a guest sends.
struct Folder {
    dir: Dir,
    /// Where it is, for messages.
    path: PathBuf,
    left_out: Vec<String>,
    more_left_out: usize,
}

impl Folder {
    /// Creates the folder, or opens the one that is there; a link in its place is not followed.
    fn create(target: &Path) -> io::Result<Folder> {
        let above = open_folder(parent(target))?;
        match above.create_dir(name(target)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&above, name(target), flags, Mode::empty())?;
        Ok(Folder {
            dir: Dir::from_std_file(File::from(dir)),
            path: target.to_owned(),
            left_out: Vec::new(),
            more_left_out: 0,
        })
    }

    fn fill(mut self, unpack: &mut Unpack<impl Read>, permissions: u32) -> io::Result<Vec<String>> {
        let mut folders = vec![(PathBuf::from("."), permissions)];
        let mut links = Vec::new();
        let mut entries = 0;
        while let Some(entry) = unpack.next()? {
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(io::Error::other("the guest sends too many files"));
            }
            let path = match entry.name.strip_prefix(COPIED) {
                Ok(path) if !path.as_os_str().is_empty() => path.to_owned(),
                _ => return Err(unasked()),
            };
            self.check_parent(&path)?;
            match entry.kind {
                Kind::Folder => {
                    self.make_folder(&path)?;
                    folders.push((path, entry.permissions));
                }
                Kind::File { .. } => write_file(&self.dir, &path, entry.permissions, unpack)?,
                Kind::Symlink(to) => links.push((path, to)),
                Kind::Other => self.leave_out(&path, "neither a file, a folder nor a link"),
            }
        }
        for (path, to) in links {
            self.make_link(&path, &to)?;
        }
        // The deepest first: a folder that its owner may not write to is closed when it is full.
        for (path, permissions) in folders.into_iter().rev() {
            set_permissions(&self.dir, &path, permissions)?;
        }
        if self.more_left_out > 0 {
            self.left_out.push(format!("{} more", self.more_left_out));
        }
        Ok(self.left_out)
    }

    /// Refuses an entry in a folder that is a link: one of the user's, for the guest's own are made last.
    fn check_parent(&self, path: &Path) -> io::Result<()> {
        for folder in path.ancestors().skip(1) {
            if folder.as_os_str().is_empty() {
                break;
            }
            if !self.dir.symlink_metadata(folder)?.is_dir() {
                let text = format!("{} is no folder", self.path.join(folder).display());
                return Err(io::Error::other(text));
            }
        }
        Ok(())
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        match self.dir.symlink_metadata(path) {
            Ok(there) if there.is_dir() => {}
            Ok(_) => {
                self.dir.remove_file(path)?;
                self.dir.create_dir(path)?;
            }
            Err(_) => self.dir.create_dir(path)?,
        }
        // Until it is filled.
        set_permissions(&self.dir, path, 0o700)
    }

    fn make_link(&mut self, path: &Path, to: &Path) -> io::Result<()> {
        if !stays_inside(path, to) {
            self.leave_out(path, "a link that may lead elsewhere");
            return Ok(());
        }
        // One of the links before it may have taken a folder's place.
        self.check_parent(path)?;
        match self.dir.symlink_metadata(path) {
            Ok(there) if there.is_dir() => {
                self.leave_out(path, "a link in the place of a folder");
                return Ok(());
            }
            Ok(_) => self.dir.remove_file(path)?,
            Err(_) => {}
        }
        self.dir.symlink(to, path)
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        if self.left_out.len() < LEFT_OUT_MAX {
            let path = self.path.join(path);
            self.left_out.push(format!("{}: {why}", path.display()));
        } else {
            self.more_left_out += 1;
        }
    }
}

/// Writes a file in place of whatever file or link has its name.
fn write_file(dir: &Dir, path: &Path, permissions: u32, data: &mut impl Read) -> io::Result<()> {
    if dir
        .symlink_metadata(path)
        .is_ok_and(|there| !there.is_dir())
    {
        dir.remove_file(path)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = dir.open_with(path, &options)?;
    io::copy(data, &mut file)?;
    let permissions = fs::Permissions::from_mode(permissions & 0o777);
    file.set_permissions(cap_std::fs::Permissions::from_std(permissions))
}

/// The owner of a folder can always clean it up.
fn set_permissions(dir: &Dir, path: &Path, permissions: u32) -> io::Result<()> {
    let permissions = fs::Permissions::from_mode(permissions & 0o777 | 0o700);
    dir.set_permissions(path, cap_std::fs::Permissions::from_std(permissions))
}

/// Whether a link at `path`, whose parents are folders, stays in the folder that `path` is relative to.
///
/// It does if it goes up only at its beginning, and not too far: from there on it goes down, and other links that it passes
/// stay inside themselves. A `..` behind the name of a link would go up from wherever that leads.
fn stays_inside(path: &Path, to: &Path) -> bool {
    let depth = path.components().count() - 1;
    let mut parts = to
        .components()
        .filter(|part| *part != Component::CurDir)
        .peekable();
    let mut up = 0;
    while parts.next_if_eq(&Component::ParentDir).is_some() {
        up += 1;
    }
    up <= depth && parts.all(|part| matches!(part, Component::Normal(_)))
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
    fn links_that_may_lead_out_and_devices_are_left_out_and_told() {
        let links = [
            ("copied/abs", "/etc"),
            ("copied/up", ".."),
            ("copied/far", "a/../../.."),
            ("copied/d/l", ".."),
            ("copied/d/m", "l/.."),
        ];
        let (folder, result) = unpacked(
            "new",
            |_| {},
            |archive| {
                archive.directory(COPIED, Attributes::new(0o755)).unwrap();
                archive
                    .directory("copied/d", Attributes::new(0o755))
                    .unwrap();
                for (name, to) in links {
                    archive.symlink(name, to, Attributes::new(0o777)).unwrap();
                }
                archive
                    .node("copied/pipe", Node::Fifo, Attributes::new(0o644))
                    .unwrap();
            },
        );
        let left_out = result.unwrap();
        assert_eq!(left_out.len(), 5, "{left_out:?}");
        let new = folder.path().join("new");
        assert_eq!(fs::read_dir(&new).unwrap().count(), 1);
        assert_eq!(fs::read_link(new.join("d/l")).unwrap(), Path::new(".."));
        assert_eq!(fs::read_dir(new.join("d")).unwrap().count(), 1);
    }

    #[test]
    fn nothing_beside_the_target_is_touched() {
        type Fill = fn(&mut Archive<&mut Vec<u8>>);
        let attacks: [Fill; 4] = [
            // The root is a link to a sibling.
            |archive| {
                archive
                    .symlink(COPIED, "sibling", Attributes::new(0o777))
                    .unwrap();
                file(archive, "copied/victim", 0o755, "gone");
            },
            // A chain of links, each of which looks harmless.
            |archive| {
                archive.directory(COPIED, Attributes::new(0o755)).unwrap();
                archive
                    .directory("copied/d", Attributes::new(0o755))
                    .unwrap();
                archive
                    .symlink("copied/d/l", "..", Attributes::new(0o777))
                    .unwrap();
                archive
                    .symlink("copied/d/m", "l/..", Attributes::new(0o777))
                    .unwrap();
                file(archive, "copied/d/m/sibling/victim", 0o644, "gone");
            },
            // Another archive's name.
            |archive| {
                archive.directory(COPIED, Attributes::new(0o755)).unwrap();
                file(archive, "sibling/victim", 0o644, "gone");
            },
            // A file with children.
            |archive| {
                file(archive, COPIED, 0o644, "x");
                file(archive, "copied/victim", 0o644, "gone");
            },
        ];
        for (number, attack) in attacks.into_iter().enumerate() {
            let (folder, result) = unpacked(
                "new",
                |folder| {
                    fs::create_dir(folder.join("sibling")).unwrap();
                    fs::write(folder.join("sibling/victim"), "safe").unwrap();
                },
                attack,
            );
            assert!(result.is_err(), "attack {number}");
            let victim = folder.path().join("sibling/victim");
            assert_eq!(fs::read(victim).unwrap(), b"safe", "attack {number}");
        }
    }

    #[test]
    fn nothing_is_written_through_links_that_are_there() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("victim"), "safe").unwrap();
        for link in ["new/out", "new/out/d"] {
            let (_folder, result) = unpacked(
                "new",
                |folder| {
                    fs::create_dir_all(folder.join(link).parent().unwrap()).unwrap();
                    symlink(outside.path(), folder.join(link)).unwrap();
                },
                |archive| {
                    archive.directory(COPIED, Attributes::new(0o755)).unwrap();
                    archive
                        .directory("copied/d", Attributes::new(0o755))
                        .unwrap();
                    file(archive, "copied/d/victim", 0o644, "mine");
                },
            );
            // The first stands for the whole folder and can't be used, the second gives way to a folder.
            assert_eq!(result.is_err(), link == "new/out");
            assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"safe");
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_link_that_the_user_names_is_followed() {
        let (folder, result) = unpacked(
            "new",
            |folder| {
                fs::write(folder.join("old"), "old").unwrap();
                fs::hard_link(folder.join("old"), folder.join("other")).unwrap();
                symlink("old", folder.join("new")).unwrap();
            },
            |archive| file(archive, COPIED, 0o640, "mine"),
        );
        result.unwrap();
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        assert!(folder.path().join("new").is_symlink());
        assert_eq!(
            (read("old"), read("other")),
            (b"mine".into(), b"old".into())
        );
        let mode = folder.path().join("old").metadata().unwrap().permissions();
        assert_eq!(mode.mode() & 0o7777, 0o640);
    }

    #[test]
    fn a_socket_in_a_files_place_is_refused_and_stays() {
        let (folder, result) = unpacked(
            "new",
            |folder| drop(std::os::unix::net::UnixListener::bind(folder.join("new")).unwrap()),
            |archive| file(archive, COPIED, 0o644, "mine"),
        );
        assert_eq!(result.unwrap_err().to_string(), "it is a socket");
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1);
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

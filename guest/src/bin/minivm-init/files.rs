//! Files from the host before the command runs, and to the host after it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use minivm_guest::channel::{COPIED, ToGuest, ToHost};
use minivm_guest::newc::Archive;
use minivm_guest::unpack::{Entry, Kind, Unpack};
use minivm_guest::{FILE_MAX, Owner, append_path};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::io::Errno;

use crate::Error;
use crate::user::User;
use crate::wire::Wire;

/// Bytes of files in one message.
const CHUNK: usize = 64 << 10;

/// Takes an archive from the host, whose names start at the root, and puts its files there. The user owns them.
pub(crate) fn copy_in(wire: &mut Wire, user: &User) -> Result<(), Error> {
    let mut incoming = Incoming {
        wire,
        chunk: Vec::new(),
        taken: 0,
        ended: false,
    };
    unpack(&mut incoming, user)?;
    incoming.finish()
}

/// Puts an archive's files in their places, below the root. The user owns them.
pub(crate) fn unpack(archive: impl Read, user: &User) -> Result<(), Error> {
    let mut archive = Unpack::new(archive);
    let mut folders = Vec::new();
    while let Some(entry) = archive.next()? {
        let path = Path::new("/").join(&entry.name);
        let placed = place(&path, &entry, user, &mut archive);
        if placed.map_err(|error| not_written(&path, &*error))? {
            folders.push((path, entry.permissions, entry.mtime));
        }
    }
    // Only now: some of them may be closed even to their owner, and each file that comes into them changes their times.
    for (path, permissions, mtime) in folders.iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(*permissions))?;
        set_time(path, *mtime)?;
    }
    Ok(())
}

/// Returns the error of a file that can't be written. The root is in memory, like all other places for files.
fn not_written(path: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    let full = |error: &io::Error| error.raw_os_error() == Some(Errno::NOSPC.raw_os_error());
    let hint = match error.downcast_ref().is_some_and(full) {
        true => ": more -m/--memory helps",
        false => "",
    };
    format!("cannot write {}: {error}{hint}", path.display()).into()
}

/// Sets the time of the last change of a file, folder or link, in seconds since 1970.
fn set_time(path: &Path, mtime: u32) -> io::Result<()> {
    let time = Timespec {
        tv_sec: mtime.into(),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Puts an entry in its place. Returns whether it is a folder that was not there before.
fn place(path: &Path, entry: &Entry, user: &User, data: &mut impl Read) -> Result<bool, Error> {
    if let Some(parent) = path.parent() {
        make_folders(parent, user)?;
    }
    match &entry.kind {
        Kind::Folder => {
            let is_new = !path.is_dir();
            make_folders(path, user)?;
            return Ok(is_new);
        }
        Kind::File { .. } => {
            let mut file = File::create(path)?;
            io::copy(data, &mut file)?;
            lchown(path, Some(user.uid), Some(user.gid))?;
            file.set_permissions(fs::Permissions::from_mode(entry.permissions))?;
            let modified = UNIX_EPOCH + Duration::from_secs(entry.mtime.into());
            file.set_modified(modified)?;
        }
        Kind::Symlink(target) => {
            if path.symlink_metadata().is_ok_and(|there| !there.is_dir()) {
                fs::remove_file(path)?;
            }
            symlink(target, path)?;
            lchown(path, Some(user.uid), Some(user.gid))?;
            set_time(path, entry.mtime)?;
        }
        Kind::Other => {}
    }
    Ok(false)
}

/// Creates a folder and those above it, as the user's. Folders that are there stay as they are.
fn make_folders(path: &Path, user: &User) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_folders(parent, user)?;
    }
    fs::create_dir(path)?;
    lchown(path, Some(user.uid), Some(user.gid))
}

/// The archive that comes in [`ToGuest::Files`].
struct Incoming<'a> {
    wire: &'a mut Wire,
    chunk: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Incoming<'_> {
    /// Waits for a piece of the archive.
    fn next_chunk(&mut self) -> Result<(), Error> {
        self.taken = 0;
        self.chunk.clear();
        let chunk = &mut self.chunk;
        self.wire.receive_one(|message| {
            // A signal for a command that isn't there yet is lost.
            if let ToGuest::Files(bytes) = message {
                chunk.extend_from_slice(bytes);
                self.ended = bytes.is_empty();
            }
            Ok(())
        })
    }

    /// Waits for the archive's end.
    fn finish(mut self) -> Result<(), Error> {
        while !self.ended {
            self.next_chunk()?;
        }
        Ok(())
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.chunk.len() && !self.ended {
            self.next_chunk()
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
        let len = (&self.chunk[self.taken..]).read(buffer)?;
        self.taken += len;
        Ok(len)
    }
}

/// Sends the files and folders that the host wants, or the reason why there are none.
pub(crate) fn copy_out(wire: &mut Wire, paths: &[Vec<u8>]) -> Result<(), Error> {
    for (number, path) in (0..).zip(paths) {
        // A link stands for its target.
        let path = match fs::canonicalize(OsStr::from_bytes(path)) {
            Ok(path) => path,
            Err(error) => {
                wire.send(&ToHost::FilesOf(number, Some(error.to_string())))?;
                continue;
            }
        };
        // Here the host gets it as the reason; later, the archive is already on its way.
        if let Err(why) = too_large(&path) {
            wire.send(&ToHost::FilesOf(number, Some(why)))?;
            continue;
        }
        wire.send(&ToHost::FilesOf(number, None))?;
        let outgoing = io::BufWriter::with_capacity(CHUNK, Outgoing { wire: &mut *wire });
        let mut archive = Archive::new(outgoing);
        let sent = append_path(&mut archive, &path, Path::new(COPIED), Owner::Keep)
            .and_then(|_| archive.finish().map(drop));
        // An error ends the archive early, which the host takes for an error; the warning has the reason.
        if let Err(error) = sent {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            wire.send(&ToHost::Warning(format!(
                "{error}{}",
                cause.unwrap_or_default()
            )))?;
        }
        wire.send(&ToHost::Files(&[]))?;
        wire.flush_all()?;
    }
    Ok(())
}

/// Refuses a file that no archive holds.
fn too_large(path: &Path) -> Result<(), String> {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() > FILE_MAX => Err(format!(
            "it has {} bytes, and only files of less than 4 GiB can be copied",
            metadata.len()
        )),
        _ => Ok(()),
    }
}

/// The writer of an outgoing archive.
struct Outgoing<'a> {
    wire: &'a mut Wire,
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(CHUNK)];
        let sent = if part.is_empty() {
            Ok(())
        } else {
            let sent = self.wire.send(&ToHost::Files(part));
            sent.and_then(|()| self.wire.flush_all())
        };
        sent.map_err(|error| io::Error::other(error.to_string()))?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Images as folders: what a sandbox without a machine takes for its root.
//!
//! `<cache>/rootfs/<key>` is the image's root, and appears there whole: it is made in `<key>.partial`, written to the disk and
//! renamed. `<key>.lock` is locked by whoever uses the folder, makes it or removes it, so that it is neither made twice nor
//! removed while it is used. The lock's file is removed with the folder, so who gets a lock looks whether it is still the one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use minivm_guest::image::Image;
use minivm_guest::rootfs::{self, Compression, Limits};
use rustix::fs::{FlockOperation, syncfs};

use super::{Error, failed, fill, found, key_of, lock};

/// Changes when the same image makes another folder.
const FORMAT: &str = "1";
const LOCK: &str = "lock";

/// An image's root folder that is there, and stays as long as this does. Nobody may write to it.
#[derive(Debug)]
pub struct Root {
    /// The folder.
    pub path: PathBuf,
    _lock: File,
}

/// The image's root below `folder`, made where it isn't there.
pub(super) fn open(folder: &Path, image: &Image, making: impl FnOnce()) -> Result<Root, Error> {
    let path = folder.join(key_of(&[FORMAT.as_bytes(), image.identity.as_bytes()]));
    let mut making = Some(making);
    loop {
        let shared = hold(&path, FlockOperation::LockShared)?;
        if path.is_dir() {
            let _lock = shared;
            return Ok(Root { path, _lock });
        }
        drop(shared);
        // Who comes second waits, and finds it made.
        let alone = hold(&path, FlockOperation::LockExclusive)?;
        if !path.is_dir() {
            if let Some(making) = making.take() {
                making();
            }
            make(&path, image)?;
        }
        drop(alone);
    }
}

/// Locks the folder's lock, which is made where it isn't there.
fn hold(path: &Path, operation: FlockOperation) -> Result<File, Error> {
    let path = path.with_extension(LOCK);
    let folder = path.parent().unwrap_or(&path);
    let private = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    private.map_err(failed("create", folder))?;
    loop {
        let mut options = File::options();
        options.read(true).write(true).create(true).mode(0o600);
        let file = options.open(&path).map_err(failed("open", &path))?;
        lock(&file, operation).map_err(failed("lock", &path))?;
        if is_named(&file, &path).map_err(failed("read", &path))? {
            return Ok(file);
        }
    }
}

/// Whether the file still has this name.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    let named = fs::metadata(path);
    Ok(named.is_ok_and(|named| (named.dev(), named.ino()) == (own.dev(), own.ino())))
}

/// Makes the folder. The image goes through memory as an archive, which is what there is a careful reader for.
fn make(path: &Path, image: &Image) -> Result<(), Error> {
    let partial = path.with_extension("partial");
    remove_folder(&partial)?;
    fs::create_dir(&partial).map_err(failed("create", &partial))?;
    let made = pour(image, &partial).and_then(|()| {
        let synced = File::open(&partial).and_then(|folder| Ok(syncfs(&folder)?));
        synced.map_err(failed("write", &partial))?;
        fs::rename(&partial, path).map_err(failed("create", path))
    });
    if made.is_err() {
        // It may be large, and nobody goes on from it.
        let _ = remove_folder(&partial);
    }
    made
}

fn pour(image: &Image, folder: &Path) -> Result<(), Error> {
    let dir = Dir::open_ambient_dir(folder, ambient_authority());
    let dir = dir.map_err(failed("open", folder))?;
    let (from, to) = io::pipe().map_err(failed("create a pipe for", folder))?;
    let (written, filled) = thread::scope(|scope| {
        let write = scope.spawn(move || {
            let out = BufWriter::with_capacity(1 << 20, to);
            rootfs::write(image, b"", Compression::None, &Limits::default(), out)
        });
        // The pipe ends with this, so the writer ends too.
        let filled = fill::fill(&dir, BufReader::with_capacity(1 << 20, from));
        (write.join(), filled)
    });
    let written = written.map_err(|_| io::Error::other("the image could not be read"));
    let written = written.map_err(failed("write", folder))?;
    match (written, filled) {
        // What was written ended early, for a reason that the reader doesn't know.
        (Err(error), Ok(())) => Err(error.into()),
        (Err(error), Err(reading)) if reading.kind() == io::ErrorKind::UnexpectedEof => {
            Err(error.into())
        }
        (_, Err(error)) => Err(failed("write", folder)(error)),
        (Ok(_), Ok(())) => Ok(()),
    }
}

/// Removes the folders that nobody uses; says how many bytes they took.
pub(super) fn clear(folder: &Path) -> Result<u64, Error> {
    let Some(entries) = found(fs::read_dir(folder), "read", folder)? else {
        return Ok(0);
    };
    let mut freed = 0;
    for entry in entries {
        let path = entry.map_err(failed("read", folder))?.path();
        if path.extension().is_some_and(|extension| extension == LOCK) {
            freed += remove_unused(&path)?;
        }
    }
    Ok(freed)
}

/// Removes what has this lock, unless somebody holds it.
fn remove_unused(lock_path: &Path) -> Result<u64, Error> {
    let opened = File::options().read(true).write(true).open(lock_path);
    let Some(file) = found(opened, "open", lock_path)? else {
        return Ok(0);
    };
    match lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
        locked => locked.map_err(failed("lock", lock_path))?,
    }
    if !is_named(&file, lock_path).map_err(failed("read", lock_path))? {
        return Ok(0);
    }
    let (whole, partial) = (
        lock_path.with_extension(""),
        lock_path.with_extension("partial"),
    );
    let mut freed = remove_folder(&partial)?;
    // Under its own name it is whole, also if we are killed now.
    if found(fs::rename(&whole, &partial), "remove", &whole)?.is_some() {
        freed += remove_folder(&partial)?;
    }
    fs::remove_file(lock_path).map_err(failed("remove", lock_path))?;
    Ok(freed)
}

/// Removes a folder of ours, whatever an image has in it; says how many bytes it took.
fn remove_folder(folder: &Path) -> Result<u64, Error> {
    if fs::symlink_metadata(folder).is_err() {
        return Ok(0);
    }
    let freed = open_up(folder).map_err(failed("read", folder))?;
    fs::remove_dir_all(folder).map_err(failed("remove", folder))?;
    Ok(freed)
}

/// Lets its owner into each folder, which an image may not; says how many bytes the files have.
fn open_up(folder: &Path) -> io::Result<u64> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => open_up(&entry.path())?,
            false => metadata.len() / metadata.nlink().max(1),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;

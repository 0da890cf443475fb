//! Images as folders: what a sandbox without a machine takes for its root.
//!
//! `<cache>/rootfs/<key>` is the image's root, and appears there whole: it is made in `<key>.partial`, written to the disk and
//! renamed. `<key>.lock` is locked by whoever uses the folder, makes it or removes it, so that it is neither made twice nor
//! removed while it is used. The lock's file is removed with the folder, so who gets a lock looks whether it is still the one.
//! It holds how many bytes the folder takes, and its time is that of the last use.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use minivm_image::Image;
use minivm_image::rootfs::{self, Compression, Limits, Summary};
use rustix::fs::{FlockOperation, syncfs};

use super::tree::{self, Cleared};
use super::{Error, failed, fill, found, key_of, lock, touch};

/// Changes when the same image makes another folder.
const FORMAT: &str = "1";
const LOCK: &str = "lock";
const PARTIAL: &str = "partial";
/// What a file takes on a disk beside its bytes, at most.
const BLOCK: u64 = 4096;

/// An image's root folder that is there, and stays as long as this does. Nobody may write to it.
#[derive(Debug)]
pub struct Root {
    /// The folder.
    pub path: PathBuf,
    _lock: File,
}

/// The image's root below `folder`, made where it isn't there; says whether it was.
pub(super) fn open(
    folder: &Path,
    image: &Image,
    making: impl FnOnce(),
) -> Result<(Root, bool), Error> {
    let path = folder.join(key_of(&[FORMAT.as_bytes(), image.identity.as_bytes()]));
    let mut making = Some(making);
    loop {
        let shared = hold(&path, FlockOperation::LockShared)?;
        if path.is_dir() {
            touch(&shared);
            let _lock = shared;
            return Ok((Root { path, _lock }, making.is_none()));
        }
        drop(shared);
        // Who comes second waits, and finds it made.
        let alone = hold(&path, FlockOperation::LockExclusive)?;
        if !path.is_dir() {
            if let Some(making) = making.take() {
                making();
            }
            make(&path, image, &alone)?;
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
        let opened = options.open(&path);
        // A cache that can only be read holds what it holds.
        let opened = opened.or_else(|error| File::open(&path).map_err(|_| error));
        let file = opened.map_err(failed("open", &path))?;
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
fn make(path: &Path, image: &Image, lock: &File) -> Result<(), Error> {
    let partial = path.with_extension(PARTIAL);
    tree::remove(&partial).whole()?;
    fs::create_dir(&partial).map_err(failed("create", &partial))?;
    let made = pour(image, &partial).and_then(|made| {
        write_size(lock, made.bytes + BLOCK * made.files);
        let synced = File::open(&partial).and_then(|folder| Ok(syncfs(&folder)?));
        synced.map_err(failed("write", &partial))?;
        fs::rename(&partial, path).map_err(failed("create", path))
    });
    if made.is_err() {
        // It may be large, and nobody goes on from it.
        tree::remove(&partial);
    }
    made
}

/// Notes what the folder takes. Where that can't be, it is counted when it has to be known.
fn write_size(lock: &File, size: u64) {
    let _ = lock.set_len(0);
    let _ = lock.write_all_at(size.to_string().as_bytes(), 0);
}

fn pour(image: &Image, folder: &Path) -> Result<Summary, Error> {
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
        (Ok(made), Ok(())) => Ok(made),
    }
}

/// Removes the folders that are in no use.
pub(super) fn clear(folder: &Path) -> Cleared {
    let mut cleared = Cleared::default();
    match all(folder) {
        Ok(roots) => roots
            .iter()
            .for_each(|root| cleared.add(remove_unused(root).0)),
        Err(error) => cleared.note(error),
    }
    cleared
}

/// The folders that are there, whole or not, or were.
pub(super) fn all(folder: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let mut roots = BTreeSet::new();
    let entries = found(fs::read_dir(folder), "read", folder)?;
    for entry in entries.into_iter().flatten() {
        let path = entry.map_err(failed("read", folder))?.path();
        let extension = path.extension();
        if extension.is_none_or(|extension| extension == LOCK || extension == PARTIAL) {
            roots.insert(path.with_extension(""));
        }
    }
    Ok(roots)
}

/// When a root was used last, and how many bytes it takes.
pub(super) fn used(root: &Path) -> io::Result<(SystemTime, u64)> {
    let mut file = File::open(root.with_extension(LOCK))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let used = file.metadata()?.modified()?;
    let size = match text.parse() {
        Ok(size) => size,
        // One that was made before sizes were noted, or on a full disk.
        Err(_) => {
            let size = tree::size(root) + tree::size(&root.with_extension(PARTIAL));
            if let Ok(Some(lock)) = lock_alone(root) {
                write_size(&lock, size);
                let _ = lock.set_modified(used);
            }
            size
        }
    };
    Ok((used, size))
}

/// Removes a root unless it is in use; says whether it is gone.
pub(super) fn remove_unused(root: &Path) -> (Cleared, bool) {
    let mut cleared = Cleared::default();
    let gone = match lock_alone(root) {
        Ok(None) => false,
        Ok(Some(file)) => {
            cleared.add(remove_locked(root));
            let gone = cleared.left.is_empty();
            drop(file);
            gone
        }
        Err(error) => {
            cleared.note(error);
            false
        }
    };
    (cleared, gone)
}

/// The root's lock, if no process holds it.
fn lock_alone(root: &Path) -> Result<Option<File>, Error> {
    match hold(root, FlockOperation::NonBlockingLockExclusive) {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => Ok(None),
        held => held.map(Some),
    }
}

/// Removes what there is of a root, and its lock at last.
fn remove_locked(root: &Path) -> Cleared {
    let partial = root.with_extension(PARTIAL);
    let mut cleared = tree::remove(&partial);
    // Under its own name it is whole, also if we are killed now.
    match found(fs::rename(root, &partial), "remove", root) {
        Ok(Some(())) => cleared.add(tree::remove(&partial)),
        Ok(None) => {}
        Err(error) => cleared.note(error),
    }
    if cleared.left.is_empty() {
        let lock = root.with_extension(LOCK);
        if let Err(error) = found(fs::remove_file(&lock), "remove", &lock) {
            cleared.note(error);
        }
    }
    cleared
}

#[cfg(test)]
mod tests;

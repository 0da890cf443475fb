//! Images as folders, which sandboxes without a machine take for their root.
//!
//! `<cache>/rootfs/<key>` is the image's root, published as a [`Folder`]. The lock's file holds how many bytes the folder takes, and
//! its time is that of the last use.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use minivm_image::Image;
use minivm_image::io_error::failed;
use minivm_image::publish::{self, Folder, Lock, tree};
use minivm_image::rootfs::{self, Compression, Limits, Summary};

use super::{Cleared, Error, fill, key_of};

/// The format's version, which changes when the same image makes another folder.
const FORMAT: &str = "1";
/// Bytes that a file takes on a disk beside its own, at most.
const BLOCK: u64 = 4096;

/// An image's root folder, which stays in the cache as long as this value is held. It must not be written to.
#[derive(Debug)]
pub struct Root {
    /// Path of the folder.
    pub path: PathBuf,
    _lock: Lock,
}

/// Returns the key of the root of an image with this identity.
pub(super) fn key(identity: &str) -> String {
    key_of(&[FORMAT.as_bytes(), identity.as_bytes()])
}

/// Returns the root at `path`, if it is there.
pub(super) fn find(path: PathBuf) -> Result<Option<Root>, Error> {
    let entry = Folder::new(&path);
    // `hold` would make the lock of a missing folder.
    if !entry.is_there() {
        return Ok(None);
    }
    let _lock = entry.hold()?;
    if !entry.is_there() {
        return Ok(None);
    }
    _lock.touch();
    Ok(Some(Root { path, _lock }))
}

/// Returns the image's root at `path`, made where it isn't there, and whether it was made.
pub(super) fn open(
    path: PathBuf,
    image: &Image,
    making: impl FnOnce(),
) -> Result<(Root, bool), Error> {
    let mut making = Some(making);
    let opened = Folder::new(&path).open_or_make(
        |_| true,
        |partial, lock| {
            if let Some(making) = making.take() {
                making();
            }
            let made = pour(image, partial)?;
            write_size(lock, made.bytes + BLOCK * made.files);
            Ok::<_, Error>(())
        },
    );
    let (_lock, made) = opened?;
    Ok((Root { path, _lock }, made))
}

/// Notes the folder's size. Where it can't be noted, the files are counted when the size is needed.
fn write_size(lock: &Lock, size: u64) {
    let _ = lock.file().set_len(0);
    let _ = lock.file().write_all_at(size.to_string().as_bytes(), 0);
}

/// Fills the folder. The image goes through a pipe as an archive, for which there is a careful reader.
fn pour(image: &Image, folder: &Path) -> Result<Summary, Error> {
    let dir = File::open(folder).map_err(failed("open", folder))?;
    let (from, to) = io::pipe().map_err(failed("create a pipe for", folder))?;
    let (written, filled) = thread::scope(|scope| {
        let write = scope.spawn(move || {
            let out = BufWriter::with_capacity(1 << 20, to);
            rootfs::write(image, b"", Compression::None, &Limits::default(), out)
        });
        // The pipe ends with this, so the writer ends too.
        let filled = fill::fill(dir.into(), BufReader::with_capacity(1 << 20, from));
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
        (_, Err(error)) => Err(failed("write", folder)(error).into()),
        (Ok(made), Ok(())) => Ok(made),
    }
}

/// Removes the folders that aren't in use.
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

/// Returns the paths of the folders that are there, whole or not, or were.
pub(super) fn all(folder: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    Ok(Folder::all(folder)?)
}

/// Returns when a root was used last, and how many bytes it takes.
pub(super) fn used(root: &Path) -> io::Result<(SystemTime, u64)> {
    let entry = Folder::new(root);
    let lock = publish::open(&entry.lock_path())?;
    let mut lock = lock.ok_or(io::ErrorKind::NotFound)?;
    let mut text = String::new();
    lock.read_to_string(&mut text)?;
    let used = lock.metadata()?.modified()?;
    let size = match text.parse() {
        Ok(size) => size,
        // One that was made before sizes were noted, or on a full disk.
        Err(_) => {
            let size = tree::size(root) + tree::size(&entry.partial_path());
            if let Ok(Some(lock)) = entry.try_lock() {
                write_size(&lock, size);
                let _ = lock.file().set_modified(used);
            }
            size
        }
    };
    Ok((used, size))
}

/// Removes a root unless it is in use; returns whether it is gone.
pub(super) fn remove_unused(root: &Path) -> (Cleared, bool) {
    let entry = Folder::new(root);
    let mut cleared = Cleared::default();
    match entry.try_lock() {
        Ok(None) => return (cleared, false),
        Ok(Some(lock)) => cleared.add(entry.remove(lock)),
        Err(error) => cleared.note(error.into()),
    }
    let gone = cleared.left.is_empty();
    (cleared, gone)
}

#[cfg(test)]
mod tests;

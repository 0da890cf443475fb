//! Images as folders: what a sandbox without a machine takes for its root.
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

/// Changes when the same image makes another folder.
const FORMAT: &str = "1";
/// What a file takes on a disk beside its bytes, at most.
const BLOCK: u64 = 4096;

/// An image's root folder that is there, and stays as long as this does. Nobody may write to it.
#[derive(Debug)]
pub struct Root {
    /// The folder.
    pub path: PathBuf,
    _lock: Lock,
}

/// The image's root below `folder`, made where it isn't there; says whether it was.
pub(super) fn open(
    folder: &Path,
    image: &Image,
    making: impl FnOnce(),
) -> Result<(Root, bool), Error> {
    let path = folder.join(key_of(&[FORMAT.as_bytes(), image.identity.as_bytes()]));
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

/// Notes what the folder takes. Where that can't be, it is counted when it has to be known.
fn write_size(lock: &Lock, size: u64) {
    let _ = lock.file().set_len(0);
    let _ = lock.file().write_all_at(size.to_string().as_bytes(), 0);
}

/// Fills the folder. The image goes through memory as an archive, which is what there is a careful reader for.
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
    Ok(Folder::all(folder)?)
}

/// When a root was used last, and how many bytes it takes.
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

/// Removes a root unless it is in use; says whether it is gone.
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

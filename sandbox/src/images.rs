//! Images as initramfs archives, each made once and kept.
//!
//! `<cache>/initramfs/<key>.cpio` is the archive of the image with the key's identity and of the init that this program
//! carries. It appears there whole: it is written to a file without a name, which gets its name when it is complete.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use minivm_guest::image::{Image, Store};
use minivm_guest::rootfs::{self, Compression, Limits, Summary};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat};
use sha2::{Digest, Sha256};

/// `minivm-init`, which every archive has.
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/minivm-init"));
/// Changes when the same image and init make other bytes.
const FORMAT: &str = "2";

/// Why there is no archive of an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image can't be made one.
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    /// A file can't be written or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where archives and images are kept.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// In the cache folder `cache`, see [`crate::cache::folder`].
    pub fn new(cache: &Path) -> Self {
        Shelf {
            folder: cache.to_owned(),
        }
    }

    /// Where images are kept.
    pub fn store(&self) -> Store {
        Store::new(self.folder.join("images"))
    }

    /// Removes all images and archives; says how many bytes they took. What a machine is being made of stays until it is
    /// made, and what is being pulled stays altogether.
    ///
    /// # Errors
    ///
    /// Where something can't be removed.
    pub fn clear(&self) -> Result<u64, Error> {
        let mut freed = 0;
        for folder in ["initramfs", "images"] {
            freed += clear(&self.folder.join(folder))?;
        }
        Ok(freed)
    }

    /// The image's archive, and its size in bytes. It is made if it isn't there; `making` is called before that.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept.
    pub fn archive(&self, image: &Image, making: impl FnOnce()) -> Result<(PathBuf, u64), Error> {
        let folder = self.folder.join("initramfs");
        let path = folder.join(format!("{}.cpio", key(image)));
        if let Some(size) = size(&path) {
            return Ok((path, size));
        }
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        // Who comes second waits, and finds it made. The kernel takes the lock back however this process ends.
        let lock_path = path.with_extension("lock");
        let lock = File::create(&lock_path).map_err(failed("create", &lock_path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| failed("lock", &lock_path)(errno.into()))?;
        if let Some(size) = size(&path) {
            return Ok((path, size));
        }
        making();
        let whole = unnamed(&folder).map_err(failed("create a file in", &folder))?;
        write(image, Compression::None, &whole, &path)?;
        name(&whole, &path).map_err(failed("create", &path))?;
        let _ = fs::remove_file(&lock_path);
        let size =
            size(&path).ok_or_else(|| failed("read", &path)(io::ErrorKind::NotFound.into()))?;
        Ok((path, size))
    }
}

/// Removes the files in a folder and below it; says how many bytes they took. Files that somebody has locked stay.
fn clear(folder: &Path) -> Result<u64, Error> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(failed("read", folder))?,
    };
    let mut freed = 0;
    for entry in entries {
        let path = entry.map_err(failed("read", folder))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(failed("read", &path))?;
        if metadata.is_dir() {
            freed += clear(&path)?;
        } else if !is_locked(&path) {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            freed += metadata.len();
        }
    }
    Ok(freed)
}

fn is_locked(path: &Path) -> bool {
    let locked = |file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
    File::open(path).is_ok_and(locked)
}

/// Writes the image's archive to a file of the user's, which appears when it is whole.
///
/// # Errors
///
/// Where it can't be made or written.
pub fn build(image: &Image, compression: Compression, path: &Path) -> Result<Summary, Error> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new("."));
    let Ok(file) = unnamed(folder) else {
        return build_named(image, compression, path, folder);
    };
    let summary = write(image, compression, &file, path)?;
    // Only a name that is free can be given to it; the other one is there for a moment.
    let named = tempfile::Builder::new().make_in(folder, |free| {
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(linkat(CWD, own, CWD, free, AtFlags::SYMLINK_FOLLOW)?)
    });
    let named = named.map_err(failed("create a file in", folder))?;
    let persisted = named.into_temp_path().persist(path);
    persisted.map_err(|error| failed("create", path)(error.error))?;
    Ok(summary)
}

/// Writes it where a file system knows no files without a name. A kill leaves the file there, under a name of its own.
fn build_named(
    image: &Image,
    compression: Compression,
    path: &Path,
    folder: &Path,
) -> Result<Summary, Error> {
    let mut file =
        tempfile::NamedTempFile::new_in(folder).map_err(failed("create a file in", folder))?;
    let summary = write(image, compression, file.as_file_mut(), path)?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.path(), permissions).map_err(failed("create", path))?;
    file.persist(path)
        .map_err(|error| failed("create", path)(error.error))?;
    Ok(summary)
}

fn write(
    image: &Image,
    compression: Compression,
    file: &File,
    path: &Path,
) -> Result<Summary, Error> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let summary = rootfs::write(image, INIT, compression, &Limits::default(), &mut out)?;
    out.flush().map_err(failed("write", path))?;
    Ok(summary)
}

/// What an archive is known by.
fn key(image: &Image) -> String {
    let mut hash = Sha256::new();
    for part in [FORMAT.as_bytes(), image.identity.as_bytes()] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.update(init_digest());
    let digest = hash.finalize();
    digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Init's own digest, which `build.rs` has made: it would take a millisecond of each run.
fn init_digest() -> &'static [u8] {
    env!("MINIVM_INIT_DIGEST").as_bytes()
}

fn size(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    metadata.is_file().then_some(metadata.len())
}

/// A file that is gone with its last descriptor, unless it gets a name.
fn unnamed(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::from_raw_mode(0o644))?.into())
}

/// Gives it one. Somebody else may have done so with the same bytes.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        linked => Ok(linked?),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shelf_is_cleared_but_for_what_is_in_use() {
        let cache = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(cache.path());
        assert_eq!(shelf.clear().unwrap(), 0, "there is nothing yet");
        let blobs = cache.path().join("images/blobs/sha256");
        let initramfs = cache.path().join("initramfs");
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&initramfs).unwrap();
        fs::create_dir_all(cache.path().join("kernel")).unwrap();
        fs::write(blobs.join("a"), [0; 100]).unwrap();
        fs::write(initramfs.join("b.cpio"), [0; 20]).unwrap();
        fs::write(cache.path().join("kernel/vmlinux"), [0; 3]).unwrap();
        let held = File::create(blobs.join("pulled")).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        assert_eq!(shelf.clear().unwrap(), 120);
        assert!(blobs.join("pulled").exists());
        assert!(cache.path().join("kernel/vmlinux").exists());
        assert!(!blobs.join("a").exists() && !initramfs.join("b.cpio").exists());
    }
}

//! Files that are made of images: each is made once, and stays in the cache as long as it is held.

use std::borrow::Borrow;
use std::fs::File;
use std::path::{Path, PathBuf};

use minivm_image::Image;
use minivm_image::erofs::read::{self, Reader};
use minivm_image::io_error::failed;
use minivm_image::publish::{self, Found};
use minivm_image::rootfs;
use rustix::fs::{FlockOperation, flock};

use super::{Error, removed};
use crate::room;

/// A kind of file.
pub(super) trait Entry: Sized {
    /// Makes the value of a file that is held; `None` where the file is damaged, and has to be made again.
    fn of(file: File, path: &Path) -> Result<Option<Self>, Error>;

    /// Opens the file of this name, if there is a whole one.
    fn open(path: &Path) -> Result<Option<Self>, Error> {
        match publish::hold(path)? {
            Some(file) => Self::of(file, path),
            None => Ok(None),
        }
    }

    /// Opens the file of this name, and returns whether it was made. Only where it isn't there, `image` is called for the image, and
    /// `fill` writes that to the file.
    fn open_or_make<I: Borrow<Image>, E: From<Error>>(
        path: &Path,
        image: impl FnOnce() -> Result<I, E>,
        fill: impl FnOnce(&Image, &mut File) -> Result<(), Error>,
    ) -> Result<(Self, bool), E> {
        let found = publish::find(path.with_extension("partial"), || Self::open(path));
        let partial = match found? {
            Found::There(entry) => return Ok((entry, false)),
            Found::Missing(partial) => partial,
        };
        let image = match image() {
            Ok(image) => image,
            Err(error) => {
                let _ = partial.discard();
                return Err(error);
            }
        };
        let file = partial.make(path, |file| fill(image.borrow(), file))?;
        let held = publish::hold_open(file, path).map_err(Error::from)?;
        let made = held.map(|file| Self::of(file, path)).transpose()?.flatten();
        Ok((made.ok_or_else(|| removed(path))?, true))
    }
}

/// A file that its lock keeps in the cache.
#[derive(Debug)]
struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // A process that another thread has just forked has the file open too, until it executes a program: closing is not enough.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// An archive, which stays in the cache as long as this value is held.
#[derive(Debug)]
pub struct Archive {
    /// Path of the archive.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Number of its files, folders and links.
    pub files: u64,
    _lock: Held,
}

impl Entry for Archive {
    fn of(file: File, path: &Path) -> Result<Option<Archive>, Error> {
        let files = rootfs::inodes(&file).map_err(failed("read", path))?;
        Ok(Some(Archive {
            path: path.to_owned(),
            size: size(&file, path)?,
            files: files.unwrap_or_default(),
            _lock: Held(file),
        }))
    }
}

impl Archive {
    /// Returns the size of the memory, in bytes, that a guest with this archive gets by default.
    pub fn default_memory(&self) -> u64 {
        room::default_memory(self.size, self.files)
    }

    /// Checks that a guest with `memory` bytes of memory holds this archive's files.
    ///
    /// # Errors
    ///
    /// [`Error::NoRoom`](crate::Error::NoRoom) where it doesn't.
    pub fn check_memory(&self, memory: u64) -> Result<(), crate::Error> {
        room::check_memory(self.size, self.files, memory)
    }
}

/// An EROFS image, which stays in the cache as long as this value is held.
#[derive(Debug)]
pub struct Erofs {
    /// Path of the EROFS image.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    _lock: Held,
}

impl Entry for Erofs {
    fn of(file: File, path: &Path) -> Result<Option<Erofs>, Error> {
        // A disk may have lost a part of it.
        match Reader::open(&file) {
            Ok(_) => {}
            Err(read::Error::Read(source)) => return Err(failed("read", path)(source).into()),
            Err(error) => {
                log::debug!("{} is made again: {error}", path.display());
                return Ok(None);
            }
        }
        Ok(Some(Erofs {
            path: path.to_owned(),
            size: size(&file, path)?,
            _lock: Held(file),
        }))
    }
}

impl Erofs {
    /// Returns the memory, in bytes, that a guest's kernel takes for the structures of this image's pages.
    pub fn page_structures(&self) -> u64 {
        room::page_structures(self.size)
    }
}

fn size(file: &File, path: &Path) -> Result<u64, Error> {
    let metadata = file.metadata().map_err(failed("read", path))?;
    Ok(metadata.len())
}

//! Where pulled images are kept.
//!
//! ```text
//! <folder>/blobs/sha256/<hex>   content by its digest: manifests, configurations, layers as they are stored in the registry
//! <folder>/tags/<hex>           which manifest a tag had, by the SHA-256 of the image's name
//! <folder>/known/<hex>          what opening an image has found, by its manifest and the platform
//! <folder>/engine/<hex>         archives that a container engine saved, by the image's id
//! <folder>/partial/<name>       all of these while they are made
//! <folder>/lock                 locked by pulls together, and alone by the process that clears the folder
//! ```
//!
//! Only its owner can read it: an image may be private.
//!
//! Whatever is made is made in `partial` under a name that follows from what it will be, and by one process at a time, see
//! [`publish`]. Nothing stale is left by a kill but a beginning, which the next maker goes on from or writes over. A finished file
//! is checked before it gets its name. A process that reads it holds its lock together with others, and notes the use by the
//! file's time, so that what is removed is not in use, and is what was used longest ago.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Error;
use super::image::Config;
use super::manifest::LARGEST_CONFIG;
use super::platform::Platform;
use super::publish::{self, Lock, Partial};

/// The most bytes of what a tag stood for: two strings.
pub(super) const TAG_MAX: u64 = 64 << 10;

/// The most bytes of a record: a configuration, whose characters may each be escaped, and the digests of an image's content.
pub(super) const RECORD_MAX: u64 = 6 * LARGEST_CONFIG;

/// A folder that keeps what was pulled, shared by all processes that use it.
///
/// It is made when the first thing is put into it. Removing it, or anything in it, costs a further pull and nothing else.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// Whether something was put into it by this one or a clone.
    grown: Arc<AtomicBool>,
}

/// What a tag stood for when it was last pulled.
#[derive(Serialize, Deserialize)]
pub(super) struct Tag {
    pub(super) image: String,
    pub(super) manifest: String,
}

/// What opening an image has found, for the next process that needs what was made of the image and no more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// Of the image's manifest or index.
    pub(super) manifest: Digest,
    pub(super) platform: Platform,
    /// [`Image::identity`](super::Image::identity).
    pub(super) identity: String,
    pub(super) config: Config,
    /// All content of the image that the store has.
    pub(super) blobs: Vec<Digest>,
}

impl Store {
    /// A store in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Store {
        Store {
            folder: folder.into(),
            grown: Arc::default(),
        }
    }

    /// Whether something was put into it, through this one or a clone.
    pub fn has_grown(&self) -> bool {
        self.grown.load(Ordering::Relaxed)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }

    /// The archive that an engine saved of the image with this id.
    pub(super) fn engine_path(&self, id: &Digest) -> PathBuf {
        self.folder.join("engine").join(id.hex())
    }

    /// The content of this digest, if it is here and, as far as the size is known, whole.
    pub(super) fn blob(&self, digest: &Digest, size: Option<u64>) -> Result<Option<File>, Error> {
        let path = self.blob_path(digest);
        let Some(file) = self.open(&path)? else {
            return Ok(None);
        };
        let len = file
            .metadata()
            .map_err(|source| failed(&path, source))?
            .len();
        Ok(size.is_none_or(|size| size == len).then_some(file))
    }

    /// A finished file of the store, if it is there. It stays there as long as it is open, and counts as used now.
    pub(super) fn open(&self, path: &Path) -> Result<Option<File>, Error> {
        let file = publish::open(path).map_err(|source| failed(path, source))?;
        Ok(file.inspect(publish::keep_there))
    }

    /// The digest that the image's tag had, if it was pulled before. What can't be read is forgotten.
    pub(super) fn remembered(&self, image: &str) -> Result<Option<Digest>, Error> {
        let path = self.tag_path(image);
        let Some(file) = self.open(&path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let read = file.take(TAG_MAX).read_to_end(&mut bytes);
        read.map_err(|source| failed(&path, source))?;
        let tag = serde_json::from_slice(&bytes).ok();
        let tag = tag.filter(|tag: &Tag| tag.image == image);
        Ok(tag.and_then(|tag| tag.manifest.parse().ok()))
    }

    /// Remembers the digest of the image's tag.
    pub(super) fn remember(&self, image: &str, manifest: &Digest) -> Result<(), Error> {
        let tag = Tag {
            image: image.to_owned(),
            manifest: manifest.to_string(),
        };
        let bytes = serde_json::to_vec(&tag).expect("two strings are JSON");
        let path = self.tag_path(image);
        let name = format!("tag-{}", Digest::of(image).hex());
        write(self.partial(&name)?, &bytes, &path)
    }

    /// What opening the image of this manifest has found before. What can't be read is forgotten.
    pub(super) fn recorded(
        &self,
        manifest: &Digest,
        platform: &Platform,
    ) -> Result<Option<Record>, Error> {
        let path = self.record_path(manifest, platform);
        let Some(file) = self.open(&path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let read = file.take(RECORD_MAX).read_to_end(&mut bytes);
        read.map_err(|source| failed(&path, source))?;
        let record: Option<Record> = serde_json::from_slice(&bytes).ok();
        Ok(record.filter(|record| record.manifest == *manifest && record.platform == *platform))
    }

    /// Records what opening an image has found.
    pub(super) fn record(&self, record: &Record) -> Result<(), Error> {
        let bytes = serde_json::to_vec(record).expect("texts and lists of them are JSON");
        let path = self.record_path(&record.manifest, &record.platform);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        write(self.partial(&format!("known-{name}"))?, &bytes, &path)
    }

    /// Keeps content whose digest was checked.
    pub(super) fn keep(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.blob_path(digest);
        write(self.partial(digest.hex())?, bytes, &path)
    }

    /// Makes a file without a name, which is gone when it is closed.
    ///
    /// # Errors
    ///
    /// Where it can't be made.
    pub fn spool(&self) -> Result<File, Error> {
        let made = publish::make_folder(&self.folder);
        made.map_err(|source| failed(&self.folder, source))?;
        tempfile::tempfile_in(&self.folder).map_err(|source| failed(&self.folder, source))
    }

    /// The beginning of a file, locked; waits while another process makes it, so it may be finished by now.
    pub(super) fn partial(&self, name: &str) -> Result<Partial, Error> {
        self.grown.store(true, Ordering::Relaxed);
        Ok(Partial::lock(self.folder.join("partial").join(name))?)
    }

    /// Keeps the store from being cleared until the lock is dropped; waits while it is cleared.
    pub(super) fn hold(&self) -> Result<Lock, Error> {
        Ok(Lock::shared(&self.lock_path())?)
    }

    /// Keeps pulls from starting until the lock is dropped; `None` if one is under way. The lock's file has to stay when the
    /// store is cleared.
    ///
    /// # Errors
    ///
    /// Where the lock's file can't be made or locked.
    pub fn hold_alone(&self) -> Result<Option<Lock>, Error> {
        Ok(Lock::try_alone(&self.lock_path())?)
    }

    /// The file that [`Store::hold_alone`] locks.
    pub fn lock_path(&self) -> PathBuf {
        self.folder.join("lock")
    }

    pub(super) fn record_path(&self, manifest: &Digest, platform: &Platform) -> PathBuf {
        let key = format!("{manifest} {platform}");
        self.folder.join("known").join(Digest::of(key).hex())
    }

    pub(super) fn tag_path(&self, image: &str) -> PathBuf {
        self.folder.join("tags").join(Digest::of(image).hex())
    }
}

/// Writes small content that is whole.
fn write(partial: Partial, bytes: &[u8], to: &Path) -> Result<(), Error> {
    let written = partial.make(to, |file| {
        file.write_all(bytes).map_err(|source| failed(to, source))
    });
    written.map(drop)
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Store {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_tag_is_remembered_and_can_change() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("not/yet"));
        assert_eq!(store.remembered("a:1").unwrap(), None);
        for content in ["x", "y"] {
            store.remember("a:1", &Digest::of(content)).unwrap();
            assert_eq!(store.remembered("a:1").unwrap(), Some(Digest::of(content)));
        }
        assert_eq!(store.remembered("a:2").unwrap(), None);
    }

    #[test]
    fn a_damaged_tag_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        store.remember("a:1", &Digest::of("x")).unwrap();
        for garbage in [
            "",
            "{",
            r#"{"image":"a:1","manifest":"sha256:../../etc/passwd"}"#,
        ] {
            fs::write(store.tag_path("a:1"), garbage).unwrap();
            assert_eq!(store.remembered("a:1").unwrap(), None);
        }
    }

    #[test]
    fn a_blob_of_another_size_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let digest = Digest::of("content");
        store.keep(&digest, b"content").unwrap();
        assert!(store.blob(&digest, Some(7)).unwrap().is_some());
        assert!(store.blob(&digest, Some(8)).unwrap().is_none());
    }

    #[test]
    fn a_second_maker_waits_and_finds_the_file_finished() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let digest = Digest::of("content");
        let mut first = store.partial(digest.hex()).unwrap();
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let second = store.partial(digest.hex()).unwrap();
                sender.send(()).unwrap();
                assert!(store.blob(&digest, None).unwrap().is_some());
                assert_eq!(second.file.metadata().unwrap().len(), 0);
            });
            let early = receiver.recv_timeout(Duration::from_millis(100));
            assert!(early.is_err(), "the second maker did not wait");
            first.file.write_all(b"content").unwrap();
            drop(first.publish(&store.blob_path(&digest)).unwrap());
            receiver
                .recv_timeout(minivm_tests::patience::PATIENCE)
                .unwrap();
        });
    }

    #[test]
    fn what_is_kept_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("images"));
        let digest = Digest::of("content");
        store.keep(&digest, b"content").unwrap();
        let _held = store.hold().unwrap();
        for (path, mode) in [
            (store.blob_path(&digest), 0o100_600),
            (store.lock_path(), 0o100_600),
            (store.folder().to_owned(), 0o040_700),
            (store.folder().join("partial"), 0o040_700),
        ] {
            assert_eq!(fs::metadata(&path).unwrap().mode(), mode, "{path:?}");
        }
    }

    #[test]
    fn a_store_that_is_pulled_into_is_not_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let pulls = [store.hold().unwrap(), store.hold().unwrap()];
        assert!(store.hold_alone().unwrap().is_none());
        drop(pulls);
        assert!(store.hold_alone().unwrap().is_some());
    }

    #[test]
    fn a_beginning_outlives_its_maker_and_a_spool_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        store
            .partial("x")
            .unwrap()
            .file
            .write_all(b"begin")
            .unwrap();
        assert_eq!(
            store.partial("x").unwrap().file.metadata().unwrap().len(),
            5
        );
        store.partial("x").unwrap().discard().unwrap();
        store.spool().unwrap().write_all(b"spooled").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(
            fs::read_dir(folder.path().join("partial")).unwrap().count(),
            0
        );
    }
}

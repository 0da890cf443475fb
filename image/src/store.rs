//! Where pulled images are kept.
//!
//! ```text
//! <folder>/blobs/sha256/<hex>   content by its digest: manifests, configurations, layers as they are stored in the registry
//! <folder>/tags/<hex>           which manifest a tag had, by the SHA-256 of the image's name
//! <folder>/engine/<hex>         archives that a container engine saved, by the image's id
//! <folder>/partial/<name>       all of these while they are made
//! <folder>/lock                 locked by pulls together, and by who clears the folder alone
//! ```
//!
//! All of it is its owner's to read and nobody else's: an image may be private.
//!
//! Whatever is made is made in `partial` under a name that follows from what it will be, and by one process at a time: the
//! maker holds the file's lock (`flock`), which the kernel drops when the process ends, however it ends. So nothing stale
//! is left by a kill but a beginning, which the next maker goes on from or writes over. A finished file is checked, then
//! renamed to its place: there it is whole or absent. A process that reads it holds its lock together with others, and notes the use
//! by the file's time, so that what is removed is not in use, and is what was used longest ago.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Error;
use super::files;

/// How long somebody else may hold a lock without writing; longer than any pause of a pull or of an engine.
const PATIENCE: Duration = Duration::from_secs(900);

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
struct Tag {
    image: String,
    manifest: String,
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
        match files::open_regular(path) {
            Ok(file) => {
                keep_there(&file);
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed(path, source)),
        }
    }

    /// The digest that the image's tag had, if it was pulled before. What can't be read is forgotten.
    pub(super) fn remembered(&self, image: &str) -> Result<Option<Digest>, Error> {
        let path = self.tag_path(image);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(&path, source)),
        };
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
        self.partial(&name)?.write(&bytes, &path)
    }

    /// Keeps content whose digest was checked.
    pub(super) fn keep(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.blob_path(digest);
        self.partial(digest.hex())?.write(bytes, &path)
    }

    /// A file without a name, which is gone when it is closed.
    pub(super) fn spool(&self) -> Result<File, Error> {
        self.make(&self.folder)?;
        tempfile::tempfile_in(&self.folder).map_err(|source| failed(&self.folder, source))
    }

    /// The beginning of a file, locked; waits while somebody else makes it. Look whether it is finished by now.
    pub(super) fn partial(&self, name: &str) -> Result<Partial, Error> {
        self.grown.store(true, Ordering::Relaxed);
        Partial::lock(self.folder.join("partial").join(name))
    }

    /// Keeps the store from being cleared until the file is closed; waits while it is cleared.
    pub(super) fn hold(&self) -> Result<File, Error> {
        self.locked(FlockOperation::LockShared)
    }

    /// Keeps pulls from starting until the file is closed; `None` if one is under way. The lock's file has to stay when the
    /// store is cleared.
    ///
    /// # Errors
    ///
    /// Where the lock's file can't be made or locked.
    pub fn hold_alone(&self) -> Result<Option<File>, Error> {
        match self.locked(FlockOperation::NonBlockingLockExclusive) {
            Ok(held) => Ok(Some(held)),
            Err(Error::Store { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The file that [`Store::hold_alone`] locks.
    pub fn lock_path(&self) -> PathBuf {
        self.folder.join("lock")
    }

    fn locked(&self, operation: FlockOperation) -> Result<File, Error> {
        self.make(&self.folder)?;
        let path = self.lock_path();
        let file = open_own(&path).map_err(|source| failed(&path, source))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(file),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(&path, error.into())),
            }
        }
    }

    fn tag_path(&self, image: &str) -> PathBuf {
        self.folder.join("tags").join(Digest::of(image).hex())
    }

    fn make(&self, folder: &Path) -> Result<(), Error> {
        make(folder)
    }
}

/// Keeps a file from being removed as long as it is open, and notes its use. Where that can't be, in a store that can only be
/// read, it may go early: who has it open can read it all the same.
fn keep_there(file: &File) {
    while flock(file, FlockOperation::LockShared) == Err(Errno::INTR) {}
    let now = fs::FileTimes::new().set_modified(SystemTime::now());
    let _ = file.set_times(now);
}

/// Makes a folder, and those it is in, for its owner only.
fn make(folder: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| failed(folder, source))
}

/// Opens a file that its owner may read and write, and nobody else.
fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options.mode(0o600).open(path)
}

/// Opens and locks the file of this name. Who had the lock before may have renamed or removed it meanwhile; then the lock
/// is on a file that has no, or another, name, and it takes another turn.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = open_own(path)?;
        wait_for_lock(path, &file, PATIENCE)?;
        let ours = file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits as long as whoever has the lock gets on, and then for `patience`: it might be stopped.
fn wait_for_lock(path: &Path, file: &File, patience: Duration) -> io::Result<()> {
    let mut len = None;
    let mut since = Instant::now();
    while let Err(error) = flock(file, FlockOperation::NonBlockingLockExclusive) {
        match error {
            Errno::WOULDBLOCK => {}
            Errno::INTR => continue,
            error => return Err(error.into()),
        }
        if len.is_none() {
            log::info!("waiting for another process that makes {}", path.display());
        }
        let now = Some(file.metadata()?.len());
        if now != len {
            (len, since) = (now, Instant::now());
        }
        if since.elapsed() > patience {
            return Err(io::Error::other(
                "another process has it locked and does nothing: end that one",
            ));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Store {
        path: path.to_owned(),
        source,
    }
}

/// A file being made, locked against other makers until it is dropped.
///
/// It gets its name when it is whole; who comes upon the name finds all of it.
///
/// ```
/// use std::io::Write;
/// use minivm_image::Partial;
///
/// let folder = tempfile::tempdir()?;
/// let name = folder.path().join("greeting");
/// let mut partial = Partial::lock(folder.path().join("greeting.partial"))?;
/// partial.restart()?;
/// partial.file.write_all(b"hello")?;
/// assert!(!name.exists());
/// partial.publish(&name)?;
/// assert_eq!(std::fs::read(name)?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Partial {
    /// The file, which may have the beginning that an earlier maker left.
    pub file: File,
    path: PathBuf,
}

impl Partial {
    /// Opens or makes the file, in a folder of its owner's, and locks it; waits while somebody else makes it. Look whether it
    /// is finished by now.
    ///
    /// # Errors
    ///
    /// Where it can't be made or locked, or who has it locked does nothing for a quarter of an hour.
    pub fn lock(path: PathBuf) -> Result<Partial, Error> {
        let folder = path.parent().expect("a file is in a folder");
        make(folder)?;
        let file = lock(&path).map_err(|source| failed(&path, source))?;
        Ok(Partial { file, path })
    }

    /// Forgets what was written so far.
    ///
    /// # Errors
    ///
    /// Where the file can't be truncated.
    pub fn restart(&mut self) -> Result<(), Error> {
        let restarted = self.file.set_len(0).and_then(|()| self.file.rewind());
        restarted.map_err(|source| self.failed(source))
    }

    /// Puts the file, whole and checked, into its place; hands it out, still locked.
    ///
    /// # Errors
    ///
    /// Where it can't be written to the disk or renamed.
    pub fn publish(self, to: &Path) -> Result<File, Error> {
        make(to.parent().expect("a file is in a folder"))?;
        // Without it a power failure could leave the new name with old content: none.
        self.file
            .sync_data()
            .map_err(|source| self.failed(source))?;
        fs::rename(&self.path, to).map_err(|source| failed(to, source))?;
        Ok(self.file)
    }

    /// Removes the file.
    ///
    /// # Errors
    ///
    /// Where it can't be removed.
    pub fn discard(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(|source| self.failed(source))
    }

    pub(super) fn failed(&self, source: io::Error) -> Error {
        failed(&self.path, source)
    }

    fn write(mut self, bytes: &[u8], to: &Path) -> Result<(), Error> {
        self.restart()?;
        let written = self.file.write_all(bytes);
        written.map_err(|source| self.failed(source))?;
        self.publish(to).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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
            receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        });
    }

    #[test]
    fn a_maker_that_does_nothing_is_not_waited_for_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let first = store.partial("x").unwrap();
        let second = File::open(&first.path).unwrap();
        let start = Instant::now();
        let error = wait_for_lock(&first.path, &second, Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("does nothing"), "{error}");
        assert!(start.elapsed() >= Duration::from_millis(100));
        drop(first);
        wait_for_lock(&folder.path().join("partial/x"), &second, Duration::ZERO).unwrap();
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

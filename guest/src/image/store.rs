//! Where pulled images are kept.
//!
//! ```text
//! <folder>/blobs/sha256/<hex>   content by its digest: manifests, configurations, layers as they are stored in the registry
//! <folder>/tags/<hex>           which manifest a tag had, by the SHA-256 of the image's name
//! <folder>/engine/<hex>         archives that a container engine saved, by the image's id
//! <folder>/partial/<name>       all of these while they are made
//! ```
//!
//! Whatever is made is made in `partial` under a name that follows from what it will be, and by one process at a time: the
//! maker holds the file's lock (`flock`), which the kernel drops when the process ends, however it ends. So nothing stale
//! is left by a kill but a beginning, which the next maker goes on from or writes over. A finished file is checked, then
//! renamed to its place: there it is whole or absent. Nobody locks to read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

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
        }
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

    /// A finished file of the store, if it is there.
    pub(super) fn open(&self, path: &Path) -> Result<Option<File>, Error> {
        match files::open_regular(path) {
            Ok(file) => Ok(Some(file)),
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
        let folder = self.folder.join("partial");
        self.make(&folder)?;
        let path = folder.join(name);
        let file = lock(&path).map_err(|source| failed(&path, source))?;
        Ok(Partial { file, path })
    }

    fn tag_path(&self, image: &str) -> PathBuf {
        self.folder.join("tags").join(Digest::of(image).hex())
    }

    fn make(&self, folder: &Path) -> Result<(), Error> {
        fs::create_dir_all(folder).map_err(|source| failed(folder, source))
    }
}

/// Opens and locks the file of this name. Who had the lock before may have renamed or removed it meanwhile; then the lock
/// is on a file that has no, or another, name, and it takes another turn.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(path)?;
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
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) file: File,
    path: PathBuf,
}

impl Partial {
    /// Forgets what was written so far.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        let restarted = self.file.set_len(0).and_then(|()| self.file.rewind());
        restarted.map_err(|source| self.failed(source))
    }

    /// Puts the file, whole and checked, into its place.
    pub(super) fn publish(self, to: &Path) -> Result<(), Error> {
        let parent = to
            .parent()
            .expect("a file of the store is in a folder of it");
        fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
        // Without it a power failure could leave the new name with old content: none.
        self.file
            .sync_data()
            .map_err(|source| self.failed(source))?;
        fs::rename(&self.path, to).map_err(|source| failed(to, source))
    }

    /// Removes the file.
    pub(super) fn discard(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(|source| self.failed(source))
    }

    pub(super) fn failed(&self, source: io::Error) -> Error {
        failed(&self.path, source)
    }

    fn write(mut self, bytes: &[u8], to: &Path) -> Result<(), Error> {
        self.restart()?;
        let written = self.file.write_all(bytes);
        written.map_err(|source| self.failed(source))?;
        self.publish(to)
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
            first.publish(&store.blob_path(&digest)).unwrap();
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

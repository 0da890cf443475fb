//! Images as files that machines start from, each made once and kept.
//!
//! | file in the cache | what it is |
//! |---|---|
//! | `initramfs/<key>.cpio` | the archive of the image with the key's identity and of the init that this program carries |
//! | `erofs/<key>.erofs` | the EROFS image of the image's files alone, for guests that map it |
//! | `initramfs/init-<key>.cpio` | the archive of that init alone, from which those guests boot |
//!
//! They are published as all entries of the cache are ([`minivm_image::publish`]): whole, made once, and there as long as they are used.
//! `machine_root` decides which of them a machine gets.
//!
//! Sandboxes that are no machines take an image's files as a folder: `<cache>/rootfs/<key>`, see `root`. What all of these take
//! on the disk has a limit, see `evict`.

mod entry;
mod evict;
mod file;
mod fill;
mod init;
mod list;
mod machine_root;
mod mapping;
mod remove;
mod root;

use std::borrow::Borrow;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use minivm_image::io_error::{FileError, failed};
use minivm_image::publish::tree;
use minivm_image::rootfs::{self, Compression, Exceeded, Limits, Summary};
use minivm_image::{self, Config, Digest, Image, Platform, Root as ImageRoot, Store};

use crate::fetch;

use entry::Entry;
pub use entry::{Archive, Erofs};
pub use evict::{LIMIT, set_limit};
pub use file::{Format, build};
pub(crate) use file::{finish, write_erofs, write_oci_archive, write_output};
pub use init::Init;
pub use list::{CachedImage, Listing};
pub use machine_root::MachineRoot;
pub use mapping::RootFormat;
pub use remove::{Removed, Unremoved};
pub use root::Root;

/// The archives' version, which changes when the same image and init make other bytes.
const FORMAT: &str = "3";
/// The EROFS images' version, which changes when the same image makes other bytes.
const EROFS_FORMAT: &str = "1";
/// What the names of archives of init alone begin with: a key has other letters.
const OF_INIT: &str = "init-";
/// The largest archive that a machine can start from, in bytes: it lies in guest memory below the hole at 3 GiB, and the kernel
/// with its own data needs room there too.
pub const LARGEST: u64 = 5 << 29;

/// The folders of files that were made of images.
pub(crate) const MADE: [&str; 2] = ["initramfs", "erofs"];

/// The reason why there is no archive of an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image can't be made an archive.
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    /// The image makes an archive that no machine could start from.
    #[error(
        "the image takes more than {limit} bytes when it is unpacked, the most that a machine can start from: take a smaller one"
    )]
    TooLarge {
        /// The limit in bytes, [`LARGEST`].
        limit: u64,
    },
    /// The format that the user asked for is unknown.
    #[error("MINIVM_ROOT_FORMAT: {0:?} is not a format of roots: use initramfs or erofs")]
    RootFormat(String),
    /// There is no init for guests of a platform.
    #[error(
        "this minivm was built with no init for {platform} guests: install Rust's target (`rustup target add aarch64-unknown-linux-musl`, or x86_64's) and build minivm again"
    )]
    NoInit {
        /// The platform.
        platform: Platform,
    },
    /// Images can't be kept or cleared.
    #[error(transparent)]
    Image(#[from] minivm_image::Error),
    /// Images that are being pulled can't be removed.
    #[error("an image is being pulled: prune when that is done")]
    Pulling,
    /// A file can't be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The image can't be had from the process that reads it.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
}

/// An image whose files can be laid into the cache, in the forms that sandboxes take. One is opened by this process ([`Image`]) or by
/// another one ([`fetch::Fetched`]).
pub trait Unpack: fmt::Debug + Send + Sync {
    /// Returns how the image is to be run.
    fn config(&self) -> &Config;

    /// Returns the image's archive, made where it isn't there; `making` is called before that.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept, or would be larger than [`LARGEST`].
    fn archive(&self, images: &ImageCache, making: &mut dyn FnMut()) -> Result<Archive, Error>;

    /// Returns the image's EROFS image, made where it isn't there; `making` is called before that.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept.
    fn erofs(&self, images: &ImageCache, making: &mut dyn FnMut()) -> Result<Erofs, Error>;

    /// Returns the image's root as a folder, made where it isn't there; `making` is called before that.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept.
    fn root(&self, images: &ImageCache, making: &mut dyn FnMut()) -> Result<Root, Error>;
}

impl Unpack for Image {
    fn config(&self) -> &Config {
        &self.config
    }

    fn archive(&self, images: &ImageCache, making: &mut dyn FnMut()) -> Result<Archive, Error> {
        images.archive(self, making)
    }

    fn erofs(&self, images: &ImageCache, making: &mut dyn FnMut()) -> Result<Erofs, Error> {
        images.erofs(self, making)
    }

    fn root(&self, images: &ImageCache, making: &mut dyn FnMut()) -> Result<Root, Error> {
        images.root(self, making)
    }
}

/// What was removed of a [`ImageCache`], and what could not be.
pub type Cleared = tree::Cleared<Error>;

/// The part of the cache that keeps images and what is made of them.
#[derive(Clone, Debug)]
pub struct ImageCache {
    folder: PathBuf,
    init: &'static Init,
    /// Whether it keeps the cache within its limit.
    evicts: bool,
}

impl ImageCache {
    /// Uses the cache folder `cache`, see [`crate::cache::find`], for guests of this host's platform.
    pub fn new(cache: &Path) -> Self {
        ImageCache {
            folder: cache.to_owned(),
            init: Init::here(),
            evicts: true,
        }
    }

    /// Uses the cache for guests of another platform.
    ///
    /// # Errors
    ///
    /// [`Error::NoInit`] where this program has no init for them.
    pub fn for_guests_of(self, platform: &Platform) -> Result<Self, Error> {
        let init = Init::of(platform)?;
        Ok(ImageCache { init, ..self })
    }

    /// Uses the cache without keeping it within its limit, which another process does.
    pub(crate) fn without_eviction(self) -> Self {
        ImageCache {
            evicts: false,
            ..self
        }
    }

    /// Returns the cache's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the store of pulled images.
    pub fn store(&self) -> Store {
        Store::new(self.folder.join("images"))
    }

    /// Removes all images, and all that was made of them; returns how many bytes they took. What is being made or used stays, and so do
    /// the files `kept`.
    ///
    /// # Errors
    ///
    /// Where something can't be removed, which doesn't keep the rest; [`Error::Pulling`] while images are being pulled.
    pub fn clear(&self, kept: &[PathBuf]) -> Result<u64, Error> {
        self.sweep(kept).whole()
    }

    /// As [`clear`](Self::clear), but returns all that can't be removed.
    pub fn sweep(&self, kept: &[PathBuf]) -> Cleared {
        let mut cleared = Cleared::default();
        let store = self.store();
        if store.folder().exists() {
            match store.hold_alone() {
                Ok(Some(_alone)) => {
                    let kept = [store.lock_path()];
                    cleared.add(tree::remove_unlocked(store.folder(), &kept));
                }
                Ok(None) => cleared.note(Error::Pulling),
                Err(error) => cleared.note(error.into()),
            }
        }
        for name in MADE {
            cleared.add(tree::remove_unlocked(&self.folder.join(name), kept));
        }
        cleared.add(root::clear(&self.folder.join("rootfs")));
        cleared
    }

    /// Keeps the cache within its limit ([`set_limit`]): what was used longest ago is removed, unless it is in use. Call this when
    /// something was put into the store; the methods that make something of an image do so themselves.
    pub fn evict(&self) {
        if self.evicts {
            evict::evict(&self.folder, None);
        }
    }

    /// As [`evict`](Self::evict), but keeps the template of this name, which has just been made.
    pub(crate) fn evict_beside(&self, template: &str) {
        evict::evict(&self.folder, Some(template));
    }

    /// Returns the path of the archive of the image with this identity.
    pub(crate) fn archive_path(&self, identity: &str) -> PathBuf {
        let name = key(identity, self.init) + ".cpio";
        self.folder.join("initramfs").join(name)
    }

    /// Returns the path of the EROFS image of the image with this identity.
    pub(crate) fn erofs_path(&self, identity: &str) -> PathBuf {
        let name = erofs_key(identity) + ".erofs";
        self.folder.join("erofs").join(name)
    }

    /// Returns the path of the archive of init alone.
    fn init_path(&self) -> PathBuf {
        self.folder.join("initramfs").join(init_name(self.init))
    }

    /// Returns the path of the root folder of the image with this identity.
    pub(crate) fn root_path(&self, identity: &str) -> PathBuf {
        self.folder.join("rootfs").join(root::key(identity))
    }

    /// Returns the archive of the image with this identity, if it is there.
    pub(crate) fn kept_archive(&self, identity: &str) -> Result<Option<Archive>, Error> {
        Archive::open(&self.archive_path(identity))
    }

    /// Returns the EROFS image of the image with this identity, if it is there.
    pub(crate) fn kept_erofs(&self, identity: &str) -> Result<Option<Erofs>, Error> {
        Erofs::open(&self.erofs_path(identity))
    }

    /// Returns the root folder of the image with this identity, if it is there.
    pub(crate) fn kept_root(&self, identity: &str) -> Result<Option<Root>, Error> {
        root::find(self.root_path(identity))
    }

    /// Returns the image's root as a folder, made where it isn't there; `making` is called before that.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept.
    pub fn root(&self, image: &Image, making: impl FnOnce()) -> Result<Root, Error> {
        let root = root::open(self.root_path(&image.identity), image, making)?;
        Ok(self.make_room(root))
    }

    /// Returns the image's archive, made where it isn't there; `making` is called before that.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept, or would be larger than [`LARGEST`].
    pub fn archive(&self, image: &Image, making: impl FnOnce()) -> Result<Archive, Error> {
        self.archive_of(&image.identity, || {
            making();
            Ok::<_, Error>(image)
        })
    }

    /// Returns the archive of the image with this identity. Only where it isn't there, `image` is called for the image.
    ///
    /// # Errors
    ///
    /// Those of [`archive`](Self::archive) and of `image`.
    pub fn archive_of<I: Borrow<Image>, E: From<Error>>(
        &self,
        identity: &str,
        image: impl FnOnce() -> Result<I, E>,
    ) -> Result<Archive, E> {
        let path = self.archive_path(identity);
        let archive = Archive::open_or_make(&path, image, |image, file| {
            let limits = Limits {
                archive: LARGEST,
                ..Limits::default()
            };
            write(image, self.init, Compression::None, &limits, file, &path).map(drop)
        })?;
        Ok(self.make_room(archive))
    }

    /// Returns the image's EROFS image, made where it isn't there; `making` is called before that.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept.
    pub fn erofs(&self, image: &Image, making: impl FnOnce()) -> Result<Erofs, Error> {
        let path = self.erofs_path(&image.identity);
        let image = || {
            making();
            Ok::<_, Error>(image)
        };
        let erofs = Erofs::open_or_make(&path, image, |image, file| {
            file::write_erofs_to(image, file, &path).map(drop)
        })?;
        Ok(self.make_room(erofs))
    }

    /// Returns the archive of init alone, made where it isn't there: a guest that maps its image boots from it.
    ///
    /// # Errors
    ///
    /// Where it can't be made or kept.
    pub fn init_archive(&self) -> Result<Archive, Error> {
        let nothing = || {
            Ok::<_, Error>(Image {
                identity: String::new(),
                config: Config::default(),
                root: ImageRoot::Layers(Vec::new()),
            })
        };
        let path = self.init_path();
        let archive = Archive::open_or_make(&path, nothing, |image, file| {
            let limits = Limits::default();
            write(image, self.init, Compression::None, &limits, file, &path).map(drop)
        })?;
        Ok(self.make_room(archive))
    }

    /// Returns an entry, for which other ones are evicted where it was made just now.
    fn make_room<T>(&self, (entry, made): (T, bool)) -> T {
        if made {
            self.evict();
        }
        entry
    }
}

/// Holds the EROFS image at a path in the cache, which a recipe has; `None` where it isn't there, or damaged.
pub(crate) fn hold_erofs(path: &Path) -> Result<Option<Erofs>, Error> {
    Erofs::open(path)
}

/// Returns the error of an entry that was made, and is not there.
pub(crate) fn removed(path: &Path) -> Error {
    let removed = io::Error::other("it was removed again: run it once more");
    failed("read", path)(removed).into()
}

fn write(
    image: &Image,
    init: &Init,
    compression: Compression,
    limits: &Limits,
    file: impl Write,
    path: &Path,
) -> Result<Summary, Error> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let written = rootfs::write(image, init.program, compression, limits, &mut out);
    let summary = written.map_err(|error| match exceeded(&error) {
        Some(&Exceeded { limit: LARGEST, .. }) => Error::TooLarge { limit: LARGEST },
        _ => error.into(),
    })?;
    out.flush().map_err(failed("write", path))?;
    Ok(summary)
}

/// Returns the limit that an error is about. A writer's error has it inside, and doesn't return it as its source.
fn exceeded<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Exceeded> {
    let inner = error.downcast_ref().and_then(io::Error::get_ref);
    error
        .downcast_ref()
        .or_else(|| inner.and_then(|inner| exceeded(inner)))
        .or_else(|| error.source().and_then(exceeded))
}

/// Returns the key of the archive of an image with this init.
fn key(identity: &str, init: &Init) -> String {
    let parts = [FORMAT, identity, init.digest];
    key_of(&parts.map(str::as_bytes))
}

/// Returns the key of the EROFS image of an image.
fn erofs_key(identity: &str) -> String {
    let parts = ["erofs", EROFS_FORMAT, identity];
    key_of(&parts.map(str::as_bytes))
}

/// Returns the name of the archive of this init alone.
fn init_name(init: &Init) -> String {
    let parts = ["init", FORMAT, init.digest];
    format!("{OF_INIT}{}.cpio", key_of(&parts.map(str::as_bytes)))
}

/// Returns a key for what is made of these parts.
pub(crate) fn key_of(parts: &[&[u8]]) -> String {
    let mut fields = Vec::new();
    for part in parts {
        fields.extend(part.len().to_le_bytes());
        fields.extend(*part);
    }
    Digest::of(fields).hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use minivm_image::Root;
    use rustix::fs::{FlockOperation, flock};
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::output_path::Output;

    struct Place {
        folder: tempfile::TempDir,
        images: ImageCache,
        image: Image,
    }

    impl Place {
        /// A cache, and an image of one file.
        fn new() -> Place {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().join("root");
            fs::create_dir(&root).unwrap();
            fs::write(root.join("hello"), "world").unwrap();
            Place {
                images: ImageCache::new(&folder.path().join("cache")),
                image: Image {
                    identity: "test".to_owned(),
                    config: Config::default(),
                    root: Root::Folder(root),
                },
                folder,
            }
        }

        fn names(&self, folder: &str) -> Vec<String> {
            let entries = fs::read_dir(self.folder.path().join(folder)).unwrap();
            let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
            let mut names: Vec<String> = entries
                .map(|entry| name(entry).into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn an_archive_is_made_once_and_is_its_owners_alone() {
        let place = Place::new();
        let mut made = 0;
        for _ in 0..2 {
            let archive = place.images.archive(&place.image, || made += 1).unwrap();
            assert_eq!(fs::metadata(&archive.path).unwrap().len(), archive.size);
            assert_eq!(mode(&archive.path), 0o600);
            assert_eq!(mode(archive.path.parent().unwrap()), 0o700);
        }
        assert_eq!(made, 1);
        assert_eq!(place.names("cache/initramfs").len(), 1);
    }

    #[test]
    fn an_archive_that_a_power_failure_emptied_is_made_again() {
        let place = Place::new();
        let archive = place.images.archive(&place.image, || {}).unwrap();
        File::create(&archive.path).unwrap();
        let mut made = false;
        let again = place.images.archive(&place.image, || made = true).unwrap();
        assert!(made && again.size == archive.size);
    }

    #[test]
    fn an_erofs_image_is_made_once_and_is_its_owners_alone() {
        let place = Place::new();
        let mut made = 0;
        for _ in 0..2 {
            let erofs = place.images.erofs(&place.image, || made += 1).unwrap();
            assert_eq!(fs::metadata(&erofs.path).unwrap().len(), erofs.size);
            assert_eq!(mode(&erofs.path), 0o600);
            assert_eq!(place.images.clear(&[]).unwrap(), 0, "it is held");
        }
        assert_eq!(made, 1);
        assert_eq!(place.names("cache/erofs").len(), 1);
        assert!(place.images.clear(&[]).unwrap() > 0);
        assert_eq!(place.names("cache/erofs").len(), 0);
    }

    #[test]
    fn an_erofs_image_that_is_damaged_is_made_again() {
        let place = Place::new();
        let path = place.images.erofs(&place.image, || {}).unwrap().path;
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[1100] ^= 1;
        let zeros = vec![0; whole.len()];
        let text = b"something else";
        for damaged in [
            &[],
            &whole[..whole.len() - 4096],
            &changed[..],
            &zeros,
            text,
        ] {
            fs::write(&path, damaged).unwrap();
            let mut made = false;
            place.images.erofs(&place.image, || made = true).unwrap();
            assert!(made, "{} bytes", damaged.len());
            assert!(fs::read(&path).unwrap() == whole);
        }
    }

    #[test]
    fn the_beginning_of_an_erofs_image_is_begun_anew() {
        let place = Place::new();
        let path = place.images.erofs_path(&place.image.identity);
        let whole = place.images.erofs(&place.image, || {}).unwrap().path;
        let whole = fs::read(whole).unwrap();
        fs::remove_file(&path).unwrap();
        // As a process leaves it that was killed.
        fs::write(path.with_extension("partial"), vec![b'x'; 2 * whole.len()]).unwrap();
        place.images.erofs(&place.image, || {}).unwrap();
        assert!(fs::read(&path).unwrap() == whole);
        assert_eq!(place.names("cache/erofs").len(), 1);
    }

    #[test]
    fn init_has_an_archive_of_its_own() {
        let place = Place::new();
        let path = place.images.init_archive().unwrap().path;
        let again = place.images.init_archive().unwrap();
        assert_eq!(again.path, path);
        let mut unpack = minivm_guest::unpack::Unpack::new(File::open(&path).unwrap());
        let mut names = Vec::new();
        while let Some(entry) = unpack.next().unwrap() {
            names.push(entry.name);
        }
        let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                ".minivm",
                ".minivm/manifest",
                "init",
                ".",
                ".minivm/complete"
            ]
        );
        let whole = place.images.archive(&place.image, || {}).unwrap();
        assert_ne!(whole.path, path);
    }

    #[test]
    fn a_machine_gets_the_root_that_its_kernel_can_have() {
        let place = Place::new();
        let kernel = place.folder.path().join("vmlinux");
        let open = || {
            let mut made = Vec::new();
            let making = &mut |format| made.push(format);
            let root = MachineRoot::open(&place.image, &place.images, &kernel, making).unwrap();
            (root, made)
        };
        let (root, made) = open();
        assert_eq!((root.image(), root.page_structures()), (None, 0));
        assert!(root.check_memory(64 << 20).is_err(), "the image takes some");
        assert_eq!(made, [RootFormat::Initramfs]);
        assert!(!place.folder.path().join("cache/erofs").exists());
        drop(root);
        place.images.clear(&[]).unwrap();
        mapping::write_able_config(&kernel.with_file_name("config"));
        let (root, made) = open();
        assert_eq!(made, [RootFormat::Erofs]);
        assert_eq!(root.page_structures(), 1 << 20);
        assert_eq!(root.default_memory(), 256 << 20);
        root.check_memory(64 << 20).unwrap();
        let of_init = place.images.init_archive().unwrap();
        assert_eq!(root.initramfs(), of_init.path);
        let image = root.image().unwrap().to_owned();
        assert_eq!(
            image.parent(),
            Some(&*place.folder.path().join("cache/erofs"))
        );
        assert_eq!(place.names("cache/initramfs").len(), 1, "no other archive");
        assert_eq!(open().1, []);
        drop(of_init);
        place.images.clear(&[]).unwrap();
        assert!(image.exists() && root.initramfs().exists(), "they are held");
    }

    #[test]
    fn an_archive_is_not_cleared_while_it_is_held() {
        let place = Place::new();
        let archive = place.images.archive(&place.image, || {}).unwrap();
        assert_eq!(place.images.clear(&[]).unwrap(), 0);
        let path = archive.path.clone();
        assert!(path.exists());
        let again = place.images.archive(&place.image, || {}).unwrap();
        drop(archive);
        assert_eq!(place.images.clear(&[]).unwrap(), 0, "one of two is left");
        drop(again);
        assert!(place.images.clear(&[]).unwrap() > 0);
        assert!(!path.exists());
    }

    #[test]
    fn an_archive_that_no_machine_could_start_from_is_refused_and_not_kept() {
        let place = Place::new();
        let large = File::create(place.folder.path().join("root/large")).unwrap();
        large.set_len(LARGEST).unwrap();
        let error = place.images.archive(&place.image, || {}).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        assert_eq!(place.names("cache/initramfs"), [""; 0]);
    }

    #[test]
    fn a_built_archive_has_the_mode_that_the_umask_leaves() {
        let place = Place::new();
        let path = place.folder.path().join("out.cpio");
        let usual = place.folder.path().join("usual");
        File::create(&usual).unwrap();
        for _ in 0..2 {
            let output = Output::open(&path, 0o666).unwrap();
            build(&place.image, Init::here(), Compression::None, &path, output).unwrap();
            assert_eq!(mode(&path), mode(&usual));
        }
        assert_eq!(place.names(""), ["out.cpio", "root", "usual"]);
    }

    #[test]
    fn a_shelf_is_not_cleared_of_what_is_being_pulled() {
        let place = Place::new();
        let store = place.images.store();
        let blob = store.folder().join("blobs/sha256/a");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, [0; 100]).unwrap();
        let pull = File::create(store.lock_path()).unwrap();
        flock(&pull, FlockOperation::LockShared).unwrap();
        let error = place.images.clear(&[]).unwrap_err();
        assert!(matches!(error, Error::Pulling), "{error}");
        assert!(blob.exists());
        // A process that another test has just forked has it open too.
        flock(&pull, FlockOperation::Unlock).unwrap();
        assert_eq!(place.images.clear(&[]).unwrap(), 100);
        assert_eq!(place.names("cache/images"), ["blobs", "lock"]);
    }

    #[test]
    fn shelves_can_be_cleared_at_once() {
        let cache = tempfile::tempdir().unwrap();
        let initramfs = cache.path().join("initramfs");
        fs::create_dir(&initramfs).unwrap();
        for number in 0..2000 {
            fs::write(initramfs.join(number.to_string()), "x").unwrap();
        }
        let clear = || ImageCache::new(cache.path()).clear(&[]).unwrap();
        std::thread::scope(|scope| {
            let _others = [scope.spawn(clear), scope.spawn(clear)];
            clear();
        });
        assert_eq!(fs::read_dir(&initramfs).unwrap().count(), 0);
    }

    #[test]
    fn a_shelf_is_cleared_but_for_what_is_in_use() {
        let cache = tempfile::tempdir().unwrap();
        let images = ImageCache::new(cache.path());
        assert_eq!(images.clear(&[]).unwrap(), 0, "there is nothing yet");
        let blobs = cache.path().join("images/blobs/sha256");
        let initramfs = cache.path().join("initramfs");
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&initramfs).unwrap();
        fs::create_dir_all(cache.path().join("erofs")).unwrap();
        fs::create_dir_all(cache.path().join("kernel")).unwrap();
        fs::write(cache.path().join("erofs/c.erofs"), [0; 5]).unwrap();
        fs::write(cache.path().join("erofs/kept.erofs"), [0; 7]).unwrap();
        fs::write(blobs.join("a"), [0; 100]).unwrap();
        fs::write(initramfs.join("b.cpio"), [0; 20]).unwrap();
        fs::write(cache.path().join("kernel/vmlinux"), [0; 3]).unwrap();
        let held = File::create(blobs.join("pulled")).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let kept = cache.path().join("erofs/kept.erofs");
        assert_eq!(images.clear(std::slice::from_ref(&kept)).unwrap(), 125);
        assert!(kept.exists());
        assert!(blobs.join("pulled").exists());
        assert!(cache.path().join("kernel/vmlinux").exists());
        assert!(!blobs.join("a").exists() && !initramfs.join("b.cpio").exists());
    }
}

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use minivm_guest::newc::{Archive, Attributes};
use minivm_image::{Blob, Config, Layer};

use super::super::ImageCache;
use super::*;

struct Place {
    folder: tempfile::TempDir,
    images: ImageCache,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        Place {
            images: ImageCache::new(&folder.path().join("cache")),
            folder,
        }
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn image(&self) -> Image {
        Image {
            identity: "test".to_owned(),
            config: Config::default(),
            root: minivm_image::Root::Folder(self.source()),
        }
    }

    /// An image of one layer that `fill` writes.
    fn layered(&self, fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Image {
        let mut tar = tar::Builder::new(Vec::new());
        fill(&mut tar);
        let path = self.folder.path().join("layer.tar");
        fs::write(&path, tar.into_inner().unwrap()).unwrap();
        let blob = Blob {
            len: fs::metadata(&path).unwrap().len(),
            file: Arc::new(File::open(&path).unwrap()),
            offset: 0,
            name: "layer".into(),
        };
        let layer = Layer {
            blob,
            diff_id: None,
        };
        Image {
            root: minivm_image::Root::Layers(vec![layer]),
            ..self.image()
        }
    }

    fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("cache/rootfs")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_root_is_made_once_and_is_as_the_image_has_it() {
    let place = Place::new();
    let source = place.source();
    fs::create_dir_all(source.join("usr/closed")).unwrap();
    fs::write(source.join("usr/file"), "data").unwrap();
    fs::hard_link(source.join("usr/file"), source.join("other")).unwrap();
    let then = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = File::options().write(true).open(source.join("other"));
    file.unwrap().set_modified(then).unwrap();
    chmod(&source.join("other"), 0o4741);
    fs::write(source.join("init"), "the image's").unwrap();
    symlink("/etc/passwd", source.join("link")).unwrap();
    symlink("../../..", source.join("usr/closed/up")).unwrap();
    chmod(&source.join("usr/closed"), 0o555);
    let mut made = 0;
    for _ in 0..2 {
        let root = place.images.root(&place.image(), || made += 1).unwrap();
        let path = |name: &str| root.path.join(name);
        let metadata = fs::metadata(path("other")).unwrap();
        assert_eq!((metadata.nlink(), metadata.len()), (2, 4));
        assert_eq!(
            metadata.ino(),
            fs::metadata(path("usr/file")).unwrap().ino()
        );
        assert_eq!(metadata.modified().unwrap(), then);
        assert_eq!(mode(&path("other")), 0o741, "no privileges by a file");
        assert_eq!(mode(&path("usr/closed")), 0o555);
        assert_eq!(fs::read(path("init")).unwrap(), b"the image's");
        assert_eq!(
            fs::read_link(path("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert!(!path(".minivm").exists());
    }
    assert_eq!(made, 1);
    assert_eq!(mode(&place.folder.path().join("cache/rootfs")), 0o700);
    chmod(&source.join("usr/closed"), 0o755);
}

#[test]
fn a_root_is_not_cleared_while_it_is_held() {
    let place = Place::new();
    fs::create_dir_all(place.source().join("closed/deep")).unwrap();
    fs::write(place.source().join("closed/file"), "data").unwrap();
    let closed = place.source().join("closed");
    chmod(&closed, 0o500);
    let root = place.images.root(&place.image(), || {}).unwrap();
    let again = place.images.root(&place.image(), || {}).unwrap();
    assert_eq!(place.images.clear(&[]).unwrap(), 0);
    drop(again);
    assert_eq!(place.images.clear(&[]).unwrap(), 0);
    assert!(root.path.join("closed/file").exists());
    drop(root);
    assert_eq!(place.images.clear(&[]).unwrap(), 4);
    assert_eq!(place.kept(), [""; 0]);
    chmod(&closed, 0o700);
}

#[test]
fn many_who_want_one_root_make_it_once() {
    let place = Place::new();
    fs::write(place.source().join("file"), vec![7; 1 << 20]).unwrap();
    let made = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let making = || {
                    made.fetch_add(1, Ordering::Relaxed);
                };
                let root = place.images.root(&place.image(), making).unwrap();
                assert_eq!(fs::read(root.path.join("file")).unwrap().len(), 1 << 20);
                place.images.clear(&[]).unwrap();
            });
        }
    });
    assert!(made.into_inner() >= 1);
    place.images.clear(&[]).unwrap();
    assert_eq!(place.kept(), [""; 0]);
}

#[test]
fn what_was_left_half_made_is_made_again() {
    let place = Place::new();
    fs::write(place.source().join("file"), "data").unwrap();
    let path = place.images.root(&place.image(), || {}).unwrap().path;
    fs::rename(&path, path.with_extension("partial")).unwrap();
    fs::write(path.with_extension("partial").join("stale"), "x").unwrap();
    let root = place.images.root(&place.image(), || {}).unwrap();
    assert!(root.path.join("file").exists() && !root.path.join("stale").exists());
    assert_eq!(place.kept().len(), 2);
}

#[test]
fn layers_that_lead_elsewhere_write_nothing_there() {
    let place = Place::new();
    let outside = place.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let image = place.layered(|tar| {
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "way", &outside).unwrap();
        let mut file = tar::Header::new_gnu();
        file.set_size(1);
        file.set_mode(0o644);
        tar.append_data(&mut file, "way/file", &b"x"[..]).unwrap();
    });
    // A file below a link: the layer is taken for what it is, or refused, and stays in its folder.
    let _ = place.images.root(&image, || {});
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn an_image_that_is_broken_says_so_and_leaves_nothing() {
    let place = Place::new();
    let image = place.layered(|tar| {
        let mut file = tar::Header::new_gnu();
        file.set_size(1);
        tar.append_data(&mut file, "file", &b"x"[..]).unwrap();
    });
    let minivm_image::Root::Layers(mut layers) = image.root else {
        panic!("it has layers");
    };
    layers[0].blob.len = 700;
    let image = Image {
        root: minivm_image::Root::Layers(layers),
        ..place.image()
    };
    let error = place.images.root(&image, || {}).unwrap_err();
    assert!(matches!(error, Error::Rootfs(_)), "{error}");
    let kept = place.kept();
    assert!(kept.len() == 1 && kept[0].ends_with(".lock"), "{kept:?}");
}

/// Fills a folder from an archive that no image makes.
fn filled(write: impl FnOnce(&mut Archive<Vec<u8>>)) -> (tempfile::TempDir, io::Result<()>) {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Archive::new(Vec::new());
    write(&mut archive);
    let complete = Attributes::new(0o400);
    let name = minivm_guest::manifest::COMPLETE;
    archive.file(name, complete, 0, io::empty()).unwrap();
    let bytes = archive.finish().unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    let dir = File::open(folder.path().join("in")).unwrap();
    let result = fill::fill(dir.into(), &bytes[..]);
    (folder, result)
}

#[test]
fn links_in_the_place_of_folders_are_refused() {
    let attributes = Attributes::new(0o755);
    let (folder, result) = filled(|archive| {
        archive.symlink("a", "..", attributes).unwrap();
        archive.file("a/b", attributes, 1, &b"x"[..]).unwrap();
    });
    assert!(result.is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let (folder, result) = filled(|archive| {
        archive.directory("a", attributes).unwrap();
        archive.symlink("a", "/", attributes).unwrap();
    });
    assert!(result.is_err());
    assert!(folder.path().join("in/a").is_dir());
    let (folder, result) = filled(|archive| {
        archive.symlink("a", "..", attributes).unwrap();
        archive.symlink("a/b", "x", attributes).unwrap();
    });
    assert!(result.is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_archive_that_ends_early_is_no_root() {
    let folder = tempfile::tempdir().unwrap();
    let dir = File::open(folder.path()).unwrap();
    let mut archive = Archive::new(Vec::new());
    archive.directory("a", Attributes::new(0o755)).unwrap();
    let bytes = archive.finish().unwrap();
    let error = fill::fill(dir.into(), &bytes[..]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::time::UNIX_EPOCH;

use minivm_image::{Config, Image, Root};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use super::*;
use crate::templates::Recipe;

/// A cache, and images of one file each.
struct Place {
    folder: tempfile::TempDir,
    images: ImageCache,
}

/// A moment long ago; the later, the larger the number.
fn moment(number: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000_000 + 60 * number)
}

impl Place {
    fn new() -> Self {
        Place::within(&std::env::temp_dir())
    }

    fn within(folder: &Path) -> Self {
        let folder = tempfile::tempdir_in(folder).unwrap();
        Place {
            images: ImageCache::new(&folder.path().join("cache")),
            folder,
        }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// A file of the cache's that was used at that moment.
    fn file(&self, name: &str, size: usize, used: u64) -> PathBuf {
        let path = self.cache().join(name);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![0; size]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(moment(used)).unwrap();
        path
    }

    fn image(&self, name: &str, size: usize) -> Image {
        let root = self.folder.path().join(name);
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("file"), vec![1; size]).unwrap();
        Image {
            identity: name.to_owned(),
            config: Config::default(),
            root: Root::Folder(root),
        }
    }

    /// An image's root that was used at that moment, and is in no use; its size too.
    fn root(&self, name: &str, size: usize, used: u64) -> (PathBuf, u64) {
        let path = self
            .images
            .root(&self.image(name, size), || {})
            .unwrap()
            .path;
        let lock = File::options()
            .write(true)
            .open(path.with_extension("lock"));
        lock.unwrap().set_modified(moment(used)).unwrap();
        let size = root::used(&path).unwrap().1;
        (path, size)
    }

    fn evict_to(&self, limit: u64) {
        evict_to(limit, &self.cache(), None);
    }
}

#[test]
fn what_was_used_longest_ago_goes_whatever_it_is() {
    let place = Place::new();
    let layer = place.file("images/blobs/sha256/a", 1000, 1);
    let archive = place.file("initramfs/b.cpio", 1000, 3);
    let erofs = place.file("erofs/b.erofs", 1000, 6);
    let half = place.file("erofs/c.partial", 1000, 7);
    let engine = place.file("images/engine/c", 1000, 4);
    let begun = place.file("images/partial/d", 1000, 5);
    let (root, size) = place.root("e", 1000, 2);
    let kernel = place.file("kernel/vmlinux", 1_000_000, 0);
    let last = place.file("initramfs/f.cpio", 1000, 8);
    let mut total = 7000 + size;
    for gone in [layer, root, archive, engine, begun, erofs, half] {
        place.evict_to(total);
        assert!(gone.exists(), "{total} are within the limit: {gone:?}");
        place.evict_to(total - 1);
        assert!(!gone.exists(), "{gone:?}");
        total -= match gone.is_dir() || gone.starts_with(place.cache().join("rootfs")) {
            true => size,
            false => 1000,
        };
    }
    assert!(kernel.exists() && last.exists());
}

#[test]
fn the_last_time_that_there_is_counts_as_late() {
    // tmpfs keeps any time.
    let place = Place::within(Path::new("/dev/shm"));
    let never = place.file("images/blobs/sha256/a", 1000, 0);
    let last = UNIX_EPOCH + Duration::from_secs(i64::MAX.unsigned_abs());
    let file = File::options().write(true).open(&never).unwrap();
    file.set_modified(last).unwrap();
    let archive = place.file("initramfs/b.cpio", 1000, 1);
    place.evict_to(1000);
    assert!(never.exists() && !archive.exists());
}

#[test]
fn archives_are_evicted_before_images_of_the_same_age() {
    let place = Place::new();
    let layer = place.file("images/blobs/sha256/a", 1000, 1);
    let archive = place.file("initramfs/b.cpio", 1000, 1);
    let file = File::options().write(true).open(&archive).unwrap();
    file.set_modified(moment(1) + LATER / 2).unwrap();
    place.evict_to(1000);
    assert!(layer.exists() && !archive.exists());
}

#[test]
fn what_is_in_use_stays() {
    let place = Place::new();
    let (root_image, archive_image) = (place.image("a", 5000), place.image("b", 5000));
    let root = place.images.root(&root_image, || {}).unwrap();
    let archive = place.images.archive(&archive_image, || {}).unwrap();
    let erofs = place.images.erofs(&archive_image, || {}).unwrap();
    let layer = place.file("images/blobs/sha256/c", 1000, 1);
    let open = File::open(&layer).unwrap();
    flock(&open, FlockOperation::LockShared).unwrap();
    place.evict_to(0);
    assert!(root.path.join("file").exists() && archive.path.exists() && layer.exists());
    assert!(erofs.path.exists());
    let (root_path, archive_path) = (root.path.clone(), archive.path.clone());
    let erofs_path = erofs.path.clone();
    // A process that another test has just forked has it open too.
    flock(&open, FlockOperation::Unlock).unwrap();
    drop((root, archive, erofs));
    place.evict_to(0);
    assert!(!root_path.exists() && !archive_path.exists() && !layer.exists());
    assert!(!erofs_path.exists());
}

#[test]
fn no_image_goes_while_one_is_pulled_and_the_rest_does() {
    let place = Place::new();
    let layer = place.file("images/blobs/sha256/a", 1000, 1);
    let archive = place.file("initramfs/b.cpio", 1000, 2);
    let pull = place.images.store().hold_alone().unwrap().unwrap();
    flock(pull.file(), FlockOperation::LockShared).unwrap();
    place.evict_to(0);
    assert!(layer.exists() && !archive.exists());
    drop(pull);
    place.evict_to(0);
    assert!(!layer.exists());
}

#[test]
fn what_is_larger_than_the_limit_pushes_nothing_out_and_goes_first_afterwards() {
    let place = Place::new();
    let old = place.file("initramfs/old.cpio", 1000, 1);
    let large = place.file("initramfs/large.cpio", 50_000, 9);
    let used = File::open(&large).unwrap();
    flock(&used, FlockOperation::LockShared).unwrap();
    place.evict_to(10_000);
    assert!(old.exists() && large.exists());
    flock(&used, FlockOperation::Unlock).unwrap();
    place.evict_to(10_000);
    assert!(old.exists() && !large.exists());
}

#[test]
fn a_root_that_is_half_removed_or_has_no_size_counts() {
    let place = Place::new();
    let (halved, size) = place.root("a", 100_000, 1);
    fs::rename(&halved, halved.with_extension("partial")).unwrap();
    let (unknown, _) = place.root("b", 100_000, 2);
    fs::write(unknown.with_extension("lock"), "").unwrap();
    let lock = unknown.with_extension("lock");
    File::options()
        .write(true)
        .open(&lock)
        .unwrap()
        .set_modified(moment(2))
        .unwrap();
    assert_eq!(root::used(&unknown).unwrap(), (moment(2), 100_000));
    assert_eq!(
        fs::read_to_string(&lock).unwrap(),
        "100000",
        "it is counted once"
    );
    assert_eq!(root::used(&unknown).unwrap(), (moment(2), 100_000));
    assert!(size >= 100_000);
    let entries = Cache::new(&place.cache()).entries();
    assert_eq!(
        entries.iter().map(|entry| entry.size).sum::<u64>(),
        size + 100_000
    );
    place.evict_to(100_000);
    assert!(!halved.with_extension("partial").exists());
    assert!(!halved.with_extension("lock").exists() && unknown.exists());
}

#[test]
fn a_template_without_a_name_goes_and_one_with_a_name_and_its_archive_stay() {
    let place = Place::new();
    let key = "0123456789abcdef0123456789abcdef";
    let archive = place.file("initramfs/a.cpio", 1000, 1);
    let recipe = Recipe::example("/kernel".into(), archive.clone());
    // It has no machine on this host: it is one in a lab.
    let record = serde_json::json!({"recipe": recipe, "made": SystemTime::now(), "saved": null});
    for name in [key, "named"] {
        let path = place.file(&format!("templates/{name}/template.json"), 1, 2);
        fs::write(path, record.to_string()).unwrap();
        place.file(&format!("templates/{name}/memory"), 100_000, 2);
    }
    evict_to(0, &place.cache(), Some(key));
    let template = |name: &str| place.cache().join("templates").join(name).exists();
    assert!(template(key), "it has just been made");
    place.evict_to(0);
    assert!(!template(key) && template("named") && archive.exists());
}

#[test]
fn what_a_named_template_needs_stays_wherever_its_machine_is() {
    for (saved, name, needed) in [
        (None, "named", [true, true]),
        (Some(json!({"rings": null})), "named", [false, true]),
        (
            Some(json!({"rings": null})),
            "0123456789abcdef0123456789abcdef",
            [false, false],
        ),
    ] {
        let place = Place::new();
        let files = [("initramfs/init-a.cpio", 1), ("erofs/a.erofs", 2)];
        let files = files.map(|(name, used)| place.file(name, 1000, used));
        let mut recipe = Recipe::example("/kernel".into(), files[0].clone());
        recipe.machine.image = Some(files[1].clone());
        let record = json!({"recipe": recipe, "made": SystemTime::now(), "saved": saved});
        let path = place.file(&format!("templates/{name}/template.json"), 1, 2);
        fs::write(path, record.to_string()).unwrap();
        place.evict_to(0);
        assert_eq!(files.map(|path| path.exists()), needed, "{saved:?} {name}");
    }
}

#[test]
fn runs_at_once_all_find_their_archives() {
    let place = Place::new();
    let images = ["a", "b", "c", "d", "e"].map(|name| place.image(name, 2000));
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (place, images) = (&place, &images);
            scope.spawn(move || {
                for turn in 0..3 {
                    let image = &images[(number + turn) % images.len()];
                    let archive = place.images.archive(image, || {}).unwrap();
                    let erofs = place.images.erofs(image, || {}).unwrap();
                    let root = place.images.root(image, || {}).unwrap();
                    place.evict_to(1);
                    assert_eq!(fs::metadata(&erofs.path).unwrap().len(), erofs.size);
                    assert_eq!(fs::metadata(&archive.path).unwrap().len(), archive.size);
                    assert_eq!(fs::read(root.path.join("file")).unwrap().len(), 2000);
                }
            });
        }
    });
    place.evict_to(1);
    for name in ["initramfs", "erofs", "rootfs"] {
        let left = fs::read_dir(place.cache().join(name)).unwrap().count();
        assert_eq!(left, 0, "{name}");
    }
}

#[test]
fn a_use_is_noted() {
    let place = Place::new();
    let image = place.image("a", 10);
    let long_ago = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(moment(0)).unwrap();
    };
    let is_new = |path: &Path| fs::metadata(path).unwrap().modified().unwrap() > moment(1);
    let archive = place.images.archive(&image, || {}).unwrap().path;
    let erofs = place.images.erofs(&image, || {}).unwrap().path;
    let lock = place
        .images
        .root(&image, || {})
        .unwrap()
        .path
        .with_extension("lock");
    for path in [&archive, &erofs, &lock] {
        long_ago(path);
    }
    place.images.archive(&image, || {}).unwrap();
    place.images.erofs(&image, || {}).unwrap();
    place.images.root(&image, || {}).unwrap();
    assert!(is_new(&archive) && is_new(&erofs) && is_new(&lock));
}

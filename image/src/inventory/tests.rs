use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::{Duration, UNIX_EPOCH};

use minivm_tests::stress::{self, Random};
use tempfile::TempDir;

use super::*;
use crate::image::Config;
use crate::store::Record;

/// A store, filled by hand.
struct Place {
    _folder: TempDir,
    store: Store,
}

fn digest(content: &str) -> Digest {
    Digest::of(content)
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("images"));
        Place {
            _folder: folder,
            store,
        }
    }

    /// Keeps contents, and the record of an image that needs them. The first one is its manifest.
    fn image(&self, id: &str, platform: &str, contents: &[&str]) {
        for content in contents {
            self.store
                .keep(&digest(content), content.as_bytes())
                .unwrap();
        }
        let record = Record {
            manifest: digest(contents[0]),
            platform: platform.parse().unwrap(),
            identity: digest(id).to_string(),
            config: Config::default(),
            blobs: contents.iter().map(|content| digest(content)).collect(),
        };
        self.store.record(&record).unwrap();
    }

    fn tag(&self, name: &str, manifest: &str) {
        let name: Reference = name.parse().unwrap();
        let manifest = digest(manifest);
        self.store.remember(&name.unabridged(), &manifest).unwrap();
    }

    fn stored(&self, id: &str) -> Stored {
        let all = self.store.inventory().images;
        let found = all.into_iter().find(|image| image.id == digest(id));
        found.unwrap()
    }

    /// The names of the files that are an image's own.
    fn own(&self, id: &str) -> Vec<String> {
        let own = self.stored(id).own;
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        own.into_iter().map(name).collect()
    }
}

fn names(image: &Stored) -> Vec<String> {
    let mut names: Vec<_> = image.names.iter().map(|tag| tag.name.to_string()).collect();
    names.sort();
    names
}

#[test]
fn images_have_their_names_sizes_and_the_files_that_no_other_needs() {
    let place = Place::new();
    assert!(place.store.inventory().images.is_empty() && !place.store.folder().exists());
    place.image(
        "one",
        "linux/amd64",
        &["index", "manifest 1", "shared layer", "own layer"],
    );
    place.image(
        "two",
        "linux/arm64",
        &["index", "manifest 2", "shared layer"],
    );
    place.tag("python:3", "index");
    place.tag("ghcr.io/o/n", "index");
    let one = place.stored("one");
    assert_eq!(names(&one), ["ghcr.io/o/n:latest", "python:3"]);
    assert_eq!(names(&place.stored("two")), names(&one));
    let contents = ["index", "manifest 1", "shared layer", "own layer"];
    assert_eq!(
        one.size,
        contents.map(str::len).iter().sum::<usize>() as u64
    );
    assert!(one.is_whole);
    assert_eq!(one.platform.as_ref().unwrap().to_string(), "linux/amd64");
    let own = place.own("one");
    let record = place
        .store
        .record_path(&digest("index"), &"linux/amd64".parse().unwrap());
    assert_eq!(own.len(), 3);
    assert!(own.contains(&digest("manifest 1").hex().to_owned()));
    assert!(own.contains(&digest("own layer").hex().to_owned()));
    assert_eq!(
        one.own.last(),
        Some(&record),
        "what names others comes last"
    );

    fs::remove_file(place.store.blob_path(&digest("shared layer"))).unwrap();
    let one = place.stored("one");
    assert!(!one.is_whole && one.size < contents.map(str::len).iter().sum::<usize>() as u64);
    assert_eq!(place.store.inventory().others, Others::default());
}

#[test]
fn an_image_of_several_manifests_is_one() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["index", "manifest", "layer"]);
    place.image("one", "linux/amd64", &["manifest", "layer"]);
    place.tag("a:1", "index");
    place.tag("a:2", "manifest");
    let image = place.stored("one");
    assert_eq!(names(&image), ["a:1", "a:2"]);
    assert_eq!((image.manifests.len(), image.own.len()), (2, 5));
    assert_eq!(place.store.inventory().images.len(), 1);
}

#[test]
fn a_name_whose_record_is_gone_and_an_engines_archive_are_listed() {
    let place = Place::new();
    place.store.keep(&digest("manifest"), b"manifest").unwrap();
    place.tag("a:1", "manifest");
    place.tag("gone:1", "nothing");
    let engine = place.store.engine_path(&digest("engine"));
    fs::create_dir_all(engine.parent().unwrap()).unwrap();
    fs::write(&engine, [0; 100]).unwrap();
    let image = place.stored("manifest");
    assert_eq!(
        (names(&image), image.is_whole, image.size),
        (vec!["a:1".into()], false, 8)
    );
    let gone = place.stored("nothing");
    assert_eq!((gone.size, gone.own.len(), gone.is_whole), (0, 0, false));
    let saved = place.stored("engine");
    assert_eq!(
        (saved.size, saved.is_whole, saved.own),
        (100, true, vec![engine])
    );
    assert_eq!(place.store.inventory().others, Others::default());
}

#[test]
fn what_is_damaged_or_foreign_is_counted_and_left_out() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["manifest", "layer"]);
    place.tag("a:1", "manifest");
    let images = place.store.folder();
    let tag = place.store.tag_path("docker.io/library/a:1");
    let record = place
        .store
        .record_path(&digest("manifest"), &"linux/amd64".parse().unwrap());
    let at = |name: &str| images.join(name);
    fs::create_dir_all(at("engine")).unwrap();
    fs::copy(&tag, at("tags").join(digest("other").hex())).unwrap();
    fs::copy(&record, at("known").join(digest("other").hex())).unwrap();
    fs::write(at("tags/garbage"), "{").unwrap();
    fs::write(at("known/garbage"), [0; 50]).unwrap();
    fs::write(at("blobs/sha256/garbage"), [0; 20]).unwrap();
    fs::write(at("engine/garbage"), [0; 20]).unwrap();
    fs::create_dir(at("known/folder")).unwrap();
    symlink(&record, at("known").join(digest("link").hex())).unwrap();
    symlink("/etc/passwd", at("blobs/sha256").join(digest("link").hex())).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("tags/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    place.store.keep(&digest("orphan"), b"orphan").unwrap();
    let inventory = place.store.inventory();
    assert_eq!(inventory.images.len(), 1);
    assert_eq!(inventory.others.files, 11);
    let copies = [&tag, &record].map(|path| fs::metadata(path).unwrap().len());
    let bytes = copies.iter().sum::<u64>() + 1 + 50 + 20 + 20 + 6;
    assert_eq!(inventory.others.bytes, bytes);
    // Without its record it is known by its name.
    fs::write(&record, "{}").unwrap();
    assert_eq!(names(&place.stored("manifest")), ["a:1"]);
}

#[test]
fn a_list_is_not_a_use() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["manifest", "layer"]);
    place.tag("a:1", "manifest");
    let then = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let all = || {
        let folders = ["tags", "known", "blobs/sha256"];
        let folders = folders.map(|name| entries(&place.store.folder().join(name)));
        folders.into_iter().flatten()
    };
    for entry in all() {
        let file = File::options().write(true).open(&entry.path).unwrap();
        file.set_modified(then).unwrap();
    }
    assert_eq!(place.stored("one").used, Some(then));
    assert!(all().all(|entry| entry.used == Some(then)));
}

#[test]
fn no_change_of_a_file_ends_the_list() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["manifest", "layer"]);
    place.tag("a:1", "manifest");
    let tag = place.store.tag_path("docker.io/library/a:1");
    let record = place
        .store
        .record_path(&digest("manifest"), &"linux/amd64".parse().unwrap());
    let mut random = Random::default();
    for path in [tag, record] {
        let whole = fs::read(&path).unwrap();
        for _ in 0..stress::count(200, 20_000) {
            let mut bytes = whole.clone();
            let at = random.below(bytes.len());
            bytes[at] = u8::try_from(random.below(256)).unwrap();
            bytes.truncate(1 + random.below(bytes.len()).max(at));
            fs::write(&path, &bytes).unwrap();
            let inventory = place.store.inventory();
            assert!(!inventory.images.is_empty());
        }
        fs::write(&path, whole).unwrap();
    }
}

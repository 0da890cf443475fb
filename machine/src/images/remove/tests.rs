use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::SystemTime;

use minivm_image::{Config, Digest, Image, Platform, Root};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use super::*;
use crate::templates::Recipe;

/// A cache, filled by hand.
struct Place {
    folder: tempfile::TempDir,
    images: ImageCache,
}

fn digest(content: &str) -> Digest {
    Digest::of(content)
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        Place {
            images: ImageCache::new(&folder.path().join("cache")),
            folder,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join("cache").join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.at(name);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Stores an image, as a pull does, and makes an archive, an EROFS image and a root folder of it. The first content is its manifest.
    fn image(&self, id: &str, platform: &str, contents: &[&str]) {
        for content in contents {
            let name = format!("images/blobs/sha256/{}", digest(content).hex());
            self.file(&name, content.as_bytes());
        }
        let manifest = digest(contents[0]);
        let blobs: Vec<_> = contents.iter().map(|content| digest(content)).collect();
        let platform: Platform = platform.parse().unwrap();
        let key = digest(&format!("{manifest} {platform}"));
        let record = json!({"manifest": manifest, "platform": platform, "identity": digest(id),
            "config": Config::default(), "blobs": blobs});
        self.file(
            &format!("images/known/{}", key.hex()),
            record.to_string().as_bytes(),
        );
        self.make(&digest(id).to_string());
    }

    /// Makes an archive, an EROFS image and a root folder of an image with this identity.
    fn make(&self, identity: &str) {
        let root = self.folder.path().join("root");
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("file"), "x").unwrap();
        let image = Image {
            identity: identity.to_owned(),
            config: Config::default(),
            root: Root::Folder(root),
        };
        self.images.archive(&image, || {}).unwrap();
        self.images.erofs(&image, || {}).unwrap();
        self.images.root(&image, || {}).unwrap();
    }

    fn tag(&self, name: &str, manifest: &str) {
        let tag = json!({"image": name, "manifest": digest(manifest)});
        let name = format!("images/tags/{}", digest(name).hex());
        self.file(&name, tag.to_string().as_bytes());
    }

    /// Makes a template of the image's archive, with a machine in a lab.
    fn template(&self, name: &str, id: &str, image: &str) {
        let archive = self.images.archive_path(&digest(id).to_string());
        let mut recipe = Recipe::example("/kernel".into(), archive);
        recipe.image = image.into();
        let record = json!({"recipe": recipe, "made": SystemTime::now(), "saved": null});
        let path = format!("templates/{name}/template.json");
        self.file(&path, record.to_string().as_bytes());
    }

    /// Makes a template whose guest maps the image, saved so.
    fn mapping_template(&self, name: &str, id: &str, saved: serde_json::Value) {
        let init = self.images.init_path();
        let mut recipe = Recipe::example("/kernel".into(), init);
        recipe.machine.image = Some(self.images.erofs_path(&digest(id).to_string()));
        let record = json!({"recipe": recipe, "made": SystemTime::now(), "saved": saved});
        let path = format!("templates/{name}/template.json");
        self.file(&path, record.to_string().as_bytes());
    }

    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self
            .images
            .list()
            .images
            .into_iter()
            .map(|image| image.id)
            .collect();
        ids.sort();
        ids
    }

    /// All files of images, with what was made of them.
    fn files(&self) -> Vec<PathBuf> {
        let folders = [
            "images/blobs/sha256",
            "images/known",
            "images/tags",
            "initramfs",
            "erofs",
            "rootfs",
        ];
        let files = folders
            .iter()
            .flat_map(|name| fs::read_dir(self.at(name)).into_iter().flatten());
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

#[test]
fn an_image_goes_with_all_that_was_made_of_it_and_another_keeps_what_both_have() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["manifest 1", "shared", "own"]);
    place.tag("docker.io/library/one:1", "manifest 1");
    let key = "0123456789abcdef0123456789abcdef";
    place.template(key, "one", "one:1");
    let before = place.files();
    place.image("two", "linux/amd64", &["manifest 2", "shared"]);
    place.tag("docker.io/library/two:1", "manifest 2");
    let Removed::Image(freed) = place.images.remove("two:1").unwrap() else {
        panic!("it has one name");
    };
    assert!(freed > 1000, "{freed}");
    assert_eq!(place.files(), before);
    let image = place.images.list().images.remove(0);
    assert_eq!(image.names, ["one:1"]);
    assert!(image.is_whole && image.initramfs > 0 && image.erofs > 0 && image.rootfs > 0);
    assert_eq!(
        image.made(),
        image.initramfs + image.erofs + image.rootfs + image.templates
    );
    assert_eq!(image.parts.first(), Some(&Part::Template(key.into())));
    place.images.remove("one:1").unwrap();
    assert_eq!(place.files(), [""; 0].map(PathBuf::from));
    assert!(!place.at("templates").join(key).exists());
    let error = place.images.remove("one:1").unwrap_err();
    assert!(error.to_string().contains("`minivm images`"), "{error}");
}

#[test]
fn an_image_is_found_by_all_that_it_is_called() {
    for text in [
        "one",
        "docker.io/library/one:latest",
        "NAME@ID",
        "ID",
        "DIGEST",
        "PREFIX",
        "sha256:PREFIX",
    ] {
        let place = Place::new();
        place.image("one", "linux/amd64", &["manifest 1", "layer"]);
        place.image("two", "linux/amd64", &["manifest 2", "layer"]);
        place.tag("docker.io/library/one:latest", "manifest 1");
        let (id, manifest) = (digest("one"), digest("manifest 1"));
        let text = text.replace("NAME@ID", &format!("one@{manifest}"));
        let text = text.replace("DIGEST", &manifest.to_string());
        let text = text.replace("PREFIX", &id.hex()[..12]);
        let text = text.replace("ID", &id.to_string());
        let removed = place.images.remove(&text);
        assert!(
            matches!(removed, Ok(Removed::Image(_))),
            "{text}: {removed:?}"
        );
        assert_eq!(place.ids(), [digest("two").to_string()], "{text}");
    }
}

#[test]
fn a_name_that_is_not_the_only_one_goes_alone() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["index", "layer"]);
    place.image("two", "linux/arm64", &["index", "other layer"]);
    place.tag("docker.io/library/a:1", "index");
    place.tag("docker.io/library/a:2", "index");
    assert_eq!(
        place.images.remove("a:1").unwrap(),
        Removed::Name("a:2".into())
    );
    assert_eq!(place.ids().len(), 2);
    // By its id one goes, and the name stays the other's.
    place.images.remove(digest("two").hex()).unwrap();
    let image = place.images.list().images.remove(0);
    assert_eq!(
        (image.names, image.id),
        (vec!["a:2".into()], digest("one").to_string())
    );
    place.image("two", "linux/arm64", &["index", "other layer"]);
    place.images.remove("a:2").unwrap();
    assert_eq!(place.files(), [""; 0].map(PathBuf::from));
}

#[test]
fn of_the_images_of_a_name_those_that_have_others_stay() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["index", "manifest", "layer"]);
    place.image("one", "linux/amd64", &["manifest", "layer"]);
    place.image("two", "linux/arm64", &["index", "other layer"]);
    place.tag("docker.io/library/a:1", "index");
    place.tag("docker.io/library/a:2", "manifest");
    let removed = place.images.remove("a:1").unwrap();
    assert!(matches!(removed, Removed::Image(_)), "{removed:?}");
    let image = place.images.list().images.remove(0);
    assert_eq!((image.names, image.is_whole), (vec!["a:2".into()], true));
    assert_eq!(place.ids(), [digest("one").to_string()]);
}

#[test]
fn what_is_no_name_and_no_id_is_refused_and_every_id_is_one() {
    let place = Place::new();
    place.make("one");
    place.make("two");
    let ids = place.ids();
    assert_eq!(ids.len(), 6, "two archives, two EROFS images, two folders");
    for text in ["", "sha256:", "zz", "../../etc", "\u{1b}[2J"] {
        let error = place.images.remove(text).unwrap_err();
        assert!(matches!(error, Unremoved::Missing(_)), "{error}");
        assert!(!error.to_string().contains('\u{1b}'));
    }
    for (number, id) in ids.iter().enumerate() {
        place.images.remove(id).unwrap();
        assert_eq!(place.ids().len(), 5 - number);
    }
}

#[test]
fn the_beginning_of_several_ids_is_not_enough() {
    let place = Place::new();
    let first = |name: &str| digest(name).hex()[..1].to_owned();
    let mut names = (1..).map(|number| number.to_string());
    let other = names.find(|name| first(name) == first("0")).unwrap();
    for name in ["0", &other] {
        place.image(name, "linux/amd64", &[&format!("manifest {name}")]);
    }
    let error = place.images.remove(&first("0")).unwrap_err();
    assert!(matches!(error, Unremoved::Ambiguous(..)), "{error}");
    assert_eq!(place.ids().len(), 2);
}

#[test]
fn an_image_that_is_in_use_stays_whole() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["manifest", "layer"]);
    place.tag("docker.io/library/one:1", "manifest");
    let id = digest("one").to_string();
    let all = place.files();
    let refused = |what: &str| {
        let error = place.images.remove("one:1").unwrap_err();
        assert!(matches!(error, Unremoved::InUse(_)), "{what}: {error}");
        assert!(error.to_string().starts_with("one:1 is in use"), "{error}");
        assert_eq!(place.files(), all, "{what}");
    };
    let archive = place.images.kept_archive(&id).unwrap().unwrap();
    refused("its archive");
    drop(archive);
    let erofs = place.images.kept_erofs(&id).unwrap().unwrap();
    refused("its EROFS image");
    drop(erofs);
    let root = place.images.kept_root(&id).unwrap().unwrap();
    refused("its root");
    drop(root);
    let layer = place.at(&format!("images/blobs/sha256/{}", digest("layer").hex()));
    let layer = File::open(layer).unwrap();
    flock(&layer, FlockOperation::LockShared).unwrap();
    refused("its layer");
    // A process that another test has just forked has it open too.
    flock(&layer, FlockOperation::Unlock).unwrap();
    let pull = File::open(place.file("images/lock", b"")).unwrap();
    flock(&pull, FlockOperation::LockShared).unwrap();
    let error = place.images.remove("one:1").unwrap_err();
    assert!(matches!(error, Unremoved::Busy), "{error}");
    flock(&pull, FlockOperation::Unlock).unwrap();
    place.template("named", "one", "one:1");
    let error = place.images.remove("one:1").unwrap_err().to_string();
    assert!(error.contains("`minivm template rm named`"), "{error}");
    assert_eq!(place.files(), all);
    fs::remove_dir_all(place.at("templates/named")).unwrap();
    // A template of this host's needs the image that its guest maps, and nothing else.
    place.mapping_template("named", "one", json!({"rings": null}));
    let error = place.images.remove("one:1").unwrap_err().to_string();
    assert!(error.contains("`minivm template rm named`"), "{error}");
    assert_eq!(place.files(), all);
    fs::remove_dir_all(place.at("templates/named")).unwrap();
    place.images.remove("one:1").unwrap();
}

#[test]
fn an_image_that_is_mapped_goes_with_its_automatic_templates() {
    let place = Place::new();
    place.image("one", "linux/amd64", &["manifest", "layer"]);
    place.tag("docker.io/library/one:1", "manifest");
    let key = "0123456789abcdef0123456789abcdef";
    place.mapping_template(key, "one", json!({"rings": null}));
    let image = place.images.list().images.remove(0);
    assert!(image.templates > 0);
    place.images.remove("one:1").unwrap();
    assert!(!place.at("templates").join(key).exists());
    assert_eq!(place.files(), [""; 0].map(PathBuf::from));
}

#[test]
fn the_archive_of_init_alone_is_no_images() {
    let place = Place::new();
    let init = place.images.init_archive().unwrap().path;
    place.file(
        "initramfs/init-0123456789abcdef0123456789abcdef.cpio",
        b"old",
    );
    let listing = place.images.list();
    assert!(listing.images.is_empty(), "{listing:?}");
    assert_eq!((listing.others.files, listing.others.bytes), (1, 3));
    assert!(init.exists());
}

#[test]
fn an_image_that_is_partly_gone_is_listed_and_goes() {
    // As a removal leaves it that is killed after any of its steps.
    for steps in 0.. {
        let place = Place::new();
        place.image("one", "linux/amd64", &["manifest", "layer", "other"]);
        place.tag("docker.io/library/one:1", "manifest");
        let image = place.images.list().images.remove(0);
        assert_eq!(image.parts.len(), 7);
        for part in image.parts.iter().take(steps) {
            place.images.remove_part(part, &image).unwrap();
        }
        let left = place.images.list().images.remove(0);
        assert_eq!(left.names, ["one:1"], "{steps}");
        let content = left
            .parts
            .iter()
            .filter(|part| image.parts[3..].contains(part));
        assert_eq!(left.is_whole, content.count() == 4, "{steps}");
        place.images.remove("one:1").unwrap();
        assert!(
            place.files().is_empty() && place.ids().is_empty(),
            "{steps}"
        );
        if steps == image.parts.len() {
            break;
        }
    }
}

#[test]
fn what_was_made_of_unknown_images_has_rows_with_the_names_of_templates() {
    let place = Place::new();
    place.make(&digest("one").to_string());
    place.template("0123456789abcdef0123456789abcdef", "one", "dir:/srv/root");
    place.file("initramfs/stranger", b"12345");
    for folder in ["initramfs", "erofs"] {
        let name = format!("{folder}/0123456789abcdef0123456789abcdef.partial");
        place.file(&name, b"12345");
    }
    place.file("erofs/stranger", b"12345");
    let listing = place.images.list();
    assert_eq!((listing.others.files, listing.others.bytes), (2, 10));
    let [named, others @ ..] = &listing.images[..] else {
        panic!("{listing:?}");
    };
    assert_eq!(named.names, ["dir:/srv/root"]);
    assert!(named.initramfs > 0 && named.rootfs == 0 && named.erofs == 0);
    let of_folder: u64 = others.iter().map(|other| other.rootfs).sum();
    let of_erofs: u64 = others.iter().map(|other| other.erofs).sum();
    assert!(
        others.len() == 2 && of_folder > 0 && of_erofs > 0,
        "{listing:?}"
    );
    place.images.remove("dir:/srv/root").unwrap();
    for other in others {
        assert!(other.names.is_empty());
        place.images.remove(other.short_id()).unwrap();
    }
    assert!(place.images.list().images.is_empty());
}

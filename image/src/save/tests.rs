use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use tar::EntryType;
use tempfile::TempDir;

use super::*;
use crate::compression::Format;
use crate::compression::tests::compressed;
use crate::fixtures::{
    self, Files, Made, archive, descriptor, entry, image, index, options, to_vec, write_folder,
};
use crate::{Image, Store, Unwatched, describe};

/// The most bytes of layers in these tests.
const LIMIT: u64 = 1 << 20;

/// A folder with a store, and what a test puts beside it.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A source of this place, `%` in its text.
    fn source(&self, text: &str) -> Source {
        let text = text.replace('%', self.0.path().to_str().unwrap());
        text.parse().unwrap()
    }

    fn describe(&self, text: &str) -> Described {
        let store = Store::new(self.path("store"));
        describe(&self.source(text), &store, &options(), &Unwatched).unwrap()
    }

    fn save(&self, text: &str) -> Result<Vec<u8>, Unsaved> {
        let mut out = Vec::new();
        let (found, source) = (self.describe(text), self.source(text));
        let summary = write(&found, &source, &Platform::here(), LIMIT, &mut out)?;
        assert_eq!(summary.bytes, out.len() as u64);
        Ok(out)
    }

    /// Saves an image to `saved.tar`; returns its files.
    fn saved(&self, text: &str) -> BTreeMap<String, Vec<u8>> {
        let bytes = self.save(text).unwrap();
        assert!(self.save(text).unwrap() == bytes, "{text}: other bytes");
        fs::write(self.path("saved.tar"), &bytes).unwrap();
        let files = members(&bytes);
        for (name, content) in &files {
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(Digest::of(content).hex(), hex, "{text}");
            }
        }
        files
    }

    fn layout(&self, files: &Files) {
        write_folder(files, &self.path("layout"));
    }

    fn opened(&self, text: &str) -> Image {
        self.describe(text).image
    }
}

/// The files of an archive, by their names.
fn members(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(bytes);
    let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name, content)
    };
    archive.entries().unwrap().map(read).collect()
}

/// Where a member's content begins in an archive.
fn place_of(bytes: &[u8], name: &str) -> usize {
    let at = bytes
        .windows(name.len())
        .rposition(|part| part == name.as_bytes());
    at.unwrap() + crate::tar_reader::BLOCK
}

fn parsed(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&files[name]).unwrap()
}

fn blob(content: &[u8]) -> String {
    path(&Digest::of(content))
}

#[test]
fn an_image_with_a_manifest_keeps_every_byte_of_it() {
    let place = Place::new();
    let made = image(&["one", "two", "one"]);
    place.layout(&made.layout("tag"));
    let files = place.saved("oci:%/layout:tag");
    let mut expected: Files = made.files();
    let manifest = &parsed(&files, "index.json")["manifests"][0];
    assert_eq!(manifest["digest"], Digest::of(&made.manifest).to_string());
    assert_eq!(manifest["mediaType"], MANIFEST);
    let name = &manifest["annotations"]["org.opencontainers.image.ref.name"];
    assert_eq!(name, "tag");
    for added in ["index.json", "manifest.json"] {
        expected.insert(added.into(), files[added].clone());
    }
    assert_eq!(files, expected);
    for source in ["oci-archive:%/saved.tar:tag", "docker-archive:%/saved.tar"] {
        let opened = place.opened(source);
        assert_eq!(opened.identity, made.identity(), "{source}");
        assert_eq!(fixtures::layers_of(&opened), made.layers, "{source}");
    }
}

#[test]
fn compressed_layers_and_dockers_manifests_stay_what_they_are() {
    let place = Place::new();
    let mut made = image(&["one"]);
    let layer = compressed(Format::Zstd, &made.layers[0]);
    made.manifest = to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": DOCKERS_MANIFEST,
        "config": descriptor(&made.config, "application/vnd.docker.container.image.v1+json"),
        "layers": [descriptor(&layer, "application/vnd.docker.image.rootfs.diff.tar.zstd")],
    }));
    made.layers = vec![layer];
    let here = Platform::here().to_string();
    let mut files = made.files();
    let manifests = [entry(&made.manifest, Some(&here), None)];
    files.insert("index.json".into(), index(&manifests));
    place.layout(&files);
    let saved = place.saved("oci:%/layout");
    assert_eq!(saved[&blob(&made.layers[0])], made.layers[0]);
    assert_eq!(saved[&blob(&made.manifest)], made.manifest);
    let manifest = &parsed(&saved, "index.json")["manifests"][0];
    assert_eq!(manifest["mediaType"], DOCKERS_MANIFEST);
    assert_eq!(manifest.get("annotations"), None);
    assert_eq!(
        place.opened("oci-archive:%/saved.tar").identity,
        made.identity()
    );
}

#[test]
fn an_image_without_a_manifest_gets_one_of_plain_layers() {
    let place = Place::new();
    let made = image(&["one", "two"]);
    let zipped = Made {
        layers: made
            .layers
            .iter()
            .map(|layer| compressed(Format::Gzip, layer))
            .collect(),
        ..made.clone()
    };
    let mut plain = None;
    for made in [&made, &zipped] {
        let archive = archive(&made.saved(&["local/x:1"]));
        fs::write(place.path("a.tar"), archive).unwrap();
        let files = place.saved("docker-archive:%/a.tar:local/x:1");
        let tags = &parsed(&files, "manifest.json")[0]["RepoTags"];
        assert_eq!(*tags, json!(["local/x:1"]));
        assert!(
            plain.get_or_insert(files.clone()) == &files,
            "the form of its layers counts"
        );
    }
    let files = plain.unwrap();
    for content in [&made.layers[0], &made.layers[1], &made.config] {
        assert_eq!(&files[&blob(content)], content);
    }
    for source in [
        "oci-archive:%/saved.tar:1",
        "docker-archive:%/saved.tar:local/x:1",
    ] {
        assert_eq!(place.opened(source).identity, made.identity(), "{source}");
    }
}

#[test]
fn a_bare_root_becomes_an_image_of_one_layer_and_a_folder_is_refused() {
    let place = Place::new();
    let root = fixtures::tar(&[("etc/motd", EntryType::Regular, "", b"hello")]);
    fs::write(place.path("root.tar"), compressed(Format::Xz, &root)).unwrap();
    let files = place.saved("tar:%/root.tar");
    assert_eq!(files[&blob(&root)], root);
    let opened = place.opened("oci-archive:%/saved.tar");
    assert_eq!(fixtures::layers_of(&opened), std::slice::from_ref(&root));
    let error = place.save("dir:%").unwrap_err().to_string();
    assert!(
        error.contains("has no layers") && error.contains("tar:FILE"),
        "{error}"
    );
}

#[test]
fn a_layer_that_is_another_one_ends_the_archive_early() {
    let made = image(&["one", "two"]);
    for wrong in [vec![0; made.layers[1].len()], Vec::new()] {
        let place = Place::new();
        place.layout(&made.layout("tag"));
        let found = place.describe("oci:%/layout");
        let source = place.source("oci:%/layout");
        // The file is open, and its length is known, when it is changed.
        fs::write(place.path("layout").join(blob(&made.layers[1])), &wrong).unwrap();
        let mut out = Vec::new();
        let error = write(&found, &source, &Platform::here(), LIMIT, &mut out).unwrap_err();
        let digest = Digest::of(&made.layers[1]).to_string();
        let Unsaved::Image(error) = error else {
            panic!("{error}");
        };
        assert!(error.to_string().contains(&digest), "{error}");
        let begin = place_of(&out, &blob(&made.layers[1]));
        assert_eq!(out.len(), begin + wrong.len(), "it has an end");
    }
}

#[test]
fn a_layer_that_the_configuration_does_not_name_is_refused() {
    let place = Place::new();
    let made = image(&["one"]);
    let mut files = made.saved(&["x:1"]);
    let layer = files
        .values_mut()
        .find(|content| **content == made.layers[0]);
    layer.unwrap()[512] ^= 1;
    fs::write(place.path("a.tar"), archive(&files)).unwrap();
    let error = place
        .save("docker-archive:%/a.tar")
        .unwrap_err()
        .to_string();
    let expected = Digest::of(&made.layers[0]).to_string();
    assert!(error.contains(&format!("instead of {expected}")), "{error}");
}

#[test]
fn layers_beyond_the_limit_are_refused() {
    let place = Place::new();
    let zeros = vec![0; usize::try_from(LIMIT).unwrap() + 1];
    let root = fixtures::tar(&[("zeros", EntryType::Regular, "", &zeros)]);
    let bomb = compressed(Format::Zstd, &root);
    assert!(bomb.len() < 100_000);
    fs::write(place.path("root.tar"), bomb).unwrap();
    let error = place.save("tar:%/root.tar").unwrap_err().to_string();
    assert!(
        error.contains("root.tar is larger than 1048576 bytes"),
        "{error}"
    );
    let made = fixtures::image_of(&Platform::here().architecture, vec![root]);
    place.layout(&made.layout("tag"));
    let error = place.save("oci:%/layout").unwrap_err().to_string();
    assert!(
        error.contains("layout is larger than 1048576 bytes"),
        "{error}"
    );
}

#[test]
fn a_full_output_is_its_own_error() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            match taken {
                0 => Err(io::Error::from_raw_os_error(28)),
                taken => Ok(taken),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let place = Place::new();
    place.layout(&image(&["one"]).layout("tag"));
    let (found, source) = (place.describe("oci:%/layout"), place.source("oci:%/layout"));
    let whole = place.save("oci:%/layout").unwrap().len();
    for room in [0, 600, whole / 2, whole - 1] {
        let error = write(&found, &source, &Platform::here(), LIMIT, Full(room)).unwrap_err();
        assert!(matches!(error, Unsaved::Write(_)), "{room}: {error}");
    }
}

//! Archives and layouts, good and bad, as whole images.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use minivm_tests::stress;
use proptest::prelude::*;
use serde_json::json;
use tar::EntryType;
use tempfile::TempDir;

use super::fixtures::{
    Files, Made, archive, descriptor, entry, image, image_for, index, layers_of, options, tar,
    to_vec, write_folder,
};
use super::*;
use crate::compression::tests::{FORMATS, compressed};

/// A folder with a store and whatever a test puts beside it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Place {
        Place {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> Store {
        Store::new(self.path("store"))
    }

    fn open(&self, source: &str) -> Result<Image, Error> {
        let source = source.replace('%', self.folder.path().to_str().unwrap());
        open(&source.parse()?, &self.store(), &options(), &Unwatched)
    }

    /// Opens an archive with this content.
    fn archive(&self, kind: &str, content: &[u8]) -> Result<Image, Error> {
        fs::write(self.path("a.tar"), content).unwrap();
        self.open(&format!("{kind}:%/a.tar"))
    }

    fn layout(&self, files: &Files) -> Result<Image, Error> {
        write_folder(files, &self.path("layout"));
        self.open("oci:%/layout")
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The failure in one line, and with it the check that it is one.
fn line<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let line = result.unwrap_err().to_string();
    assert!(!line.contains('\n') && !line.ends_with('.'), "{line}");
    line
}

fn check(image: &Image, made: &Made) {
    assert_eq!(image.identity, made.identity());
    assert_eq!(layers_of(image), made.layers);
    let config = &image.config;
    assert_eq!(config.entrypoint, [""; 0]);
    assert_eq!(config.cmd, ["/bin/sh"]);
    assert_eq!(config.env, ["A=1"]);
    assert_eq!(config.user, "1000:1000");
    assert_eq!(config.working_dir, "/srv");
    assert_eq!(config.stop_signal, "SIGINT");
    assert_eq!(config.labels["a"], "b");
}

#[test]
fn an_image_is_the_same_from_every_source() {
    let place = Place::new();
    let made = image(&["one", "two"]);
    check(&place.layout(&made.layout("1")).unwrap(), &made);
    check(
        &place
            .archive("oci-archive", &archive(&made.layout("1")))
            .unwrap(),
        &made,
    );
    check(
        &place
            .archive("docker-archive", &archive(&made.saved(&["a:1"])))
            .unwrap(),
        &made,
    );
    let mut both = made.layout("1");
    let layers = made
        .layers
        .iter()
        .map(|layer| format!("blobs/sha256/{}", Digest::of(layer).hex()));
    let config = format!("blobs/sha256/{}", Digest::of(&made.config).hex());
    let list =
        json!([{"Config": config, "RepoTags": ["a:1"], "Layers": layers.collect::<Vec<_>>()}]);
    both.insert("manifest.json".into(), to_vec(&list));
    check(
        &place.archive("docker-archive", &archive(&both)).unwrap(),
        &made,
    );
    check(
        &place.archive("oci-archive", &archive(&both)).unwrap(),
        &made,
    );
    assert!(!place.path("store").exists(), "something was copied");
}

#[test]
fn a_compressed_archive_and_a_stream_are_read_like_others() {
    let place = Place::new();
    let made = image(&["one"]);
    let saved = archive(&made.saved(&["a:1"]));
    check(
        &place.archive("docker-archive", &gzip(&saved)).unwrap(),
        &made,
    );
    for format in FORMATS {
        let packed = compressed(format, &saved);
        check(&place.archive("docker-archive", &packed).unwrap(), &made);
        let packed = compressed(format, &archive(&made.layout("1")));
        check(&place.archive("oci-archive", &packed).unwrap(), &made);
        line(place.archive("docker-archive", &packed[..packed.len() - 5]));
    }
    for content in [saved.clone(), gzip(&saved), archive(&made.layout("1"))] {
        let image = open_stream(&content[..], "standard input", &place.store(), &options());
        check(&image.unwrap().image, &made);
    }
    assert_eq!(
        fs::read_dir(place.path("store")).unwrap().count(),
        0,
        "a spool has a name"
    );
}

#[test]
fn streams_are_limited_before_and_after_decompression() {
    let place = Place::new();
    let limited = Options {
        largest: 100_000,
        ..options()
    };
    let endless = std::io::repeat(b'x');
    let error = line(open_stream(
        endless,
        "standard input",
        &place.store(),
        &limited,
    ));
    assert!(
        error.contains("standard input is larger than 100000 bytes"),
        "{error}"
    );
    let bomb = gzip(&vec![0; 10_000_000]);
    assert!(bomb.len() < 100_000);
    let error = line(open_stream(
        &bomb[..],
        "standard input",
        &place.store(),
        &limited,
    ));
    assert!(error.contains("decompressed, is larger"), "{error}");
}

#[test]
fn an_old_archive_may_link_equal_layers() {
    let made = image(&["one", "one", "one"]);
    let config = format!("{}.json", Digest::of(&made.config).hex());
    let list = json!([{"Config": config, "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}]);
    let list = to_vec(&list);
    let archive = tar(&[
        ("b/layer.tar", EntryType::Symlink, "../a/layer.tar", b""),
        ("c/layer.tar", EntryType::Link, "b/layer.tar", b""),
        ("a/", EntryType::Directory, "", b""),
        ("./a/layer.tar", EntryType::Regular, "", &made.layers[0]),
        ("manifest.json", EntryType::Regular, "", &list),
        (&config, EntryType::Regular, "", &made.config),
    ]);
    check(
        &Place::new().archive("docker-archive", &archive).unwrap(),
        &made,
    );
}

#[test]
fn extended_headers_give_long_names_and_sizes() {
    let made = image(&["one"]);
    let long = format!("{}/layer.tar", "d".repeat(150));
    let config = format!("{}.json", Digest::of(&made.config).hex());
    let list = to_vec(&json!([{"Config": config, "RepoTags": [], "Layers": [long]}]));
    let layer = &made.layers[0];
    let record = |key: &str, value: &str| {
        let len = key.len() + value.len() + 3;
        let len = len + (len + 2).to_string().len();
        format!("{len} {key}={value}\n")
    };
    let pax = record("path", &long) + &record("size", &layer.len().to_string());
    let mut sized = tar(&[
        ("x", EntryType::XHeader, "", pax.as_bytes()),
        ("short", EntryType::Regular, "", layer),
    ]);
    // The size in the header itself is then ignored.
    let header = &mut sized[1024..1536];
    header[124..135].copy_from_slice(b"00000000000");
    let mut header = tar::Header::from_byte_slice(header).clone();
    header.set_cksum();
    sized[1024..1536].copy_from_slice(header.as_bytes());
    let gnu = tar(&[
        (
            "L",
            EntryType::GNULongName,
            "",
            format!("{long}\0").as_bytes(),
        ),
        ("short", EntryType::Regular, "", layer),
    ]);
    for mut start in [sized, gnu] {
        start.truncate(start.len() - 1024);
        start.extend(tar(&[
            ("manifest.json", EntryType::Regular, "", &list),
            (&config, EntryType::Regular, "", &made.config),
        ]));
        check(
            &Place::new().archive("docker-archive", &start).unwrap(),
            &made,
        );
    }
}

#[test]
fn a_tag_chooses_among_the_images_of_a_layout() {
    let place = Place::new();
    let (one, two) = (image(&["one"]), image(&["two"]));
    let mut files = one.files();
    files.extend(two.files());
    let entries = [
        entry(&one.manifest, None, Some("1")),
        entry(&two.manifest, None, Some("docker.io/o/n:2")),
    ];
    files.insert("index.json".into(), index(&entries));
    let error = line(place.layout(&files));
    assert!(
        error.contains(
            "has 2 images: add a colon and the name of one; there are: 1, docker.io/o/n:2"
        ),
        "{error}"
    );
    check(&place.open("oci:%/layout:1").unwrap(), &one);
    check(&place.open("oci:%/layout:o/n:2").unwrap(), &two);
    let error = line(place.open("oci:%/layout:3"));
    assert!(error.contains("has no image 3; there are: 1,"), "{error}");
}

#[test]
fn a_name_chooses_among_saved_images() {
    let place = Place::new();
    let (one, two) = (image(&["one"]), image(&["two"]));
    let lists: Vec<serde_json::Value> = [
        one.saved(&["a:1", "docker.io/library/a:latest"]),
        two.saved(&["o/b:2"]),
    ]
    .iter()
    .map(|files| {
        serde_json::from_slice::<serde_json::Value>(&files["manifest.json"]).unwrap()[0].clone()
    })
    .collect();
    // Both name their layer alike: only one of them can be in the archive.
    let mut files = two.saved(&[]);
    files.extend(one.saved(&[]));
    files.insert("manifest.json".into(), to_vec(&json!(lists)));
    let error = line(place.archive("docker-archive", &archive(&files)));
    assert!(
        error.contains("has 2 images") && error.contains("a:1"),
        "{error}"
    );
    check(&place.open("docker-archive:%/a.tar:a").unwrap(), &one);
    check(
        &place
            .open("docker-archive:%/a.tar:docker.io/library/a:1")
            .unwrap(),
        &one,
    );
    let image = place.open("docker-archive:%/a.tar:o/b:2").unwrap();
    assert_eq!(image.identity, two.identity());
    let error = line(place.open("docker-archive:%/a.tar:o/b:3"));
    assert!(
        error.contains("has no image o/b:3; there are: a:1"),
        "{error}"
    );
}

/// A layout whose one image is for several platforms.
fn platforms(images: &[(&str, &Made)], nested: bool) -> Files {
    let mut files = Files::new();
    let mut entries = Vec::new();
    for (platform, made) in images {
        files.extend(made.files());
        entries.push(entry(
            &made.manifest,
            Some(platform).filter(|p| !p.is_empty()).copied(),
            None,
        ));
    }
    let mut top = index(&entries);
    let outer = index(&[descriptor(&top, "application/vnd.oci.image.index.v1+json")]);
    let mut keep = |content: Vec<u8>| {
        files.insert(
            format!("blobs/sha256/{}", Digest::of(&content).hex()),
            content,
        );
    };
    keep(top.clone());
    if nested {
        keep(outer.clone());
        top = outer;
    }
    files.insert(
        "index.json".into(),
        index(&[entry(&top, None, Some("latest"))]),
    );
    files
}

#[test]
fn an_index_yields_the_image_for_this_machine() {
    let here = Platform::here().to_string();
    let (ours, theirs) = (image(&["ours"]), image_for("s390x", &["theirs"]));
    for nested in [false, true] {
        let images = [
            ("linux/s390x", &theirs),
            ("unknown/unknown", &theirs),
            (&here, &ours),
        ];
        check(
            &Place::new().layout(&platforms(&images, nested)).unwrap(),
            &ours,
        );
    }
    // Without a platform in the index, that in the configuration counts.
    let images = [("", &theirs), ("", &ours)];
    check(
        &Place::new().layout(&platforms(&images, false)).unwrap(),
        &ours,
    );
}

#[test]
fn a_layout_may_be_an_index_itself() {
    let here = Platform::here().to_string();
    let (ours, theirs) = (image(&["ours"]), image_for("s390x", &["theirs"]));
    let mut files = ours.files();
    files.extend(theirs.files());
    let other = entry(&theirs.manifest, Some("linux/s390x"), None);
    let attestation = entry(&ours.layers[0], Some("unknown/unknown"), None);
    let mine = entry(&ours.manifest, Some(&here), None);
    let both = index(&[attestation.clone(), other.clone(), mine]);
    files.insert("index.json".into(), both);
    check(&Place::new().layout(&files).unwrap(), &ours);
    let windows = entry(&theirs.manifest, Some("windows/amd64"), None);
    let neither = index(&[attestation, other.clone(), windows]);
    files.insert("index.json".into(), neither);
    let error = line(Place::new().layout(&files));
    assert!(
        error.contains(&format!("is not for {here}; it is for ")),
        "{error}"
    );
}

#[test]
fn the_basic_variant_of_an_architecture_is_preferred() {
    let here = Platform::here().to_string();
    let (basic, special) = (image(&["basic"]), image(&["special"]));
    let special_platform = format!("{here}/v9");
    let images = [(special_platform.as_str(), &special), (&here, &basic)];
    check(
        &Place::new().layout(&platforms(&images, false)).unwrap(),
        &basic,
    );
    check(
        &Place::new()
            .layout(&platforms(&images[..1], false))
            .unwrap(),
        &special,
    );
}

#[test]
fn an_image_for_other_machines_is_refused_with_its_platforms() {
    let theirs = image_for("s390x", &["theirs"]);
    let here = Platform::here();
    let images = [
        ("linux/s390x", &theirs),
        ("windows/amd64", &theirs),
        ("unknown/unknown", &theirs),
    ];
    let error = line(Place::new().layout(&platforms(&images, true)));
    let told = format!("is not for {here}; it is for linux/s390x, windows/amd64");
    assert!(error.ends_with(&told), "{error}");
    let told = format!("is not for {here}; it is for linux/s390x");
    let error = line(Place::new().layout(&theirs.layout("1")));
    assert!(error.ends_with(&told), "{error}");
    let error = line(Place::new().archive("docker-archive", &archive(&theirs.saved(&[]))));
    assert!(error.ends_with(&told), "{error}");
}

#[test]
fn indexes_nested_without_an_end_are_refused() {
    let mut files = Files::new();
    let made = image(&["one"]);
    let mut top = index(&[entry(&made.manifest, None, None)]);
    for _ in 0..10 {
        files.insert(
            format!("blobs/sha256/{}", Digest::of(&top).hex()),
            top.clone(),
        );
        top = index(&[entry(&top, None, None)]);
    }
    files.insert("index.json".into(), top);
    let error = line(Place::new().layout(&files));
    assert!(error.contains("too many or too deeply nested"), "{error}");
    let many: Vec<_> = (0..200)
        .map(|n| entry(format!("{n}").as_bytes(), None, None))
        .collect();
    let empty = index(&[]);
    let mut files = Files::from([("index.json".into(), Vec::new())]);
    let many: Vec<_> = many.iter().map(|_| entry(&empty, None, None)).collect();
    let wide = index(&many);
    files.insert("index.json".into(), index(&[entry(&wide, None, None)]));
    for content in [empty, wide] {
        files.insert(
            format!("blobs/sha256/{}", Digest::of(&content).hex()),
            content,
        );
    }
    let error = line(Place::new().layout(&files));
    assert!(error.contains("too many or too deeply nested"), "{error}");
}

/// The layout after one of its documents was replaced, with digests that are right again.
fn with_manifest(made: &Made, manifest: &serde_json::Value) -> Files {
    let changed = Made {
        manifest: to_vec(manifest),
        ..made.clone()
    };
    changed.layout("1")
}

#[test]
fn manifests_that_are_not_of_images_are_refused() {
    let made = image(&["one"]);
    let good: serde_json::Value = serde_json::from_slice(&made.manifest).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        line(Place::new().layout(&with_manifest(&made, &manifest)))
    };
    let error = line(Place::new().layout(&with_manifest(
        &made,
        &json!({"schemaVersion": 1, "fsLayers": []}),
    )));
    assert!(error.contains("Docker's old schema 1"), "{error}");
    let error =
        with(&|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json"));
    assert!(
        error.contains(
            "is not a container image: its configuration has the type application/vnd.cncf.helm"
        ),
        "{error}"
    );
    let error = with(&|m| {
        m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")
    });
    assert!(error.contains("encrypted layers"), "{error}");
    let error = with(&|m| m["manifests"] = json!([]));
    assert!(error.contains("neither an OCI nor a Docker one"), "{error}");
    let error = with(&|m| m["layers"] = json!([]));
    assert!(
        error.contains("has 0 layers, but its configuration has the digests of 1"),
        "{error}"
    );
    let error = with(&|m| {
        let layer = m["layers"][0].clone();
        m["layers"] = json!(vec![layer; 1001]);
    });
    assert!(
        error.contains("has 1001 layers, more than the 1000"),
        "{error}"
    );
    let error = with(&|m| m["config"]["digest"] = json!("sha256:../../etc/passwd"));
    assert!(error.contains("cannot understand the manifest"), "{error}");
    let error = with(&|m| m["layers"][0]["size"] = json!(1));
    assert!(
        error.contains("bytes instead of 1: it is incomplete"),
        "{error}"
    );
}

#[test]
fn damaged_content_is_refused_by_its_digest() {
    let made = image(&["one"]);
    for content in [&made.config, &made.manifest] {
        let digest = Digest::of(content);
        let mut files = made.layout("1");
        let blob = files
            .get_mut(&format!("blobs/sha256/{}", digest.hex()))
            .unwrap();
        let last = blob.len() - 2;
        blob[last] ^= 1;
        let error = line(Place::new().layout(&files));
        assert!(error.contains(&format!("instead of {digest}")), "{error}");
    }
    let mut files = made.saved(&[]);
    let config = files
        .get_mut(&format!("{}.json", Digest::of(&made.config).hex()))
        .unwrap();
    config.push(b' ');
    let error = line(Place::new().archive("docker-archive", &archive(&files)));
    assert!(error.contains("the configuration of"), "{error}");
}

#[test]
fn missing_blobs_and_files_are_named() {
    let made = image(&["one"]);
    for content in [&made.config, &made.manifest, &made.layers[0]] {
        let digest = Digest::of(content);
        let mut files = made.layout("1");
        files
            .remove(&format!("blobs/sha256/{}", digest.hex()))
            .unwrap();
        let told = format!("has no {digest}: it is incomplete");
        let error = line(Place::new().layout(&files));
        assert!(error.contains(&told), "{error}");
        let error = line(Place::new().archive("oci-archive", &archive(&files)));
        assert!(error.contains(&told), "{error}");
    }
    let place = Place::new();
    for kind in ["docker-archive", "oci-archive", "tar", "dir", "oci"] {
        let error = place.open(&format!("{kind}:%/absent")).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .contains("No such file")
        );
    }
    let error = line(place.archive(
        "docker-archive",
        &tar(&[("etc/", EntryType::Directory, "", b"")]),
    ));
    assert!(
        error.contains("has no index.json: it is neither"),
        "{error}"
    );
}

#[test]
fn a_configuration_that_is_not_json_is_refused() {
    let made = image(&["one"]);
    let config = b"{\"os\": \"linux\"".to_vec();
    let mut manifest: serde_json::Value = serde_json::from_slice(&made.manifest).unwrap();
    manifest["config"] = descriptor(&config, "application/vnd.oci.image.config.v1+json");
    let broken = Made {
        config,
        manifest: to_vec(&manifest),
        ..made
    };
    let error = line(Place::new().layout(&broken.layout("1")));
    assert!(
        error.starts_with("cannot understand the configuration of"),
        "{error}"
    );
    let error = line(Place::new().archive("docker-archive", &archive(&broken.saved(&[]))));
    assert!(
        error.starts_with("cannot understand the configuration of"),
        "{error}"
    );
}

#[test]
fn text_in_a_configuration_is_unicode_without_nul() {
    let made = image(&["one"]);
    let config = String::from_utf8(made.config.clone()).unwrap();
    let with = |from: &str, to: &[u8]| {
        let (before, after) = config.split_once(from).expect("it is there");
        let config = [before.as_bytes(), to, after.as_bytes()].concat();
        let mut manifest: serde_json::Value = serde_json::from_slice(&made.manifest).unwrap();
        manifest["config"] = descriptor(&config, "application/vnd.oci.image.config.v1+json");
        Made {
            config,
            manifest: to_vec(&manifest),
            ..made.clone()
        }
    };
    for (from, to, needle) in [
        (
            "A=1",
            &br"A=\u0000"[..],
            "has a NUL byte in its environment",
        ),
        (
            "/bin/sh",
            br"/bin\u0000/sh",
            "has a NUL byte in its command",
        ),
        ("/srv", br"/s\u0000", "has a NUL byte in its working folder"),
        ("1000:1000", br"bob\u0000", "has a NUL byte in its user"),
    ] {
        let made = with(from, to);
        for error in [
            line(Place::new().layout(&made.layout("1"))),
            line(Place::new().archive("docker-archive", &archive(&made.saved(&[])))),
        ] {
            assert!(error.contains(needle), "{error}");
        }
    }
    // As Docker has it.
    for to in [&b"A=\xe9"[..], br"A=\ud800"] {
        let made = with("A=1", to);
        for image in [
            Place::new().layout(&made.layout("1")),
            Place::new().archive("docker-archive", &archive(&made.saved(&[]))),
        ] {
            assert_eq!(image.unwrap().config.env, ["A=\u{fffd}"]);
        }
    }
    let escaped = with("A=1", r"A=\u00e9".as_bytes());
    let image = Place::new().layout(&escaped.layout("1")).unwrap();
    assert_eq!(image.config.env, ["A=é"]);
}

#[test]
fn names_of_members_may_be_any_bytes() {
    let made = image(&["one"]);
    let saved = archive(&made.saved(&["a:1"]));
    // Names beyond a header's field, which the header's own would be taken for, if they counted for nothing.
    let odd = [b"\xff".repeat(200), b"\0".to_vec()].concat();
    let record = |key: &str, value: &[u8]| {
        let rest = [format!(" {key}=").as_bytes(), value, b"\n"].concat();
        [format!("{}", rest.len() + 3).as_bytes(), &rest].concat()
    };
    let path = record("path", &b"\xff".repeat(200));
    for (kind, extension) in [(EntryType::GNULongName, &odd), (EntryType::XHeader, &path)] {
        let members = tar(&[
            ("x", kind, "", extension),
            ("manifest.json", EntryType::Regular, "", b"not the one"),
        ]);
        let both = [&saved[..saved.len() - 1024], &members].concat();
        check(
            &Place::new().archive("docker-archive", &both).unwrap(),
            &made,
        );
    }
}

#[test]
fn a_document_larger_than_its_limit_is_refused() {
    let made = image(&["one"]);
    let mut files = made.layout("1");
    files.insert("index.json".into(), vec![b' '; (4 << 20) + 1]);
    let error = line(Place::new().layout(&files));
    assert!(error.contains("is larger than 4194304 bytes"), "{error}");
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_ends() {
    let place = Place::new();
    let whole = archive(&image(&["one"]).saved(&["a:1"]));
    assert!(place.archive("docker-archive", &whole).is_ok());
    // The last 1024 bytes are zeros that mark the end; not to have them is no loss.
    for end in (1..whole.len() - 1024 - 512).step_by(100) {
        line(place.archive("docker-archive", &whole[..end]));
    }
    let error = line(place.archive("docker-archive", &whole[..600]));
    assert!(error.contains("it is truncated, make it again"), "{error}");
    let zipped = gzip(&whole);
    line(place.archive("docker-archive", &zipped[..zipped.len() / 2]));
}

#[test]
fn an_archive_with_a_damaged_header_is_refused() {
    let whole = archive(&image(&["one"]).saved(&["a:1"]));
    // The second header is behind the first's content of one block; the changed byte is one of its name.
    for at in [1024, 1024 + 100] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        let error = line(Place::new().archive("docker-archive", &damaged));
        assert!(
            error.contains("is damaged: there is no tar header"),
            "{error}"
        );
    }
}

#[test]
fn members_of_other_kinds_are_passed_over() {
    let made = image(&["one"]);
    let saved = archive(&made.saved(&["a:1"]));
    let mut header = tar::Header::new_gnu();
    header.set_path("x").unwrap();
    // A link has no data, whatever size its header has.
    header.set_entry_type(EntryType::Link);
    header.set_link_name("y").unwrap();
    header.set_size(1000);
    header.set_cksum();
    let link = header.as_bytes().to_vec();
    // The map of a file's holes may go on in a block that looks like an archive's end.
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(4096);
    gnu.set_is_extended(true);
    header.set_cksum();
    let sparse = [&header.as_bytes()[..], &[0; 512]].concat();
    header = tar::Header::new_gnu();
    header.set_path("x").unwrap();
    header.set_entry_type(EntryType::new(b'V'));
    header.set_size(3);
    header.set_cksum();
    let volume = [&header.as_bytes()[..], &[b'x'; 512]].concat();
    for other in [link, sparse, volume] {
        let both = [other, saved.clone()].concat();
        let image = Place::new().archive("docker-archive", &both);
        check(&image.unwrap(), &made);
    }
}

#[test]
fn a_member_after_a_single_block_of_zeros_is_refused() {
    let saved = archive(&image(&["one"]).saved(&["a:1"]));
    let end = saved.len() - 1024;
    let again = [&saved[..end + 512], &saved].concat();
    let error = line(Place::new().archive("docker-archive", &again));
    let said = format!("is damaged: there is no tar header at byte {end}");
    assert!(error.ends_with(&said), "{error}");
}

#[test]
fn files_that_are_not_archives_are_refused() {
    let place = Place::new();
    for (content, needle) in [
        (b"".to_vec(), "is empty"),
        (b"hello".to_vec(), "is not a tar archive"),
        (vec![b'x'; 5000], "is not a tar archive"),
        (b"\x28\xb5\x2f\xfd....".to_vec(), "cannot read "),
        (
            b"LZIP\x01....".to_vec(),
            "compressed with lzip: decompress it first",
        ),
    ] {
        let error = line(place.archive("docker-archive", &content));
        assert!(error.contains(needle), "{error}");
    }
}

#[test]
fn an_archive_of_long_names_is_refused() {
    let member = |name: &str| {
        let long = [name.as_bytes(), b"\0"].concat();
        let mut members = tar(&[
            ("././@LongLink", EntryType::GNULongName, "", &long),
            ("x", EntryType::Regular, "", b""),
        ]);
        members.truncate(members.len() - 1024);
        members
    };
    let open = |content: &[u8]| line(Place::new().archive("docker-archive", content));
    let error = open(&member(&"x".repeat(4096)));
    assert!(error.contains("has no index.json"), "{error}");
    let error = open(&member(&"x".repeat(4097)));
    assert!(error.contains("a name in"), "{error}");
    let link = tar(&[
        ("././@LongLink", EntryType::GNULongLink, "", &[b'x'; 60_000]),
        ("x", EntryType::Symlink, "", b""),
    ]);
    assert!(open(&link).contains("a name in"));
    let many = (0..9000).flat_map(|n| member(&format!("{n:04000}")));
    let error = open(&gzip(&many.collect::<Vec<_>>()));
    assert!(error.contains("all names in"), "{error}");
}

#[test]
fn names_that_lead_out_of_an_archive_are_not_followed() {
    let made = image(&["one"]);
    let config = format!("{}.json", Digest::of(&made.config).hex());
    for name in [
        "/etc/hostname",
        "../../../../etc/hostname",
        "a/../../etc/hostname",
        ".",
        "",
        "/",
    ] {
        let list = to_vec(&json!([{"Config": config, "RepoTags": [], "Layers": [name]}]));
        let archive = tar(&[
            (name, EntryType::Regular, "", b"inside"),
            ("link", EntryType::Symlink, "/etc/hostname", b""),
            ("manifest.json", EntryType::Regular, "", &list),
            (&config, EntryType::Regular, "", &made.config),
        ]);
        let error = line(Place::new().archive("docker-archive", &archive));
        assert!(error.contains("it is incomplete, save it again"), "{error}");
    }
    // Links that lead round, out, or nowhere.
    for target in ["link", "/etc/hostname", "../../etc/hostname", "absent"] {
        let list = to_vec(&json!([{"Config": config, "RepoTags": [], "Layers": ["link"]}]));
        let archive = tar(&[
            ("link", EntryType::Symlink, target, b""),
            ("manifest.json", EntryType::Regular, "", &list),
            (&config, EntryType::Regular, "", &made.config),
        ]);
        let error = line(Place::new().archive("docker-archive", &archive));
        assert!(error.contains("has no link: it is incomplete"), "{error}");
    }
}

#[test]
fn a_pipe_in_a_layout_is_refused_at_once() {
    let place = Place::new();
    let made = image(&["one"]);
    write_folder(&made.layout("1"), &place.path("layout"));
    let layer = place
        .path("layout/blobs/sha256")
        .join(Digest::of(&made.layers[0]).hex());
    fs::remove_file(&layer).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &layer, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = place.open("oci:%/layout").unwrap_err();
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("not a regular file")
    );
}

fn open_bytes(content: &[u8], folder: &Path) -> Result<Image, Error> {
    let opened = open_stream(content, "standard input", &Store::new(folder), &options());
    opened.map(|described| described.image)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(stress::count(64, 4096)))]

    #[test]
    fn no_archive_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let folder = tempfile::tempdir().unwrap();
        let mut content = archive(&image(&["one"]).saved(&["a:1"]));
        for (at, byte) in changes {
            let at = at.index(content.len());
            content[at] = byte;
        }
        if let Err(error) = open_bytes(&content, folder.path()) {
            prop_assert!(!error.to_string().chars().any(char::is_control));
        }
    }
}

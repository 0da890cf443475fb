//! Images that are wrong: each is refused in one line that names it and says why, and nothing of it stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minivm_tests::program::{Ended, run};
use tempfile::TempDir;

use crate::initramfs;
use crate::made::{add_layer, configure, images, noise};
use crate::tape::{Tape, mode};
use crate::tools::{Minivm, PATIENCE, files, folder, hex, tool};

/// minivm's own error.
pub(crate) const ERROR: i32 = 125;
/// Wrong usage.
const USAGE: i32 = 2;

/// Checks that it ended with minivm's own error, in one line that has all the `parts` in it.
#[track_caller]
pub(crate) fn assert_refused(what: &str, ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(ERROR), "{what}: {ended:?}");
    assert_eq!(ended.text(), "", "{what}");
    let line = ended.stderr.strip_suffix('\n').unwrap_or_default();
    assert!(line.starts_with("minivm: "), "{what}: {ended:?}");
    assert!(!line.contains('\n'), "{what}: {ended:?}");
    for part in parts {
        assert!(line.contains(part), "{what}: no {part:?} in {line}");
    }
    for trace in ["panicked", "backtrace"] {
        assert!(!line.contains(trace), "{what}: {line}");
    }
}

/// Builds what can't be built: nothing comes of it, and the cache stays good.
#[track_caller]
fn assert_build_refused(minivm: &Minivm, what: &str, image: &str, parts: &[&str]) {
    let output = folder();
    let mut command = minivm.building(image, &[], &output.path().join("built"));
    assert_refused(what, &run(&mut command, PATIENCE), parts);
    assert_eq!(files(output.path()), [], "{what}: something is left");
    minivm.assert_sound(what);
}

/// An image in a layout of its own, to be spoiled.
struct Spoiled {
    folder: TempDir,
}

impl Spoiled {
    /// With one layer of these bytes.
    fn of_layer(layer: &[u8]) -> Self {
        let spoiled = Spoiled { folder: folder() };
        let layout = spoiled.layout();
        let layout = layout.to_str().unwrap();
        tool(&["umoci", "init", "--layout", layout]);
        let image = format!("{layout}:x");
        tool(&["umoci", "new", "--image", &image]);
        let file = spoiled.folder.path().join("layer.tar");
        fs::write(&file, layer).unwrap();
        add_layer(&image, &file);
        configure(&image, &["--config.entrypoint=/file"]);
        spoiled
    }

    fn sound() -> Self {
        let mut layer = Tape::new();
        layer.file("file", mode(0o755), &noise(100_000, 3));
        Spoiled::of_layer(&layer.bytes())
    }

    fn layout(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    fn image(&self) -> String {
        format!("oci:{}:x", self.layout().display())
    }

    fn manifest(&self) -> serde_json::Value {
        let read = |path: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        };
        let index = read(&self.layout().join("index.json"));
        let all = index["manifests"].as_array().unwrap();
        read(&self.blob(all.last().unwrap()["digest"].as_str().unwrap()))
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.layout().join("blobs").join(digest.replace(':', "/"))
    }

    fn layer_digest(&self) -> String {
        self.manifest()["layers"][0]["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn change(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.blob(digest);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn what_is_not_there_is_named() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let layout = images.layout().display().to_string();
    let nowhere = folder.path().join("nowhere").display().to_string();
    let saved = folder.path().join("saved.tar").display().to_string();
    let (from, to) = (
        images.oci("random"),
        format!("docker-archive:{saved}:local/random:1"),
    );
    tool(&["skopeo", "--insecure-policy", "copy", "--quiet", &from, &to]);
    let engine_socket = format!("unix://{nowhere}");
    let absent = "No such file or directory";
    let rows: [(&str, String, &[&str]); 9] = [
        (
            "archive",
            format!("docker-archive:{nowhere}"),
            &[&nowhere, absent],
        ),
        (
            "OCI archive",
            format!("oci-archive:{nowhere}"),
            &[&nowhere, absent],
        ),
        ("layout", format!("oci:{nowhere}"), &[&nowhere]),
        ("folder", format!("dir:{nowhere}"), &[&nowhere, absent]),
        ("tar", format!("tar:{nowhere}"), &[&nowhere, absent]),
        (
            "tag",
            format!("oci:{layout}:none"),
            &[&layout, "no image none", "difficult"],
        ),
        (
            "name",
            format!("docker-archive:{saved}:local/none:1"),
            &[&saved, "local/none:1", "local/random:1"],
        ),
        (
            "no archive",
            format!("docker-archive:{}", env!("CARGO_MANIFEST_DIR")),
            &[env!("CARGO_MANIFEST_DIR")],
        ),
        (
            "registry",
            "127.0.0.1:9/none:1".into(),
            &["127.0.0.1:9", "Connection refused"],
        ),
    ];
    for (what, image, parts) in rows {
        assert_build_refused(&minivm, what, &image, parts);
    }
    let output = folder.path().join("built");
    let mut command = minivm.building("docker-daemon:none", &[], &output);
    let ended = run(command.env("DOCKER_HOST", engine_socket), PATIENCE);
    assert_refused(
        "no engine",
        &ended,
        &["none", "neither Docker nor Podman answers"],
    );
    assert_build_refused(
        &minivm,
        "the empty stdin",
        "-",
        &["standard input is empty"],
    );
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let minivm = Minivm::new();
    for (words, part) in [
        (&["build", "dir:/"][..], "--output"),
        (&["build", "podman:x", "-o", "x"], "docker-daemon:NAME"),
        (&["build", "UPPER", "-o", "x"], "names no image"),
        (&["build", "oci:", "-o", "x"], "path is missing"),
        (&["build", "dir:/", "-o", "x", "--compression", "xz"], "lz4"),
        (&["run"], "IMAGE"),
    ] {
        let ended = run(minivm.command().args(words), PATIENCE);
        assert_eq!(ended.code, Some(USAGE), "{words:?}: {ended:?}");
        assert!(ended.stderr.contains(part), "{words:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{words:?}");
    }
}

#[test]
fn damaged_content_is_found_out() {
    let minivm = Minivm::new();
    let cut = Spoiled::sound();
    let layer = cut.layer_digest();
    cut.change(&layer, |bytes| bytes.truncate(bytes.len() / 2));
    assert_build_refused(&minivm, "a truncated layer", &cut.image(), &[&layer]);

    // A byte of what is stored as it is: gzip's own check finds it, or ours.
    let flipped = Spoiled::sound();
    let layer = flipped.layer_digest();
    flipped.change(&layer, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    assert_build_refused(&minivm, "a flipped byte", &flipped.image(), &[&layer]);

    // Another sound layer in its place.
    let swapped = Spoiled::sound();
    let layer = swapped.layer_digest();
    let mut other = Tape::new();
    other.file("file", mode(0o755), b"another");
    swapped.change(&layer, |bytes| *bytes = other.bytes());
    assert_build_refused(&minivm, "another layer", &swapped.image(), &[&layer]);

    // A layer of the right size that only its own digest tells from the right one.
    let mut layer = Tape::new();
    layer.file("file", mode(0o755), b"right");
    let right = layer.bytes();
    let mut wrong = right.clone();
    wrong[512] ^= 1;
    let folder = folder();
    let path = folder.path().join("saved.tar");
    let expected = format!("sha256:{}", hex(&right));
    fs::write(&path, saved(&config_of(&expected), &wrong)).unwrap();
    let image = format!("docker-archive:{}", path.display());
    let actual = format!("digest sha256:{}", hex(&wrong));
    assert_build_refused(
        &minivm,
        "digest",
        &image,
        &["layer.tar", &expected, &actual],
    );
    fs::write(&path, saved(&config_of(&expected), &right)).unwrap();
    minivm.build(&image);

    let other_config = Spoiled::sound();
    let config = other_config.manifest()["config"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    other_config.change(&config, |bytes| bytes[0] = b'!');
    let layout = other_config.layout().display().to_string();
    let parts = [&layout, &config[7..], "damaged or changed"];
    assert_build_refused(&minivm, "config", &other_config.image(), &parts);

    let no_layer = Spoiled::sound();
    let layer = no_layer.layer_digest();
    fs::remove_file(no_layer.blob(&layer)).unwrap();
    assert_build_refused(&minivm, "no layer", &no_layer.image(), &[&layer[7..]]);
}

/// What `docker save` would write of an image with this configuration and this layer.
fn saved(config: &str, layer: &[u8]) -> Vec<u8> {
    let mut archive = Tape::new();
    archive.file("config.json", mode(0o644), config.as_bytes());
    archive.file("layer.tar", mode(0o644), layer);
    let manifest = r#"[{"Config":"config.json","RepoTags":["local/x:1"],"Layers":["layer.tar"]}]"#;
    archive.file("manifest.json", mode(0o644), manifest.as_bytes());
    archive.bytes()
}

/// A configuration that names one layer.
fn config_of(layer: &str) -> String {
    format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#)
}

#[test]
fn a_configuration_that_is_no_json_is_named() {
    let folder = folder();
    let path = folder.path().join("saved.tar");
    fs::write(&path, saved("no json", &[])).unwrap();
    let path = path.display().to_string();
    let image = format!("docker-archive:{path}");
    let parts = ["cannot understand the configuration", &path, "expected"];
    assert_build_refused(&Minivm::new(), "config", &image, &parts);
}

#[test]
fn a_layer_writes_nothing_outside() {
    let minivm = Minivm::new();
    let outside = folder();
    let mut upwards = Tape::new();
    upwards.named(b"../../../../../../../../tmp/minivm-evil");
    let mut between = Tape::new();
    between.named(b"a/../../evil");
    let mut absent = Tape::new();
    absent.hard_link("link", "never/was", mode(0o644));
    let mut reserved = Tape::new();
    reserved.file(".minivm/manifest", mode(0o644), b"ours");
    let mut through_file = Tape::new();
    through_file.file("a", mode(0o644), b"");
    through_file.file("a/b", mode(0o644), b"");
    for (what, layer, parts) in [
        ("upwards", upwards, &["minivm-evil", "has a .. in it"][..]),
        (
            "upwards between",
            between,
            &["a/../../evil", "has a .. in it"],
        ),
        ("a link to nothing", absent, &["\"link\"", "never/was"]),
        ("a name of ours", reserved, &[".minivm", "reserved"]),
        ("below a file", through_file, &["\"a/b\"", "\"a\""]),
    ] {
        let spoiled = Spoiled::of_layer(&layer.bytes());
        let digest = spoiled.layer_digest();
        assert_build_refused(
            &minivm,
            what,
            &spoiled.image(),
            &[&[&*digest], parts].concat(),
        );
    }

    // These stay inside.
    let mut layer = Tape::new();
    layer.named(b"//absolute");
    let target = format!("../../../../../..{}", outside.path().display());
    layer.symlink("leads-outside", &target);
    layer.file("leads-outside/file", mode(0o644), b"evil");
    let inside = Spoiled::of_layer(&layer.bytes());
    let (found, _) = initramfs::read(&minivm.build(&inside.image()));
    assert!(found.contains_key(&b"absolute"[..]));
    let landed = format!("{}/file", outside.path().display());
    assert!(
        found.contains_key(&landed.as_bytes()[1..]),
        "{:?}",
        found.keys()
    );
    assert_eq!(files(outside.path()), []);
}

/// Zeros that take a thousandth of their size in gzip.
fn zeros(len: usize) -> Vec<u8> {
    gzip(&vec![0; len])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, bytes).unwrap();
    tool(&["gzip", path.to_str().unwrap()]);
    fs::read(path.with_extension("gz")).unwrap()
}

#[test]
fn a_bomb_is_stopped() {
    // Some megabytes of gzip that are 24 GiB of zeros behind the archive's end; gzip's parts can stand in a row.
    let mut layer = Tape::new();
    layer.file("file", mode(0o755), b"x");
    let part = zeros(64 << 20);
    let bomb = [gzip(&layer.bytes()), part.repeat(24 << 4)].concat();
    let digest = format!("sha256:{}", hex(&bomb));
    let (minivm, folder, output) = (Minivm::new(), folder(), folder());
    let path = folder.path().join("bomb.tar");
    fs::write(&path, saved(&config_of(&digest), &bomb)).unwrap();
    // Its memory is counted too: all that it may have is a quarter of a gigabyte.
    let mut limited = Command::new("prlimit");
    limited.args(["--data=268435456", "--"]);
    let image = format!("docker-archive:{}", path.display());
    let building = minivm.building(&image, &[], &output.path().join("built"));
    limited
        .arg(building.get_program())
        .args(building.get_args());
    limited.envs(
        building
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let ended = run(&mut limited, PATIENCE);
    assert_refused(
        "a bomb",
        &ended,
        &["layer.tar of", "17179869184 bytes, the limit"],
    );
    assert_eq!(files(output.path()), []);
}

//! An image is the same wherever it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use minivm_guest::manifest::{Manifest, Xattr};
use minivm_tests::program::{Program, run};

use crate::initramfs;
use crate::made::{CAPABILITY, Images, images};
use crate::tools::{Engine, Minivm, PATIENCE, Registry, assert_built, folder, tool};

/// What `docker create` puts into a container whose image lacks it.
const DOCKERS: [&[u8]; 5] = [
    b".dockerenv",
    b"etc/hostname",
    b"etc/hosts",
    b"etc/mtab",
    b"etc/resolv.conf",
];

fn skopeo(from: &str, to: &str) {
    tool(&["skopeo", "--insecure-policy", "copy", "--quiet", from, to]);
}

#[track_caller]
fn assert_same(what: &str, one: &[u8], other: &[u8]) {
    assert!(one == other, "{what}: other bytes");
}

/// The files as `umoci` unpacks them.
pub(crate) fn unpacked(images: &Images, tag: &str, to: &std::path::Path) {
    let image = format!("{}:{tag}", images.layout().display());
    tool(&[
        "umoci",
        "raw",
        "unpack",
        "--image",
        &image,
        to.to_str().unwrap(),
    ]);
}

#[test]
fn every_file_and_registry_gives_the_same_bytes_and_so_does_a_second_time() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let registry = Registry::start();
    for tag in ["python", "difficult"] {
        let plain = minivm.build(&images.oci(tag));
        assert!(plain.len() > 10 << 20);
        assert_same("once more", &minivm.build(&images.oci(tag)), &plain);

        let at = |kind: &str| folder.path().join(format!("{tag}.{kind}"));
        let archive = format!("oci-archive:{}:{tag}", at("oci").display());
        skopeo(&images.oci(tag), &archive);
        assert_same("oci-archive", &minivm.build(&archive), &plain);

        let saved = format!("docker-archive:{}", at("docker").display());
        skopeo(&images.oci(tag), &format!("{saved}:local/{tag}:1"));
        assert_same("docker-archive", &minivm.build(&saved), &plain);
        let named = format!("{saved}:local/{tag}:1");
        assert_same("by its name", &minivm.build(&named), &plain);

        tool(&["gzip", "-1k", at("docker").to_str().unwrap()]);
        let zipped = fs::read(at("docker.gz")).unwrap();
        for bytes in [&zipped, &fs::read(at("docker")).unwrap()] {
            let output = folder.path().join("from-stdin");
            let mut program = Program::start(&mut minivm.building("-", &[], &output));
            program.write(bytes).unwrap();
            program.stdin = None;
            assert_built("-", &program.end(PATIENCE));
            assert_same("stdin", &fs::read(output).unwrap(), &plain);
        }

        let pushed = registry.push(&images.oci(tag), &format!("local/{tag}:1"));
        assert_same("registry", &minivm.build(&pushed), &plain);
        // A second machine's cache, and then without the registry.
        let other = Minivm::new();
        assert_same("new cache", &other.build(&pushed), &plain);
        let kept = other.build_as(&pushed, &["--pull", "never"]);
        assert_same("kept", &kept, &plain);
        other.assert_sound("after a pull");
    }
}

#[test]
fn an_engine_gives_the_same_bytes_and_its_export_and_a_folder_the_same_files() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let engine = Engine::start();
    let host = engine.host();
    for tag in ["python", "loadable"] {
        let plain = minivm.build(&images.oci(tag));
        let (expected, manifest) = initramfs::read(&plain);
        let name = format!("local/{tag}:1");
        engine.load(&images.oci(tag), &name);
        let output = folder.path().join("built");
        let image = format!("docker-daemon:{name}");
        let mut command = minivm.building(&image, &[], &output);
        assert_built(&image, &run(command.env("DOCKER_HOST", &host), PATIENCE));
        assert_same("docker-daemon", &fs::read(&output).unwrap(), &plain);

        let tar = folder.path().join(format!("{tag}.tar"));
        fs::write(&tar, engine.export(&name)).unwrap();
        let built = minivm.build(&format!("tar:{}", tar.display()));
        let (mut exported, exported_manifest) = initramfs::read(&built);
        exported.retain(|name, _| {
            let dockers = DOCKERS.contains(&&**name) || name.starts_with(b"dev/");
            !dockers || expected.contains_key(name)
        });
        let mut without = expected.clone();
        for (name, file) in &exported {
            // Docker mounts its own over them, and exports what is below its mounts: nothing.
            if DOCKERS.contains(&&**name) {
                without.insert(name.clone(), file.clone());
            }
        }
        assert_files("tar", &exported, &without);
        // Docker takes the capabilities of a file away when a later layer links it.
        let capable = |manifest: &Manifest, name: &[u8]| {
            let mut all = manifest.xattrs.iter();
            all.any(|xattr| xattr.path == name && xattr.value == CAPABILITY)
        };
        let difficult = tag != "python";
        let exported = capable(&exported_manifest, b"hard/capable-alone");
        assert_eq!(exported, difficult);
        assert_eq!(capable(&manifest, b"hard/capable"), difficult);

        let root = folder.path().join(format!("{tag}-root"));
        unpacked(images, tag, &root);
        let (found, folder_manifest) =
            initramfs::read(&minivm.build(&format!("dir:{}", root.display())));
        assert_files("dir", &found, &expected);
        // Of a folder, each name of a file has that file's attributes.
        let attributes = |manifest: &Manifest| {
            let all = manifest.xattrs.iter().cloned();
            let of_file = |xattr: Xattr| {
                let path = expected[&xattr.path].same.clone();
                (path, xattr.name, xattr.value)
            };
            all.map(of_file).collect::<BTreeSet<_>>()
        };
        assert_eq!(attributes(&folder_manifest), attributes(&manifest));
    }
    let output = folder.path().join("none");
    let mut command = minivm.building("docker-daemon:local/none:1", &[], &output);
    let ended = run(command.env("DOCKER_HOST", &host), PATIENCE);
    let parts = [
        "the container engine has no image local/none:1",
        "docker pull",
    ];
    crate::bad::assert_refused("no such name in the engine", &ended, &parts);
}

type Files = BTreeMap<Vec<u8>, initramfs::File>;

#[track_caller]
fn assert_files(what: &str, found: &Files, expected: &Files) {
    for (name, file) in found {
        let name_text = name.escape_ascii();
        assert_eq!(Some(file), expected.get(name), "{what}: {name_text}");
    }
    for name in expected.keys() {
        let there = found.contains_key(name);
        assert!(there, "{what}: {} is missing", name.escape_ascii());
    }
}

#[test]
fn compressed_archives_hold_the_plain_one() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let image = images.oci("python");
    let plain = minivm.build(&image);
    for (how, tool) in [("lz4", "lz4"), ("zstd", "zstd"), ("gzip", "gzip")] {
        let built = minivm.build_as(&image, &["--compression", how]);
        assert!(built.len() < plain.len() * 3 / 4, "{how}: {}", built.len());
        assert_same(
            how,
            &minivm.build_as(&image, &["--compression", how]),
            &built,
        );
        let file = folder.path().join(how);
        fs::write(&file, built).unwrap();
        let ended = run(Command::new(tool).arg("-dc").arg(&file), PATIENCE);
        assert_eq!(ended.code, Some(0), "{how}: {}", ended.stderr);
        assert_same(how, &ended.stdout, &plain);
    }
}

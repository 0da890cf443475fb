//! Saved images: skopeo, a Docker engine and minivm itself read them, and find the image that was saved.

use std::fs;
use std::path::Path;
use std::process::Command;

use minivm_tests::program::{Program, run};
use serde_json::Value;

use crate::bad::assert_refused;
use crate::made::images;
use crate::tools::{Engine, Minivm, PATIENCE, Registry, assert_built, files, folder, hex, tool};

/// The command that saves.
fn saving(minivm: &Minivm, image: &str, output: &Path) -> Command {
    let mut command = minivm.command();
    command.args(["save", image, "-o"]).arg(output);
    command
}

fn save(minivm: &Minivm, image: &str, output: &Path) -> Vec<u8> {
    assert_built(image, &run(&mut saving(minivm, image, output), PATIENCE));
    fs::read(output).unwrap()
}

fn skopeo(words: &[&str]) -> String {
    tool(&[&["skopeo", "--insecure-policy"], words].concat())
}

/// The digest of the configuration that skopeo finds in an archive.
fn config_of(archive: &str) -> String {
    let manifest = skopeo(&["inspect", "--raw", archive]);
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_saved_image_of_a_registry_keeps_its_digests_and_skopeo_copies_it() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let registry = Registry::start();
    for tag in ["random", "difficult"] {
        let image = registry.push(&images.oci(tag), &format!("local/{tag}:1"));
        let path = folder.path().join(tag);
        let bytes = save(&minivm, &image, &path);
        let archive = format!("oci-archive:{}:1", path.display());
        let remote = ["inspect", "--raw", "--tls-verify=false"];
        let remote = skopeo(&[&remote[..], &[&format!("docker://{image}")]].concat());
        assert_eq!(skopeo(&["inspect", "--raw", &archive]), remote, "{tag}");
        assert!(
            skopeo(&["inspect", &archive]).contains("\"Layers\""),
            "{tag}"
        );

        let copy = folder.path().join(format!("{tag}.copy"));
        let to = format!("dir:{}", copy.display());
        skopeo(&["copy", "--quiet", &archive, &to]);
        let manifest = fs::read(copy.join("manifest.json")).unwrap();
        assert_eq!(hex(&manifest), hex(remote.as_bytes()), "{tag}");
        let blobs = files(&copy).into_iter();
        let blobs = blobs.filter(|(name, _)| name.len() == 64);
        for (name, blob) in blobs {
            assert_eq!(hex(&fs::read(blob).unwrap()), name, "{tag}");
        }

        // Its other face is that of `docker save`.
        let docker = format!("docker-archive:{}:{image}", path.display());
        let other = format!("oci:{}:{tag}", folder.path().join("other").display());
        skopeo(&["copy", "--quiet", &docker, &other]);
        assert_eq!(config_of(&docker), config_of(&archive), "{tag}");

        let plain = minivm.build(&images.oci(tag));
        for source in [&archive, &docker, &other] {
            assert!(minivm.build(source) == plain, "{source}: other bytes");
        }
        let others = Minivm::new();
        let again = folder.path().join("again");
        assert!(
            save(&others, &image, &again) == bytes,
            "{tag}: a second cache"
        );
        let piped = run(
            &mut saving(&minivm, &image, Path::new("/dev/stdout")),
            PATIENCE,
        );
        assert_eq!((piped.code, &*piped.stderr), (Some(0), ""));
        assert!(piped.stdout == bytes, "{tag}: through a pipe");
        // A file that is there is replaced by the whole one.
        assert!(save(&minivm, &archive, &path).len() == bytes.len());
    }
}

#[test]
fn an_engine_loads_a_saved_image_under_its_name_and_what_it_has_is_saved() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let (registry, engine) = (Registry::start(), Engine::start());
    for tag in ["random", "loadable"] {
        let image = registry.push(&images.oci(tag), &format!("local/{tag}:1"));
        let path = folder.path().join(tag);
        let bytes = save(&minivm, &image, &path);
        let id = config_of(&format!("oci-archive:{}", path.display()));
        engine.load_archive(&bytes);
        assert_eq!(engine.id(&image), id, "{tag}");

        let back = folder.path().join("back");
        let mut command = saving(&minivm, &format!("docker-daemon:{image}"), &back);
        let ended = run(command.env("DOCKER_HOST", engine.host()), PATIENCE);
        assert_built(tag, &ended);
        assert_eq!(config_of(&format!("oci-archive:{}", back.display())), id);
        let plain = minivm.build(&images.oci(tag));
        let source = format!("docker-archive:{}:{image}", back.display());
        assert!(minivm.build(&source) == plain, "{tag}: other bytes");

        // A stream of `docker save`'s becomes the same archive but for its name.
        let list = minivm
            .command()
            .args(["images", "--json"])
            .output()
            .unwrap();
        let list: Value = serde_json::from_slice(&list.stdout).unwrap();
        let is_engines = |row: &&Value| row["id"] == id.as_str() && row["digests"][0].is_null();
        assert!(
            list.as_array().unwrap().iter().any(|row| is_engines(&row)),
            "{list}"
        );
        let saved = files(&minivm.cache.path().join("minivm/images/engine"));
        let (_, saved) = saved
            .into_iter()
            .find(|(name, _)| id.ends_with(name))
            .unwrap();
        let streamed = folder.path().join("streamed");
        let mut program = Program::start(&mut saving(&minivm, "-", &streamed));
        program.write(&fs::read(saved).unwrap()).unwrap();
        program.stdin = None;
        assert_built("-", &program.end(PATIENCE));
        let oci = |path: &Path| {
            skopeo(&[
                "inspect",
                "--raw",
                &format!("oci-archive:{}", path.display()),
            ])
        };
        assert_eq!(oci(&streamed), oci(&back), "{tag}");
    }
}

#[test]
fn nothing_comes_of_a_damaged_image() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let layout = folder.path().join("layout");
    let image = format!("oci:{}:random", layout.display());
    skopeo(&["copy", "--quiet", &images.oci("random"), &image]);
    let output = folder.path().join("saved");
    fs::write(&output, "what was there").unwrap();
    let mut blobs = files(&layout.join("blobs/sha256"));
    blobs.sort_by_key(|(_, path)| fs::metadata(path).unwrap().len());
    let (name, layer) = blobs.pop().unwrap();
    let mut bytes = fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, bytes).unwrap();
    let ended = run(&mut saving(&minivm, &image, &output), PATIENCE);
    assert_refused("another layer", &ended, &[&name, "instead of"]);
    assert_eq!(fs::read(&output).unwrap(), b"what was there");
    assert_eq!(files(folder.path()).len(), 2);
    let ended = run(&mut saving(&minivm, "dir:/etc", &output), PATIENCE);
    assert_refused("a folder", &ended, &["dir:/etc", "tar:FILE"]);
    let ended = run(
        &mut saving(&minivm, &image, Path::new("/dev/full")),
        PATIENCE,
    );
    assert_refused("no room", &ended, &["/dev/full", "No space left"]);
}

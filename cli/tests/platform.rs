//! The platforms of images: `build --platform` takes the files and the init for the guests that are asked for.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use minivm_image::Platform;
use minivm_machine::images::Init;
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, run};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A folder for an OCI layout and what is made of it.
struct Place(TempDir);

impl Place {
    /// A layout of one image for these architectures. The one file of each names its architecture.
    fn with(architectures: &[&str]) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir_all(place.path("layout/blobs/sha256")).unwrap();
        let manifests: Vec<Value> = architectures
            .iter()
            .map(|architecture| place.add_image(architecture))
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(place.path("layout/index.json"), index.to_string()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Adds an image; returns its entry of an index.
    fn add_image(&self, architecture: &str) -> Value {
        let content = content(architecture);
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        layer
            .append_data(&mut header, "file", content.as_bytes())
            .unwrap();
        let layer = self.add(
            "application/vnd.oci.image.layer.v1.tar",
            &layer.into_inner().unwrap(),
        );
        let config = json!({"os": "linux", "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
        let config = self.add(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let mut entry = self.add(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    }

    /// Adds content; returns its descriptor.
    fn add(&self, kind: &str, content: &[u8]) -> Value {
        let digest: String = Sha256::digest(content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(self.path("layout/blobs/sha256").join(&digest), content).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len()})
    }

    /// Builds for a platform, to the file `built`.
    fn build(&self, platform: &str) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command.current_dir(self.0.path());
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command.args([
            "build",
            "-q",
            "oci:layout",
            "-o",
            "built",
            "--platform",
            platform,
        ]);
        run(&mut command, PATIENCE)
    }
}

/// Returns the content of the image's file.
fn content(architecture: &str) -> String {
    format!("the file of {architecture}")
}

/// Returns whether bytes are somewhere in others.
fn has(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

#[test]
fn an_initramfs_has_the_files_and_the_init_of_the_platform_that_is_asked_for() {
    let names = ["amd64", "arm64"];
    let place = Place::with(&names);
    let mut built = 0;
    for name in names {
        let platform: Platform = name.parse().unwrap();
        let ended = place.build(&platform.to_string());
        let Ok(init) = Init::of(&platform) else {
            let parts = ["no init for", &platform.to_string(), "rustup target add"];
            ended.assert_refused(name, &parts);
            assert!(!place.path("built").exists());
            continue;
        };
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let archive = fs::read(place.path("built")).unwrap();
        assert!(has(&archive, init.program), "{name}");
        for other in names {
            let found = has(&archive, content(other).as_bytes());
            assert_eq!(found, other == name, "{name}: the file of {other}");
        }
        fs::remove_file(place.path("built")).unwrap();
        built += 1;
    }
    assert!(built > 0, "this minivm has an init for its own guests");
}

#[test]
fn a_platform_that_an_image_is_not_for_is_refused_with_those_that_it_is_for() {
    let other = match Platform::here().architecture.as_str() {
        "amd64" => "arm64",
        _ => "amd64",
    };
    let place = Place::with(&[other, "s390x"]);
    let here = Platform::here().to_string();
    let refused = format!("is not for {here}; it is for linux/");
    let ended = place.build(&here);
    ended.assert_refused("no such variant", &[&refused, other, "linux/s390x"]);
    assert!(!place.path("built").exists());
}

#[test]
fn a_platform_without_guests_is_wrong_usage() {
    let ended = Place::with(&["amd64"]).build("linux/s390x");
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended.stderr.contains("linux/amd64 and linux/arm64"),
        "{ended:?}"
    );
}

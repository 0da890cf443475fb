//! Small images: a root file system of busybox, and an archive of one.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::given;

/// The architecture that this is compiled for, as images' configurations have it.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// Makes a root file system in a folder that is not there yet, with these of busybox's programs.
///
/// # Panics
///
/// Where busybox isn't installed, or the folder can't be written to.
pub fn make_root(root: &Path, applets: &str) {
    for folder in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy(given::busybox(), root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in applets.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// Writes what `docker save` would write of an image of this root with this configuration, an object of JSON, into a folder;
/// returns the name by which it is run.
///
/// # Panics
///
/// Where it can't be written.
pub fn save_image(root: &Path, config: &str, folder: &Path) -> String {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).unwrap();
    let layer = folder.join("layer.tar");
    tar(root, &layer, &["."]);
    let sum = Command::new(given::busybox())
        .arg("sha256sum")
        .arg(&layer)
        .output();
    let sum = String::from_utf8(sum.unwrap().stdout).unwrap();
    let config = format!(
        r#"{{"architecture": "{ARCHITECTURE}", "os": "linux", "config": {config},
            "rootfs": {{"type": "layers", "diff_ids": ["sha256:{}"]}}}}"#,
        &sum[..64]
    );
    fs::write(folder.join("config.json"), config).unwrap();
    let manifest =
        r#"[{"Config": "config.json", "RepoTags": ["test:1"], "Layers": ["layer.tar"]}]"#;
    fs::write(folder.join("manifest.json"), manifest).unwrap();
    let archive = folder.join("saved.tar");
    tar(
        folder,
        &archive,
        &["manifest.json", "config.json", "layer.tar"],
    );
    format!("docker-archive:{}", archive.display())
}

fn tar(folder: &Path, archive: &Path, names: &[&str]) {
    let mut tar = Command::new(given::busybox());
    tar.arg("tar").arg("-C").arg(folder).arg("-cf").arg(archive);
    assert!(tar.args(names).status().unwrap().success());
}

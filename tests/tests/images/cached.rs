//! The cache's images: listed by the names that they have in registries, and removed one by one.

use std::fs;
use std::process::Command;

use minivm_tests::program::{Ended, run};
use serde_json::Value;

use crate::bad::{ERROR, assert_refused};
use crate::made::images;
use crate::tools::{Minivm, PATIENCE, Registry, files, folder, tool};

fn minivm(minivm: &Minivm, words: &[&str]) -> Ended {
    run(minivm.command().args(words), PATIENCE)
}

/// The images, as JSON has them.
pub(crate) fn listed(minivm: &Minivm) -> Vec<Value> {
    let ended = run(minivm.command().args(["images", "--json"]), PATIENCE);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{ended:?}");
    serde_json::from_slice(&ended.stdout).unwrap()
}

/// Makes the image's archive, or EROFS image: without a kernel it ends as soon as that is there.
pub(crate) fn running(minivm: &Minivm, format: &str, image: &str) -> Command {
    let mut command = minivm.command();
    command.env("MINIVM_ROOT_FORMAT", format);
    command.args(["run", "--accel", "kvm", "--kernel", "/nowhere/vmlinux"]);
    command.arg(image);
    command
}

/// All that the cache has of images: no file but locks may be left of them.
fn left(minivm: &Minivm) -> Vec<String> {
    let cache = minivm.cache.path().join("minivm");
    let folders = [
        "images/blobs/sha256",
        "images/known",
        "images/tags",
        "images/partial",
        "initramfs",
        "erofs",
        "rootfs",
    ];
    let all = folders
        .into_iter()
        .flat_map(|name| files(&cache.join(name)));
    // That of init alone is no image's.
    let of_images = all.filter(|(name, _)| !name.starts_with("init-"));
    of_images.map(|(name, _)| name).collect()
}

#[test]
fn an_empty_cache_is_said_to_be_empty() {
    let empty = Minivm::new();
    let ended = minivm(&empty, &["images"]);
    assert_eq!((ended.code, &*ended.text()), (Some(0), ""), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("no images are cached"), "{ended:?}");
    assert_eq!(listed(&empty), [Value::Null; 0]);
    let ended = minivm(&empty, &["images", "-q"]);
    assert_eq!(
        (ended.code, &*ended.text(), &*ended.stderr),
        (Some(0), "", "")
    );
    assert_refused(
        "rmi",
        &minivm(&empty, &["rmi", "x"]),
        &["\"x\"", "`minivm images`"],
    );
    assert_eq!(files(empty.cache.path()), [], "nothing was made");
}

#[test]
fn images_are_listed_and_removed_by_name_and_by_id() {
    let (images, cache, registry) = (images(), Minivm::new(), Registry::start());
    // They share a layer: the second is the first with more.
    let [base, more] = ["python", "difficult"]
        .map(|tag| registry.push(&images.oci(tag), &format!("local/{tag}:1")));
    for (image, format) in [(&base, "initramfs"), (&more, "initramfs"), (&more, "erofs")] {
        let ended = run(&mut running(&cache, format, image), PATIENCE);
        assert_eq!(ended.code, Some(ERROR), "{ended:?}");
    }
    let rows = listed(&cache);
    assert_eq!(rows.len(), 2);
    for (row, image) in rows.iter().zip([&more, &base]) {
        assert_eq!(row["names"], serde_json::json!([image]));
        assert_eq!(row["complete"], true);
        assert!(
            row["stored"].as_u64() > Some(1 << 20) && row["initramfs"].as_u64() > Some(10 << 20),
            "{row}"
        );
        assert_eq!(row["rootfs"], 0);
        let erofs = if *image == more { 10 << 20 } else { 0 };
        assert!(row["erofs"].as_u64() >= Some(erofs), "{row}");
        let config = tool(&[
            "skopeo",
            "inspect",
            "--raw",
            "--tls-verify=false",
            &format!("docker://{image}"),
        ]);
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(row["id"], config["config"]["digest"]);
    }
    let table = minivm(&cache, &["images"]);
    assert_eq!((table.code, &*table.stderr), (Some(0), ""), "{table:?}");
    let text = table.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let ids: Vec<_> = rows
        .iter()
        .map(|row| row["id"].as_str().unwrap()[7..19].to_owned())
        .collect();
    assert!(
        lines[0].contains("NAME") && lines[1].contains(&more) && lines[1].contains(&ids[0]),
        "{text}"
    );
    let quiet = minivm(&cache, &["images", "-q"]);
    assert_eq!(quiet.text(), format!("{}\n{}\n", ids[0], ids[1]));

    // One that isn't there doesn't keep the other.
    let ended = minivm(&cache, &["rmi", "none:1", &more]);
    assert_eq!(ended.code, Some(ERROR), "{ended:?}");
    assert!(
        ended.text().starts_with(&format!("removed {more}: ")),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("\"none:1\"") && ended.stderr.lines().count() == 1,
        "{ended:?}"
    );
    cache.assert_sound("after a removal");
    let rest = listed(&cache);
    assert_eq!(rest.len(), 1);
    let without_use = |row: &Value| {
        let mut row = row.clone();
        row["used"].take();
        row
    };
    assert_eq!(
        without_use(&rest[0]),
        without_use(&rows[1]),
        "the other is as it was"
    );
    let kept = cache.build_as(&base, &["--pull", "never"]);
    assert!(kept == cache.build(&images.oci("python")));
    let ended = minivm(&cache, &["rmi", &ids[1]]);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{ended:?}");
    assert_eq!(left(&cache), [""; 0]);
    assert!(cache.build(&more) == cache.build(&images.oci("difficult")));
}

#[test]
fn whatever_lies_in_the_cache_does_not_end_the_list() {
    let (images, cache, registry) = (images(), Minivm::new(), Registry::start());
    let image = registry.push(&images.oci("random"), "local/random:1");
    cache.build(&image);
    let at = |name: &str| cache.cache.path().join("minivm").join(name);
    for place in [
        "images/tags/x",
        "images/known/x",
        "images/blobs/sha256/x",
        "initramfs/x",
        "erofs/x",
        "rootfs/x\u{1b}[2J",
    ] {
        fs::create_dir_all(at(place).parent().unwrap()).unwrap();
        fs::write(at(place), "\u{1b}[2J").unwrap();
    }
    let ended = minivm(&cache, &["images"]);
    assert_eq!(
        (ended.code, ended.stderr.lines().count()),
        (Some(0), 1),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("5 more files") && ended.stderr.contains("`minivm prune`"),
        "{ended:?}"
    );
    assert!(ended.text().contains(&image) && !ended.text().contains('\u{1b}'));
    assert_eq!(listed(&cache).len(), 1);
    // A folder of another user's program's, in place of a list of files.
    fs::remove_dir_all(at("images/known")).unwrap();
    fs::write(at("images/known"), "").unwrap();
    let rows = listed(&cache);
    assert_eq!((rows.len(), &rows[0]["complete"]), (1, &Value::Bool(false)));
}

#[test]
fn usage_is_told_of() {
    let (cache, output) = (Minivm::new(), folder());
    let output = output.path().join("x");
    for (words, part) in [
        (&["rmi"][..], "IMAGE"),
        (&["images", "--json", "-q"], "cannot be used with"),
        (&["save", "dir:/"], "--output"),
        (
            &["save", "oci:", "-o", output.to_str().unwrap()],
            "path is missing",
        ),
        (
            &["save", "x", "-o", "y", "--platform", "linux/s390x"],
            "linux/arm64",
        ),
    ] {
        let ended = minivm(&cache, words);
        assert_eq!(ended.code, Some(2), "{words:?}: {ended:?}");
        assert!(ended.stderr.contains(part), "{words:?}: {}", ended.stderr);
    }
}

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::mkdirat;

use super::*;
use crate::io_error::{HostError, cannot};

/// Makes a chain of folders, each in the one before, and hands the last one out.
fn chain(folder: &Path, name: &str, len: usize) -> OwnedFd {
    let mut here: OwnedFd = File::open(folder).unwrap().into();
    for _ in 0..len {
        mkdirat(&here, name, Mode::RWXU).unwrap();
        here = openat(&here, name, FOLDER, Mode::empty()).unwrap();
    }
    here
}

fn write(folder: &OwnedFd, name: &str, bytes: &[u8]) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = openat(folder, name, flags, Mode::RUSR).unwrap();
    assert_eq!(rustix::io::write(file, bytes).unwrap(), bytes.len());
}

#[test]
fn a_tree_goes_that_is_deeper_than_a_path_is_long_and_than_there_are_descriptors() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("tree");
    fs::create_dir(&folder).unwrap();
    write(&chain(&folder, &"n".repeat(250), 40), "file", b"1234");
    // The usual limit is 1,024.
    write(&chain(&folder, "d", 3000), "file", b"123");
    assert_eq!(size(&folder), 7);
    let removed = remove(&folder);
    assert_eq!(removed.left.len(), 0, "{:?}", removed.left);
    assert_eq!(removed.freed, 7);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_tree_goes_whose_folders_are_closed_and_links_are_not_followed() {
    let place = tempfile::tempdir().unwrap();
    let outside = place.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "x").unwrap();
    let folder = place.path().join("tree");
    let closed = folder.join("a/closed");
    fs::create_dir_all(closed.join("deeper")).unwrap();
    fs::write(closed.join("one"), "12").unwrap();
    fs::hard_link(closed.join("one"), folder.join("two")).unwrap();
    symlink(&outside, closed.join("deeper/link")).unwrap();
    symlink("/", folder.join("root")).unwrap();
    for folder in [&closed.join("deeper"), &closed, &folder] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o0)).unwrap();
    }
    let removed = remove(&folder);
    assert_eq!(removed.left.len(), 0, "{:?}", removed.left);
    assert!(!folder.exists() && outside.join("file").exists());
    // A link in the place of the folder goes, and not what it leads to.
    symlink(&outside, &folder).unwrap();
    assert_eq!(remove(&folder).left.len(), 0);
    assert!(fs::symlink_metadata(&folder).is_err() && outside.join("file").exists());
    assert_eq!(remove(&folder).left.len(), 0, "there is none");
}

#[test]
fn what_is_counted_stays_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("a/b")).unwrap();
    fs::write(place.path().join("a/b/file"), "12345").unwrap();
    let closed = fs::Permissions::from_mode(0o500);
    fs::set_permissions(place.path().join("a/b"), closed).unwrap();
    assert_eq!(size(place.path()), 5);
    let mode = fs::metadata(place.path().join("a/b")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o500);
    assert!(place.path().join("a/b/file").exists());
}

#[test]
fn not_all_reasons_are_told_of_but_all_are_counted() {
    let mut one = Cleared::default();
    for number in 0..TOLD + 3 {
        let why = io::Error::other(number.to_string());
        one.note(failed("remove", Path::new("x"))(why));
    }
    let mut both = Cleared::<HostError>::default();
    both.note(cannot("prune")(io::Error::other("first")));
    both.add(one);
    assert_eq!((both.left.len(), both.more), (TOLD, 4));
    assert_eq!(both.whole().unwrap_err().action, "prune");
}

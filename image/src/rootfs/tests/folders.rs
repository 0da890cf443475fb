//! Images that are folders of the host's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::fs::XattrFlags;

use super::*;

fn image_in(root: PathBuf) -> Image {
    Image {
        root: Root::Folder(root),
        ..image(Vec::new())
    }
}

#[test]
fn a_folder_becomes_an_archive_like_layers_do() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o711)).unwrap();
    fs::create_dir(root.join("init")).unwrap();
    fs::write(root.join("init/a"), "1").unwrap();
    fs::write(root.join("b"), "2").unwrap();
    fs::hard_link(root.join("b"), root.join("c")).unwrap();
    symlink("/etc", root.join("d")).unwrap();
    let archive = plain(&image_in(root.into())).unwrap();
    let expected = [
        ".minivm/init/",
        ".minivm/init/a: 1",
        "b: 2",
        "c = b",
        "d -> /etc",
    ];
    assert_eq!(listing(&archive), expected);
    let found = read(&archive);
    assert_eq!(found[&b"."[..]].mode, 0o040_711);
    assert_eq!(found[&b"b"[..]].uid, rustix::process::getuid().as_raw());
    assert_eq!(found[&b"init"[..]].data, b"our init");
    let summary = write(
        &image_in(root.into()),
        b"",
        Compression::None,
        &Limits::default(),
        Vec::new(),
    );
    assert_eq!(summary.unwrap().files, 5);
}

#[test]
fn a_folders_extended_attributes_are_in_the_manifest() {
    // Where temporary files are, a file system may have no attributes; where programs are, it has.
    let program = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    fs::write(folder.path().join("a"), "").unwrap();
    for (name, value) in [("user.z", &b"\0\xff"[..]), ("user.b", b"")] {
        rustix::fs::lsetxattr(folder.path().join("a"), name, value, XattrFlags::empty()).unwrap();
    }
    let link = folder.path().with_extension("link");
    symlink(folder.path(), &link).unwrap();
    let archive = plain(&image_in(link.clone()));
    fs::remove_file(link).unwrap();
    let xattrs = manifest(&archive.unwrap()).xattrs;
    let found: Vec<_> = (xattrs.iter())
        .map(|xattr| (&*xattr.path, &*xattr.name, &*xattr.value))
        .collect();
    let expected: [(&[u8], &[u8], &[u8]); 2] =
        [(b"a", b"user.b", b""), (b"a", b"user.z", b"\0\xff")];
    assert_eq!(found, expected);
}

#[test]
fn a_folder_with_a_name_reserved_for_minivm_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(".minivm")).unwrap();
    let error = plain(&image_in(folder.path().into())).unwrap_err();
    assert!(
        chain(&error).ends_with("/.minivm\" is reserved for minivm, the image must not have it")
    );
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let error = plain(&image_in("/nowhere/at/all".into())).unwrap_err();
    assert!(
        chain(&error).starts_with("cannot read /nowhere/at/all: "),
        "{}",
        chain(&error)
    );
}

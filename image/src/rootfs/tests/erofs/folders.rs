//! Folders of the host's.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};

use super::*;

fn image_in(root: &Path) -> Image {
    Image {
        root: Root::Folder(root.to_owned()),
        ..image(Vec::new())
    }
}

#[test]
fn a_folders_files_keep_all_that_they_have() {
    // Where temporary files are, a file system may have no attributes; where programs are, it has.
    let program = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let root = folder.path();
    fs::create_dir(root.join("init")).unwrap();
    fs::write(root.join("init/a"), [1; 5000]).unwrap();
    fs::write(root.join("b"), "2").unwrap();
    fs::hard_link(root.join("b"), root.join("c")).unwrap();
    symlink("/etc", root.join("d")).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, root.join("s"), FileType::Socket, mode, 0).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    let with_holes = OsFile::create(root.join("holes")).unwrap();
    with_holes.set_len((3 << 30) + 5).unwrap();
    with_holes.write_all_at(b"in the midst", 1 << 30).unwrap();
    rustix::fs::lsetxattr(root.join("b"), "user.z", b"\0\xff", XattrFlags::empty()).unwrap();
    let time = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    OsFile::options()
        .write(true)
        .open(root.join("b"))
        .unwrap()
        .set_modified(time)
        .unwrap();

    let out = tempfile::tempfile().unwrap();
    let made = write_erofs(&image_in(root), &Limits::default(), &out).unwrap();
    assert!(made.bytes < 1 << 20, "{}", made.bytes);
    assert_eq!(made.files, 8);
    let reader = Reader::open(&out).unwrap();
    let mut numbers = BTreeMap::new();
    let walked = reader.walk(|path, inode| {
        let path = std::str::from_utf8(path).unwrap();
        numbers.insert(path.to_owned(), (inode.number, inode.links));
        let metadata = fs::symlink_metadata(root.join(path)).unwrap();
        assert_eq!(inode.permissions, metadata.mode() & 0o7777, "{path}");
        assert_eq!(
            (inode.uid, inode.gid),
            (metadata.uid(), metadata.gid()),
            "{path}"
        );
        let time = Time {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap(),
        };
        assert_eq!(inode.mtime, time, "{path}");
        assert_eq!(
            inode.xattrs.len(),
            usize::from(["b", "c"].contains(&path)),
            "{path}"
        );
        match (path, &inode.content) {
            ("" | "init", Content::Folder) | ("s", Content::Socket) => {}
            ("d", Content::Symlink(target)) => assert_eq!(target, b"/etc"),
            ("holes", Content::File(place)) => {
                assert_eq!(place.size, (3 << 30) + 5);
                let mut piece = Vec::new();
                let data = reader.data_from(place, (1 << 30) - 1);
                data.take(14).read_to_end(&mut piece)?;
                assert_eq!(piece, b"\0in the midst\0");
            }
            (_, Content::File(place)) => {
                let mut data = Vec::new();
                reader.data(place).read_to_end(&mut data)?;
                assert_eq!(data, fs::read(root.join(path))?, "{path}");
            }
            (path, content) => panic!("{path} is {content:?}"),
        }
        Ok::<_, crate::erofs::read::Error>(())
    });
    walked.unwrap();
    assert_eq!(numbers["b"], numbers["c"]);
    assert_eq!((numbers["b"].1, numbers[""].1), (2, 3));
    let again = image_file_of(root);
    assert!(bytes(&out) == bytes(&again));
}

fn image_file_of(root: &Path) -> OsFile {
    let out = tempfile::tempfile().unwrap();
    write_erofs(&image_in(root), &Limits::default(), &out).unwrap();
    out
}

#[test]
fn a_folder_is_as_deep_as_a_path_is_long() {
    let folder = tempfile::tempdir().unwrap();
    let mut path = folder.path().to_owned();
    let mut depth = 0;
    while path.as_os_str().len() < 3900 {
        path.push("a");
        fs::create_dir(&path).unwrap();
        depth += 1;
    }
    let image = image_file(&image_in(folder.path())).unwrap();
    assert_eq!(files(&image).len(), depth + 1);
}

#[test]
fn folders_that_can_not_be_an_image_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |root: &Path| chain(&image_file(&image_in(root)).unwrap_err());
    fs::create_dir(folder.path().join(".minivm")).unwrap();
    assert!(refused(folder.path()).ends_with("is reserved for minivm, the image must not have it"));
    assert!(refused(Path::new("/nowhere/at/all")).starts_with("cannot read /nowhere/at/all: "));
}

#[test]
fn each_name_of_a_file_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("a");
    fs::write(&first, "1").unwrap();
    for number in 0..10 {
        let name = format!("{number}{}", "n".repeat(199));
        fs::hard_link(&first, folder.path().join(name)).unwrap();
    }
    let limited = |names| {
        let limits = Limits {
            names,
            ..Limits::default()
        };
        let out = tempfile::tempfile().unwrap();
        let written = write_erofs(&image_in(folder.path()), &limits, &out);
        written.map(drop).map_err(|error| chain(&error))
    };
    // Ten names of 200 bytes, and one of one.
    assert_eq!(limited(2001), Ok(()));
    let refused = limited(2000).unwrap_err();
    let said = "the image has more than 2000 bytes of names and attributes, the limit";
    assert!(refused.ends_with(said), "{refused}");
}

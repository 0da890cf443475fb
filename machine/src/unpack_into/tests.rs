//! What holds for all archives, whatever the policy; see also the tests of `copy_out` and of `images::fill`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use minivm_guest::newc::{Archive, Attributes};
use minivm_guest::unpack::Unpack;

use super::*;

type Fill = fn(&mut Archive<&mut Vec<u8>>);

const NEW: Policy<'static> = Policy {
    there: There::Refused,
    links: Links::All,
    hard_links: true,
    permissions: 0o1777,
    folders: 0,
    in_order: false,
    is_over: &|| false,
};
const MERGED: Policy<'static> = Policy {
    there: There::Replaced(".unfinished"),
    links: Links::Inside,
    hard_links: false,
    permissions: 0o777,
    folders: 0o700,
    in_order: false,
    is_over: &|| false,
};

fn at(permissions: u32, mtime: u32) -> Attributes {
    Attributes {
        mtime,
        ..Attributes::new(permissions)
    }
}

/// Unpacks an archive into a folder that is there.
fn unpack(
    folder: &Path,
    policy: Policy<'_>,
    fill: impl FnOnce(&mut Archive<&mut Vec<u8>>),
) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes);
    fill(&mut archive);
    archive.finish().unwrap();
    let mut target = Target::new(File::open(folder).unwrap().into(), policy)?;
    let mut unpack = Unpack::new(&bytes[..]);
    let mut added = Ok(());
    while let Some(entry) = unpack.next()? {
        added = target.add(&entry.name, &entry, &mut unpack).map(drop);
        if added.is_err() {
            break;
        }
    }
    added.and(target.finish())
}

#[test]
fn a_folder_is_found_at_once_or_step_by_step() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("a/b/c")).unwrap();
    symlink("b", place.path().join("a/link")).unwrap();
    symlink("/", place.path().join("out")).unwrap();
    fs::write(place.path().join("a/file"), "").unwrap();
    let root = File::open(place.path()).unwrap();
    for open in [open_below, step_below] {
        let inode = |path: &str| {
            let folder = open(root.as_fd(), Path::new(path)).ok()?;
            Some(File::from(folder).metadata().unwrap().ino())
        };
        for path in ["", "a", "a/b", "a/b/c"] {
            let expected = fs::metadata(place.path().join(path)).unwrap().ino();
            assert_eq!(inode(path), Some(expected), "{path}");
        }
        for path in [
            "a/link", "a/link/c", "out", "out/etc", "a/file", "a/x", "..", "/",
        ] {
            assert_eq!(inode(path), None, "{path}");
        }
    }
}

#[test]
fn a_link_that_another_process_puts_in_a_folders_place_is_not_followed() {
    for policy in [NEW, MERGED] {
        let place = tempfile::tempdir().unwrap();
        let (folder, outside) = (place.path().join("in"), place.path().join("outside"));
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o750)).unwrap();
        let mut target = Target::new(File::open(&folder).unwrap().into(), policy).unwrap();
        let mut entry = Entry {
            name: "d".into(),
            kind: Kind::Folder,
            permissions: 0o755,
            mtime: 0,
            link: None,
        };
        target
            .add(Path::new("d"), &entry, &mut io::empty())
            .unwrap();
        target
            .add(Path::new("e"), &entry, &mut io::empty())
            .unwrap();
        fs::rename(folder.join("d"), place.path().join("moved")).unwrap();
        symlink(&outside, folder.join("d")).unwrap();
        entry.kind = Kind::File { size: 1 };
        let added = target.add(Path::new("d/file"), &entry, &mut &b"x"[..]);
        assert!(added.is_err());
        // Its folder can't be finished either.
        assert!(target.finish().is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.join("e")), 0o755, "the rest is finished");
        assert_eq!(
            mode(&outside),
            0o750,
            "and what a link leads to is left alone"
        );
    }
}

#[test]
fn trees_are_as_deep_as_a_path_is_long() {
    for policy in [NEW, MERGED] {
        let place = tempfile::tempdir().unwrap();
        let name = |depth| ["d"].repeat(depth).join("/");
        // More than there are descriptors.
        let depth = 2000;
        unpack(place.path(), policy, |archive| {
            for depth in 1..=depth {
                archive.directory(name(depth), at(0o700, 5)).unwrap();
            }
            let file = |archive: &mut Archive<_>, depth| {
                let name = format!("{}/file", name(depth));
                archive.file(name, at(0o600, 6), 1, &b"x"[..]).unwrap();
            };
            file(archive, depth);
            file(archive, 1);
            file(archive, depth / 2);
        })
        .unwrap();
        let root = File::open(place.path()).unwrap();
        let deepest = open_below(root.as_fd(), Path::new(&name(depth))).unwrap();
        let stat = rustix::fs::fstat(&deepest).unwrap();
        assert_eq!(stat.st_mtime, 5, "it is finished when all is in it");
        statat(&deepest, "file", AtFlags::empty()).unwrap();
        assert!(place.path().join("d/file").exists());
        minivm_image::publish::tree::remove(&place.path().join("d"))
            .whole()
            .unwrap();
    }
}

#[test]
fn names_of_one_file_are_one_where_that_is_wanted() {
    let fill: Fill = |archive| {
        archive.directory("a", at(0o700, 0)).unwrap();
        archive.directory("a/b", at(0o500, 0)).unwrap();
        archive.directory("c", at(0o700, 0)).unwrap();
        let first = archive.linked_file("a/b/first", at(0o640, 1), 3, 1, &b"x"[..]);
        let first = first.unwrap();
        archive.hard_link("c/second", first).unwrap();
        archive.file("other", at(0o600, 1), 1, &b"y"[..]).unwrap();
        archive.hard_link("a/third", first).unwrap();
    };
    let place = tempfile::tempdir().unwrap();
    unpack(place.path(), NEW, fill).unwrap();
    let inode = |name: &str| fs::metadata(place.path().join(name)).unwrap().ino();
    assert_eq!(inode("a/b/first"), inode("c/second"));
    assert_eq!(inode("a/b/first"), inode("a/third"));
    assert_eq!(fs::read(place.path().join("a/third")).unwrap(), b"x");
    let place = tempfile::tempdir().unwrap();
    unpack(place.path(), MERGED, fill).unwrap();
    let links = |name: &str| fs::metadata(place.path().join(name)).unwrap().nlink();
    assert_eq!((links("a/b/first"), links("c/second")), (1, 1));
}

#[test]
fn privileges_are_left_out_and_times_are_kept() {
    for (policy, file, folder) in [(NEW, 0o1755, 0o1500), (MERGED, 0o755, 0o700)] {
        let place = tempfile::tempdir().unwrap();
        unpack(place.path(), policy, |archive| {
            archive.directory("d", at(0o7500, 3)).unwrap();
            archive.file("d/f", at(0o7755, 4), 1, &b"x"[..]).unwrap();
            archive.symlink("d/l", "f", at(0o777, 5)).unwrap();
        })
        .unwrap();
        for (name, mode, time) in [("d", folder, 3), ("d/f", file, 4), ("d/l", 0o777, 5)] {
            let metadata = fs::symlink_metadata(place.path().join(name)).unwrap();
            assert_eq!(
                (metadata.mode() & 0o7777, metadata.mtime()),
                (mode, time),
                "{name}"
            );
        }
    }
}

#[test]
fn what_is_there_is_refused_or_replaced() {
    let fill: Fill = |archive| {
        archive.file("file", at(0o600, 0), 3, &b"new"[..]).unwrap();
    };
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("file");
    fs::write(&path, "old").unwrap();
    let error = unpack(place.path(), NEW, fill).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    unpack(place.path(), MERGED, fill).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}

/// The size from which on writing a file fails, in a process of the test below, as on a disk that has become full.
const FILE_MAX: u64 = 64 << 10;
/// The variable with that process's folder.
const FOLDER_OF_SMALL_FILES: &str = "MINIVM_TEST_FOLDER_OF_SMALL_FILES";

#[test]
fn a_file_that_can_be_written_in_part_only_leaves_what_was_there() {
    const NAME: &str =
        "unpack_into::tests::a_file_that_can_be_written_in_part_only_leaves_what_was_there";
    if let Some(folder) = std::env::var_os(FOLDER_OF_SMALL_FILES) {
        let error = unpack(Path::new(&folder), MERGED, |archive| {
            let small = &b"new"[..];
            archive.file("small", at(0o644, 0), 3, small).unwrap();
            let large = io::repeat(b'x').take(1 << 20);
            archive.file("large", at(0o644, 0), 1 << 20, large).unwrap();
        });
        let error = error.unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::FBIG), "{error}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("large"), "old").unwrap();
    // The limit is a process's.
    let mut limited = std::process::Command::new("env");
    limited.args(["--ignore-signal=XFSZ", "prlimit"]);
    limited.arg(format!("--fsize={FILE_MAX}"));
    limited.arg(std::env::current_exe().unwrap());
    limited.args(["--exact", NAME]);
    limited.env(FOLDER_OF_SMALL_FILES, folder.path());
    let output = limited.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
    let entries = fs::read_dir(folder.path()).unwrap();
    let files = entries.map(|entry| {
        let path = entry.unwrap().path();
        (
            path.file_name().unwrap().to_owned(),
            fs::read(path).unwrap(),
        )
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    let expected = [("large", "old"), ("small", "new")];
    assert_eq!(
        files,
        expected.map(|(name, text)| (name.into(), text.into()))
    );
}

//! EROFS images of the images here: they hold what `umoci` unpacks, and `fsck.erofs` finds nothing wrong with them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use minivm_image::erofs::read::{Content, Error, Inode, Reader};
use minivm_image::rootfs::{self, Limits};
use minivm_image::{Blob, Config, Image, Layer, Root};
use minivm_tests::program::run;
use minivm_tests::stress::{self, Random};

use crate::made::images;
use crate::sources::unpacked;
use crate::tape::{Attributes, Tape, mode};
use crate::tools::{Minivm, PATIENCE, assert_built, folder};

/// Fails if `fsck.erofs` finds something wrong, or does not say that it looked.
#[track_caller]
fn assert_clean(image: &Path) {
    let ended = run(Command::new("fsck.erofs").arg("-d3").arg(image), PATIENCE);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let text = ended.text() + &ended.stderr;
    assert!(text.contains("No errors found"), "{text}");
}

/// The extended attributes of a file on this host, sorted, without the host's own.
fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut buffer = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut buffer).unwrap();
    let names: Vec<_> = buffer[..len]
        .split(|&byte| byte == 0)
        .map(<[u8]>::to_vec)
        .collect();
    let mut found = Vec::new();
    for name in names {
        if name.is_empty() || name == b"security.selinux" {
            continue;
        }
        let len = rustix::fs::lgetxattr(path, &*name, &mut buffer).unwrap();
        found.push((name, buffer[..len].to_vec()));
    }
    found.sort();
    found
}

/// The number of names below a folder.
fn count(folder: &Path) -> usize {
    let below = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => 1 + count(&entry.path()),
            false => 1,
        }
    };
    fs::read_dir(folder).unwrap().map(below).sum()
}

/// Compares a file of an image with the one on this host. Folders' times are left out: unpacking changes them.
fn compare(reader: &Reader<'_, File>, inode: &Inode, path: &Path) -> Result<(), Error> {
    let metadata = fs::symlink_metadata(path).unwrap();
    let file_type = metadata.file_type();
    assert_eq!(inode.permissions, metadata.mode() & 0o7777, "{path:?}");
    assert_eq!(
        (inode.uid, inode.gid),
        (metadata.uid(), metadata.gid()),
        "{path:?}"
    );
    assert_eq!(inode.xattrs, xattrs(path), "{path:?}");
    if !file_type.is_dir() {
        let time = (inode.mtime.seconds, i64::from(inode.mtime.nanoseconds));
        assert_eq!(time, (metadata.mtime(), metadata.mtime_nsec()), "{path:?}");
        assert_eq!(u64::from(inode.links), metadata.nlink(), "{path:?}");
    }
    let numbers = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    match &inode.content {
        Content::Folder => assert!(file_type.is_dir(), "{path:?}"),
        Content::File(place) => {
            let mut data = Vec::new();
            reader.data(place).read_to_end(&mut data)?;
            assert!(data == fs::read(path)?, "{path:?}: other data");
        }
        Content::Symlink(target) => {
            assert_eq!(
                target,
                fs::read_link(path)?.as_os_str().as_bytes(),
                "{path:?}"
            );
        }
        &Content::CharDevice { major, minor } => {
            assert!(file_type.is_char_device(), "{path:?}");
            assert_eq!((major, minor), numbers, "{path:?}");
        }
        &Content::BlockDevice { major, minor } => {
            assert!(file_type.is_block_device(), "{path:?}");
            assert_eq!((major, minor), numbers, "{path:?}");
        }
        Content::Fifo => assert!(file_type.is_fifo(), "{path:?}"),
        Content::Socket => assert!(file_type.is_socket(), "{path:?}"),
    }
    Ok(())
}

/// Asserts that an image has the files of a folder and no others, and that the names of each file are the same ones.
fn assert_same(image: &Path, root: &Path, what: &str) {
    let image = File::open(image).unwrap();
    let reader = Reader::open(&image).unwrap();
    let (mut found, mut inodes) = (0, BTreeMap::new());
    let walked = reader.walk(|name, inode| {
        let path = root.join(std::ffi::OsStr::from_bytes(name));
        compare(&reader, inode, &path)?;
        let there = fs::symlink_metadata(&path)?.ino();
        assert_eq!(
            *inodes.entry(inode.number).or_insert(there),
            there,
            "{path:?}"
        );
        found += 1;
        Ok::<_, Error>(())
    });
    walked.unwrap();
    assert_eq!(found, 1 + count(root), "{what}");
}

#[test]
fn an_image_holds_the_files_that_a_reference_unpacks() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    for tag in ["python", "difficult"] {
        let path = folder.path().join(tag);
        let mut command = minivm.building(&images.oci(tag), &["--format", "erofs"], &path);
        assert_built(tag, &run(&mut command, PATIENCE));
        let again = minivm.build_as(&images.oci(tag), &["--format", "erofs"]);
        assert!(again == fs::read(&path).unwrap(), "{tag}: other bytes");
        assert_clean(&path);

        let root = folder.path().join(format!("{tag}-root"));
        unpacked(images, tag, &root);
        assert_same(&path, &root, tag);
    }
}

#[test]
fn a_folder_makes_the_same_files_as_its_image() {
    let (images, minivm, folder) = (images(), Minivm::new(), folder());
    let root = folder.path().join("root");
    unpacked(images, "difficult", &root);
    let path = folder.path().join("image");
    let image = format!("dir:{}", root.display());
    let mut command = minivm.building(&image, &["--format", "erofs"], &path);
    assert_built(&image, &run(&mut command, PATIENCE));
    assert_clean(&path);
    assert_same(&path, &root, &image);
}

#[test]
fn attributes_that_erofs_can_not_hold_are_left_out_with_a_warning() {
    let (minivm, folder) = (Minivm::new(), folder());
    let mut tape = Tape::new();
    for name in ["one", "two"] {
        tape.xattrs(&[("odd", b"1"), ("user.usual", b"2")]);
        tape.file(name, mode(0o644), b"data");
    }
    let (tar, path) = (folder.path().join("tar"), folder.path().join("image"));
    fs::write(&tar, tape.bytes()).unwrap();
    let image = format!("tar:{}", tar.display());
    let ended = run(
        &mut minivm.building(&image, &["--format", "erofs"], &path),
        PATIENCE,
    );
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said =
        "minivm: 2 attributes that EROFS can't hold are left out, the first is odd of /one\n";
    assert_eq!(ended.stderr, said);
    let mut quiet = minivm.building(&image, &["--format", "erofs", "-q"], &path);
    assert_built(&image, &run(&mut quiet, PATIENCE));
    assert_clean(&path);
}

/// A layer with files of all kinds, whose names and sizes are chosen at random.
fn layer(random: &mut Random) -> Vec<u8> {
    let mut tape = Tape::new();
    let mut files: Vec<String> = Vec::new();
    for number in 0..random.below(60) {
        let folder = format!("{}", random.below(6));
        let long = "n".repeat(random.below(200));
        let name = format!("{folder}/{number}{long}");
        let of = Attributes {
            mode: u32::try_from(random.below(0o10000)).unwrap(),
            uid: random.number() % (1 << 17),
            gid: random.number() % (1 << 17),
        };
        if random.below(4) == 0 {
            let value = random.bytes(10);
            tape.xattrs(&[("user.some", &value[..]), ("security.other", b"")]);
        }
        match random.below(8) {
            0 => tape.folder(&name, of),
            1 => tape.symlink(&name, &"t".repeat(1 + random.below(90))),
            2 => tape.node(&name, of, Some((7, 300))),
            3 => tape.node(&name, of, None),
            4 if !files.is_empty() => {
                let target = files[random.below(files.len())].clone();
                tape.hard_link(&name, &target, mode(0o644));
            }
            _ => {
                let size = random.below(3) * 4096 + random.below(200);
                let data = random.bytes(size);
                tape.file(&name, of, &data);
                files.push(name);
            }
        }
    }
    // Folders of several blocks.
    for number in 0..random.below(2) * random.below(1500) {
        tape.file(
            format!("many/{number}-{}", "m".repeat(number % 60)),
            mode(0o600),
            b"",
        );
    }
    tape.bytes()
}

#[test]
fn fsck_finds_nothing_wrong_with_images_of_any_files() {
    let folder = folder();
    let mut random = Random::default();
    let (mut clean, images) = (0, stress::count(12, 1000));
    for number in 0..images {
        let layers = (0..1 + random.below(3)).map(|_| {
            let bytes = layer(&mut random);
            let path = folder.path().join("layer");
            fs::write(&path, &bytes).unwrap();
            let blob = Blob {
                file: Arc::new(File::open(path).unwrap()),
                offset: 0,
                len: bytes.len() as u64,
                name: "layer".into(),
            };
            fs::remove_file(folder.path().join("layer")).unwrap();
            Layer {
                blob,
                diff_id: None,
            }
        });
        let image = Image {
            identity: "test".into(),
            config: Config::default(),
            root: Root::Layers(layers.collect()),
        };
        let path = folder.path().join(format!("image-{number}"));
        let out = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let made = rootfs::write_erofs(&image, &Limits::default(), &out);
        // A layer's folder may be where another has a file.
        if made.is_ok() {
            assert_clean(&path);
            clean += 1;
        }
        fs::remove_file(path).unwrap();
    }
    assert!(clean > images / 2, "{clean} images of {images} were made");
}

/// A folder with files of every kind.
fn every_kind(root: &Path) {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    for number in 0..500 {
        let data = vec![b'x'; number * 37];
        fs::write(root.join(format!("a/file-{number}")), data).unwrap();
    }
    fs::hard_link(root.join("a/file-499"), root.join("linked")).unwrap();
    std::os::unix::fs::symlink("a/file-1", root.join("link")).unwrap();
    let device = makedev(259, 70_000);
    for (name, kind) in [
        ("char", FileType::CharacterDevice),
        ("block", FileType::BlockDevice),
        ("fifo", FileType::Fifo),
        ("socket", FileType::Socket),
    ] {
        mknodat(
            CWD,
            root.join(name),
            kind,
            Mode::from_raw_mode(0o640),
            device,
        )
        .unwrap();
    }
    std::os::unix::fs::lchown(root.join("fifo"), Some(100_000), Some(7)).unwrap();
    // A list that adds the group 9 to a file's mode (`struct posix_acl_xattr_entry`).
    let acl = [
        (1, 6, !0),
        (4, 4, !0),
        (8, 4, 9),
        (16, 6, !0),
        (32, 0, !0u32),
    ];
    let acl: Vec<u8> = acl
        .iter()
        .flat_map(|&(tag, permissions, id): &(u16, u16, u32)| {
            [
                &tag.to_le_bytes()[..],
                &permissions.to_le_bytes(),
                &id.to_le_bytes(),
            ]
            .concat()
        })
        .collect();
    let acl = [&2u32.to_le_bytes()[..], &acl].concat();
    let some = root.join("a/file-7");
    for (path, name, value) in [
        (&some, "user.some", &b"value"[..]),
        (&some, "trusted.other", b""),
        (&some, "security.third", &[1; 300]),
        (&some, "system.posix_acl_access", &acl),
        (&root.join("a/b"), "system.posix_acl_default", &acl),
    ] {
        lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    }
}

/// The numbers in the format are right if others' images are read with them.
#[test]
fn the_reader_reads_images_of_mkfs() {
    let folder = folder();
    let root = folder.path().join("root");
    every_kind(&root);
    let path = folder.path().join("image");
    for flags in [
        &[][..],
        &["-Enoinline_data"],
        &["-Eforce-inode-extended"],
        &["-Eforce-inode-blockmap", "--chunksize=4096"],
        &["-Eforce-inode-blockmap", "--chunksize=16384"],
    ] {
        // Attributes stand with their inodes unless so many have the same.
        let mut mkfs = Command::new("mkfs.erofs");
        mkfs.arg("-x1000").args(flags).arg(&path).arg(&root);
        let ended = run(&mut mkfs, PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_same(&path, &root, &format!("{flags:?}"));
        fs::remove_file(&path).unwrap();
    }
}

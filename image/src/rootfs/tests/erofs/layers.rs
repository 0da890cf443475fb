//! Layers over one another.

use minivm_tests::stress;
use proptest::prelude::*;

use super::super::model::{self, Model};
use super::super::output::{gzip, zstd};
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(stress::count(200, 10_000)))]

    #[test]
    fn an_image_has_what_a_simple_unpacker_makes_of_the_layers(
        layers in prop::collection::vec(prop::collection::vec(model::step(), 0..7), 1..4),
    ) {
        let mut model = Model::default();
        let expected = layers.iter().try_for_each(|layer| model.layer(layer));
        let mut next = 0;
        let tars: Vec<_> = layers.iter().map(|steps| model::entries(steps, &mut next)).collect();
        let slices: Vec<_> = tars.iter().map(|tar| &tar[..]).collect();
        match (image_file(&image_of(&slices)), expected) {
            (Ok(image), Some(())) => prop_assert_eq!(lines(&files(&image)), model.listing()),
            (Err(_), None) => {}
            (Ok(image), None) => prop_assert!(false, "taken: {:?}", lines(&files(&image))),
            (Err(error), Some(())) => prop_assert!(false, "{} instead of {:?}", chain(&error), model.listing()),
        }
    }
}

/// Data that are nowhere else.
fn secret(number: u8) -> Vec<u8> {
    [b"secret", &[number; 5000][..]].concat()
}

fn holds(image: &OsFile, part: &[u8]) -> bool {
    bytes(image)
        .windows(part.len())
        .any(|window| window == part)
}

#[test]
fn nothing_of_hidden_files_is_in_an_image() {
    let lower = [
        file("replaced", secret(1)),
        file("kept", [2; 9000]),
        file("hidden", secret(3)),
        file("folder/hidden", secret(4)),
        file("also-kept", [5; 4096]),
        file("last", secret(6)),
    ];
    let upper = [
        file("replaced", [7; 3]),
        file(".wh.hidden", ""),
        file("folder/.wh..wh..opq", ""),
        symlink("last", "kept"),
        file("new", [8; 5000]),
    ];
    let image = made(&[&lower, &upper]);
    assert!(!holds(&image, b"secret"));
    let found = files(&image);
    for (name, data) in [
        ("replaced", vec![7; 3]),
        ("kept", vec![2; 9000]),
        ("also-kept", vec![5; 4096]),
        ("new", vec![8; 5000]),
    ] {
        assert_eq!(found[name.as_bytes()].data, data, "{name}");
    }
    // It is the image of the files that are left, in the order in which they came.
    let same = [
        file("kept", [2; 9000]),
        file("also-kept", [5; 4096]),
        file("replaced", [7; 3]),
        folder("folder"),
        symlink("last", "kept"),
        file("new", [8; 5000]),
    ];
    assert!(bytes(&made(&[&same])) == bytes(&image));
}

#[test]
fn data_that_a_hidden_name_shared_stay() {
    let lower = [file("a", secret(1)), hard("b", "a"), file("c", [2; 5000])];
    let image = made(&[&lower, &[file("a", "1")]]);
    let found = files(&image);
    assert_eq!(found[&b"b"[..]].data, secret(1));
    assert_eq!(found[&b"b"[..]].inode.links, 1);
    assert_eq!(found[&b"a"[..]].data, b"1");
    assert_eq!(found[&b"c"[..]].data, [2; 5000]);
}

#[test]
fn the_same_layers_make_the_same_bytes_whatever_their_compression() {
    let tar = tar(&[
        file("b", [b'x'; 100_000]),
        folder("a"),
        file("a/x", "data"),
        hard("c", "a/x"),
    ]);
    let images = [tar.clone(), gzip(&tar), zstd(&tar)].map(|layer_bytes| {
        let layer = layer(&layer_bytes, Some(digest(&tar)));
        bytes(&image_file(&image(vec![layer])).unwrap())
    });
    assert!(images[0] == images[1] && images[0] == images[2]);
    // What tells images apart has its own number.
    let other = bytes(&made(&[&[file("b", "data")]]));
    assert_ne!(images[0][1024 + 48..1024 + 64], other[1024 + 48..1024 + 64]);
}

#[test]
fn a_layer_of_another_digest_makes_no_image() {
    let tar = tar(&[file("a", "1")]);
    let layer = layer(&tar, Some(digest(b"other")));
    let out = tempfile::tempfile().unwrap();
    let refused = write_erofs(&image(vec![layer]), &Limits::default(), &out);
    assert!(chain(&refused.unwrap_err()).starts_with("the layer has the digest sha256:"));
    assert!(Reader::open(&out).is_err());
}

#[test]
fn every_kind_of_file_keeps_all_that_it_has() {
    let mut null = entry(EntryType::Char, "dev/null").mode(0o666);
    null.header.set_device_major(1).unwrap();
    null.header.set_device_minor(3).unwrap();
    let mut disk = entry(EntryType::Block, "dev/vda").mode(0o660);
    disk.header.set_device_major(4095).unwrap();
    disk.header.set_device_minor(1_048_575).unwrap();
    let entries = [
        null,
        disk,
        entry(EntryType::Fifo, "p").mode(0o6600),
        hard("q", "p"),
        symlink("s", "t".repeat(4095)).mode(0o600),
        hard("also-s", "s"),
        file("empty", "").mode(0o4755).owner(70_000, 1),
        file("x", "data")
            .pax("mtime", "-1.25")
            .xattr("user.a", b"\0\n=\xff")
            .xattr("security.capability", b"\x01\0\0\x02")
            .xattr("system.posix_acl_access", b"\x02\0\0\0")
            .xattr("trusted.overlay.opaque", "")
            .xattr("user.none.of.it", "")
            // Left out, whatever its size.
            .xattr("odd", [0; 65_536])
            .xattr("system.posix_acl_accessible", "1"),
        folder("")
            .mode(0o1777)
            .owner(5, 6)
            .pax("mtime", "4294967296.000000001"),
    ];
    let found = files(&made(&[&entries]));
    assert_eq!(
        lines(&found)[..9],
        [
            format!("also-s -> {}", "t".repeat(4095)),
            "dev/ 755".to_owned(),
            "dev/null 666 CharDevice { major: 1, minor: 3 }".to_owned(),
            "dev/vda 660 BlockDevice { major: 4095, minor: 1048575 }".to_owned(),
            "empty: ".to_owned(),
            "p 6600 Fifo".to_owned(),
            "q 6600 Fifo".to_owned(),
            format!("s -> {}", "t".repeat(4095)),
            "x: data".to_owned(),
        ]
    );
    let of = |path: &str| &found[path.as_bytes()].inode;
    for (one, other) in [("p", "q"), ("s", "also-s")] {
        assert_eq!(of(one), of(other));
        assert_eq!(of(one).links, 2);
    }
    assert_eq!(of("s").permissions, 0o777);
    assert_eq!((of("empty").permissions, of("empty").uid), (0o4755, 70_000));
    let time = |seconds, nanoseconds| Time {
        seconds,
        nanoseconds,
    };
    assert_eq!(of("x").mtime, time(-2, 750_000_000));
    assert_eq!(of("").mtime, time(1 << 32, 1));
    assert_eq!((of("").permissions, of("").uid, of("").gid), (0o1777, 5, 6));
    assert_eq!((of("").links, of("dev").links), (3, 2));
    let xattrs: Vec<_> = of("x")
        .xattrs
        .iter()
        .map(|(name, value)| (&name[..], &value[..]))
        .collect();
    let expected: [(&[u8], &[u8]); 5] = [
        (b"security.capability", b"\x01\0\0\x02"),
        (b"system.posix_acl_access", b"\x02\0\0\0"),
        (b"trusted.overlay.opaque", b""),
        (b"user.a", b"\0\n=\xff"),
        (b"user.none.of.it", b""),
    ];
    assert_eq!(xattrs, expected);
}

#[test]
fn an_image_without_layers_is_an_empty_folder() {
    let found = files(&made(&[]));
    assert_eq!(found.len(), 1);
    assert_eq!(found[&b""[..]].inode.content, Content::Folder);
}

#[test]
fn folders_end_before_at_and_behind_a_blocks_end() {
    // With the folder's own entries, fifteen names of 244 bytes and one of 217 fill a block.
    for last in [216, 217, 218] {
        let name = |number, len| file(format!("{number:0len$}"), "");
        let mut entries: Vec<_> = (0..15).map(|number| name(number, 244)).collect();
        entries.push(name(15, last));
        let found = files(&made(&[&entries]));
        assert_eq!(found.len(), 17);
        let all = entries.iter().all(|entry| found.contains_key(&entry.name));
        assert!(all, "{last}");
    }
}

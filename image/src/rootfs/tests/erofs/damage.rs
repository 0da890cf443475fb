//! Images that are damaged, or of another kind.

use super::*;
use crate::erofs::{read, seal};

/// The place of the superblock's field at this offset.
const fn field(offset: usize) -> usize {
    1024 + offset
}

/// An image with a folder, a file of two names and a link; and the place of its inodes.
fn sound() -> (Vec<u8>, usize) {
    let entries = [
        file("f", [b'x'; 5000]).xattr("user.a", "1"),
        hard("g", "f"),
        folder("d").mode(0o700),
        symlink("d/l", "target"),
    ];
    let image = bytes(&made(&[&entries]));
    let block = u32::from_le_bytes(image[field(40)..field(44)].try_into().unwrap());
    (image, 4096 * block as usize)
}

/// Reads all of an image, whose checksum is made right.
fn read_sealed(image: &mut [u8]) -> Result<(), read::Error> {
    seal(image);
    let image = &*image;
    let reader = Reader::open(image)?;
    reader.walk(|_, inode| {
        if let Content::File(place) = &inode.content {
            std::io::copy(&mut reader.data(place).take(1 << 20), &mut std::io::sink())?;
        }
        Ok(())
    })
}

/// What is said of an image with these bytes at this place.
fn said(image: &[u8], at: usize, bytes: &[u8]) -> String {
    let mut changed = image.to_vec();
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    match read_sealed(&mut changed) {
        Ok(()) => "sound".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_no_image_is_refused_in_a_line() {
    let (image, _) = sound();
    let open = |image: &[u8]| {
        Reader::open(image)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(open(&image), Ok(()));
    let no_image = Err("it is not an EROFS image".to_owned());
    for bytes in [&b""[..], b"short", &[0; 4095], &[0; 4096], &[b'x'; 8192]] {
        assert_eq!(open(bytes), no_image);
    }
    let mut changed = image.clone();
    changed[field(37)] ^= 1;
    let damaged = "it is damaged: its superblock's checksum is wrong".to_owned();
    assert_eq!(open(&changed), Err(damaged));
    let len = image.len();
    let short = format!("it is incomplete: it has {} of {len} bytes", len - 1);
    assert_eq!(open(&image[..len - 1]), Err(short));
    assert_eq!(open(&[&image[..], &[0; 4096]].concat()), Ok(()));
}

#[test]
fn superblocks_of_other_kinds_are_refused() {
    let (image, _) = sound();
    let field_is_bad = "it is damaged: its superblock has a bad field";
    for (at, bytes, expected) in [
        (0, &[0][..], "it is not an EROFS image"),
        (8, &[2], "it is damaged: its superblock's checksum is wrong"),
        (
            80,
            &[2],
            "it is an EROFS image of another kind, with the features 0x2",
        ),
        (
            83,
            &[0x80],
            "it is an EROFS image of another kind, with the features 0x80000000",
        ),
        // Blocks of other sizes, compression, devices, folders' blocks, prefixes.
        (12, &[9], field_is_bad),
        (13, &[1], field_is_bad),
        (84, &[1], field_is_bad),
        (86, &[1], field_is_bad),
        (90, &[1], field_is_bad),
        (91, &[1], field_is_bad),
        (35, &[0xff], field_is_bad),
        // The blocks, the inodes' place, the root, the number of inodes.
        (
            36,
            &[0xff; 4],
            "it is incomplete: it has 24576 of 17592186040320 bytes",
        ),
        (40, &[0xff; 4], field_is_bad),
        (
            14,
            &[0xff; 2],
            "it is damaged: inode 65535 is not in the image",
        ),
        (
            14,
            &[0; 2],
            "it is damaged: inode 0 has a mode without a type",
        ),
        (16, &[9], field_is_bad),
    ] {
        let found = said(&image, field(at), bytes);
        let expected = match expected.contains("24576") {
            true => format!(
                "it is incomplete: it has {} of 17592186040320 bytes",
                image.len()
            ),
            false => expected.to_owned(),
        };
        assert_eq!(found, expected, "{at} {bytes:?}");
    }
}

#[test]
fn inodes_that_contradict_the_rest_are_refused() {
    let (image, inodes) = sound();
    // The root is in slot 1, then come the file with its attributes, and the folder with the link.
    let number = |index: usize| {
        u64::from_le_bytes(
            image[inodes + 32 + 32 + 12 * index..][..8]
                .try_into()
                .unwrap(),
        )
    };
    assert_eq!((number(0), number(1)), (1, 1));
    let (folder, file) = (number(2), number(3));
    assert_eq!(number(4), file);
    let at = |number: u64| inodes + 32 * usize::try_from(number).unwrap();
    let inode = |number: u64, problem: &str| format!("it is damaged: inode {number} {problem}");
    for (place, bytes, expected) in [
        (at(1), &[0x20][..], inode(1, "has no known form")),
        (at(1), &[6], inode(1, "has an unknown layout or a bad time")),
        (at(1) + 4, &[0, 0], inode(1, "has a mode without a type")),
        (
            at(1) + 6,
            &[9],
            inode(1, "is a folder with a wrong number of links"),
        ),
        (
            at(1) + 8,
            &[0; 4],
            inode(1, "has inline data that go beyond a block"),
        ),
        (
            at(1) + 8,
            &[0xff, 0xf],
            inode(1, "has inline data that go beyond a block"),
        ),
        // Its entries: numbers, the places of names, types, and the order.
        (
            at(1) + 32,
            &[9],
            inode(1, "is a folder whose own entries are wrong"),
        ),
        (
            at(1) + 32 + 8,
            &[61],
            inode(1, "is a folder with a bad block"),
        ),
        (
            at(1) + 32 + 8,
            &[0],
            inode(1, "is a folder with a bad block"),
        ),
        (
            at(1) + 32 + 20,
            &[60],
            inode(1, "is a folder with a bad block"),
        ),
        (
            at(1) + 32 + 11,
            &[1],
            inode(1, "is a folder with a bad block"),
        ),
        (
            at(1) + 32 + 60,
            b"/",
            inode(1, "is a folder with a bad name"),
        ),
        (
            at(1) + 32 + 63,
            b"/",
            inode(1, "is a folder with a bad name"),
        ),
        (
            at(1) + 32 + 63,
            b"z",
            inode(1, "is a folder whose names are not sorted"),
        ),
        (
            at(1) + 32 + 34,
            &[1],
            inode(folder, "is not of the type that its folder says"),
        ),
        (
            at(1) + 32 + 24,
            &file.to_le_bytes(),
            inode(file, "is not of the type that its folder says"),
        ),
        (
            at(1) + 32 + 24,
            &[1],
            inode(1, "has more names than it says, or another type"),
        ),
        (
            at(1) + 32 + 36,
            &[0xff; 8],
            inode(u64::MAX, "is not in the image"),
        ),
        (
            at(file) + 6,
            &[1],
            inode(file, "has more names than it says, or another type"),
        ),
        (
            at(file) + 6,
            &[3],
            inode(file, "has a wrong number of links"),
        ),
        (
            at(file) + 8,
            &[0xff; 4],
            inode(file, "has data that are not in the image"),
        ),
        (
            at(file) + 16,
            &[0],
            inode(file, "has data that are not in the image"),
        ),
        (
            at(file) + 16,
            &[0xff; 4],
            inode(file, "has data that are not in the image"),
        ),
        (
            at(file),
            &[8],
            inode(file, "has chunks, of which the superblock says nothing"),
        ),
        (
            at(file) + 2,
            &[0xff],
            inode(file, "has bad extended attributes"),
        ),
        (
            at(file) + 2,
            &[0xff; 2],
            inode(file, "has more bytes than the image"),
        ),
        // Those of the last block's inodes end behind it.
        (
            at(file) + 2,
            &[1, 4],
            inode(file, "has extended attributes that are not in the image"),
        ),
        (
            at(file) + 32,
            &[1],
            inode(file, "has bad extended attributes"),
        ),
        (
            at(file) + 44,
            &[200],
            inode(file, "has bad extended attributes"),
        ),
        (
            at(file) + 45,
            &[5],
            inode(file, "has bad extended attributes"),
        ),
        (
            at(file) + 46,
            &[9],
            inode(file, "has bad extended attributes"),
        ),
        (
            at(folder) + 6,
            &[3],
            inode(folder, "is a folder with a wrong number of links"),
        ),
    ] {
        let found = said(&image, place, bytes);
        assert!(
            found.starts_with(&expected) && found != "sound",
            "{place} {bytes:?}: {found}, not {expected}"
        );
    }
}

//! The same image makes the same bytes, and compressed bytes are the plain ones.

use std::io::Read as _;

use super::*;
use crate::compression::Format;
use crate::compression::tests::compressed;

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn lz4_decompressed(mut bytes: &[u8]) -> Vec<u8> {
    fn number(bytes: &mut &[u8]) -> u32 {
        let (number, rest) = bytes.split_at(4);
        *bytes = rest;
        u32::from_le_bytes(number.try_into().unwrap())
    }
    assert_eq!(number(&mut bytes), 0x184C_2102);
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        // Linux starts no block before the last was full.
        assert_eq!(plain.len() % (8 << 20), 0);
        let len = number(&mut bytes) as usize;
        let (block, rest) = bytes.split_at(len);
        plain.extend(lz4_flex::block::decompress(block, 8 << 20).unwrap());
        bytes = rest;
    }
    plain
}

/// Data that compress a little.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x3f
    });
    bytes.take(len).collect()
}

fn written(image: &Image, compression: Compression) -> Vec<u8> {
    let mut archive = Vec::new();
    write(
        image,
        b"init",
        compression,
        &Limits::default(),
        &mut archive,
    )
    .unwrap();
    archive
}

#[test]
fn a_layers_compression_does_not_matter() {
    let tar = tar(&[
        file("b", noise(700_000)),
        folder("a"),
        file("a/x", "data"),
        hard("c", "a/x"),
    ]);
    let (one, two) = tar.split_at(300_001);
    let kinds = [
        tar.clone(),
        gzip(&tar),
        [gzip(one), gzip(two)].concat(),
        zstd(&tar),
        [
            zstd(one),
            b"\x51\x2a\x4d\x18\x03\0\0\0abc".to_vec(),
            zstd(two),
        ]
        .concat(),
        [b"\x50\x2a\x4d\x18\0\0\0\0".to_vec(), zstd(&tar)].concat(),
        compressed(Format::Xz, &tar),
        [compressed(Format::Xz, one), compressed(Format::Xz, two)].concat(),
        [
            compressed(Format::Bzip2, one),
            compressed(Format::Bzip2, two),
        ]
        .concat(),
    ];
    let archives = kinds.map(|kind| plain(&image(vec![layer(&kind, Some(digest(&tar)))])).unwrap());
    assert_eq!(read(&archives[0])[&b"b"[..]].data, noise(700_000));
    archives
        .iter()
        .for_each(|archive| assert!(*archive == archives[0]));
}

#[test]
fn compressed_archives_decompress_to_the_plain_one() {
    let image = image_of(&[&[
        file("a", noise(1 << 20)),
        file("b", vec![0; 17 << 20]),
        file("c", noise(100)),
    ]]);
    let plain = written(&image, Compression::None);
    let lz4 = written(&image, Compression::Lz4);
    assert!(lz4_decompressed(&lz4) == plain);
    let mut gunzipped = Vec::new();
    let gzip = written(&image, Compression::Gzip);
    flate2::read::GzDecoder::new(&*gzip)
        .read_to_end(&mut gunzipped)
        .unwrap();
    assert!(gunzipped == plain);
    let zstd = written(&image, Compression::Zstd);
    assert!(zstd::decode_all(&*zstd).unwrap() == plain);
    for (compression, first) in [
        (Compression::Lz4, lz4),
        (Compression::Gzip, gzip),
        (Compression::Zstd, zstd),
    ] {
        assert!(first.len() < plain.len() / 4);
        assert!(written(&image, compression) == first, "{compression:?}");
    }
}

#[test]
fn an_archive_is_in_order() {
    let entries = [
        file("z", "1"),
        file("b/y", "2"),
        symlink("s", "t"),
        folder("a"),
        file("empty", ""),
    ];
    let archive = plain(&image_of(&[&entries])).unwrap();
    let names: Vec<_> = minivm_tests::cpio::entries(&archive)
        .into_iter()
        .map(|entry| entry.0)
        .collect();
    let expected = [
        ".minivm",
        ".minivm/manifest",
        "init",
        ".",
        "a",
        "b",
        "s",
        "z",
        "b/y",
        "empty",
        ".minivm/complete",
    ];
    assert_eq!(names, expected);
}

#[test]
fn inodes_are_read_from_an_archive() {
    let inodes_of = |bytes: &[u8]| {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        inodes(&file).unwrap()
    };
    let entries = [
        file("z", "1"),
        hard("y", "z"),
        symlink("s", "t"),
        folder("a"),
        file("a/empty", ""),
    ];
    let archive = plain(&image_of(&[&entries])).unwrap();
    let numbers = minivm_tests::cpio::entries(&archive);
    let numbers: std::collections::BTreeSet<_> = numbers.iter().map(|entry| entry.2).collect();
    // Our own folder and three files in it or beside it, the root, and of these five two are one.
    assert_eq!(numbers.len(), 5 + 4);
    // A further name takes room too.
    assert_eq!(inodes_of(&archive), Some(5 + 5));
    for wrong in [
        &b""[..],
        b"short",
        &[b'x'; 1000],
        &archive[..archive.len() - 4],
    ] {
        assert_eq!(inodes_of(wrong), None);
    }
}

#[test]
fn an_output_that_fails_is_an_error() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let image = image_of(&[&[file("a", noise(3 << 20))]]);
    for compression in [
        Compression::None,
        Compression::Lz4,
        Compression::Zstd,
        Compression::Gzip,
    ] {
        let error = write(&image, b"", compression, &Limits::default(), Full).unwrap_err();
        assert!(
            chain(&error).ends_with("no storage space"),
            "{}",
            chain(&error)
        );
    }
}

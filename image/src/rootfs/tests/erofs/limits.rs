//! What an image can't hold, or may not.

use minivm_tests::stress;

use super::*;

fn limited(limits: &Limits, layers: Vec<Layer>) -> Result<Summary, String> {
    let out = tempfile::tempfile().unwrap();
    write_erofs(&image(layers), limits, &out).map_err(|error| chain(&error))
}

#[test]
fn what_an_image_can_not_hold_is_refused_by_name() {
    let mut device = entry(EntryType::Char, "x");
    device.header.set_device_major(4096).unwrap();
    let many = (0..5).fold(file("x", ""), |entry, number| {
        entry.xattr(&format!("user.{number}"), [0; 65_500])
    });
    for (entry, said) in [
        (
            device,
            "its device number 4096:0 is too large: Linux has 12 bits for the first and 20 for the second",
        ),
        (
            file("x", "").xattr("user.a", [0; 65_536]),
            "its extended attribute \"user.a\" has 64 KiB, an EROFS image holds those with less",
        ),
        (
            many,
            "its extended attributes take more than 262148 bytes, the most that an EROFS image holds of one file",
        ),
        (
            file("x", "").pax("size", "9223372036854775808"),
            "the size in its header is not a valid number",
        ),
        (
            file("x", "").pax("path", ".minivm/x"),
            "the name is reserved for minivm",
        ),
    ] {
        let refusal = refusal(&[&[entry]]);
        assert!(refusal.starts_with("cannot take \""), "{refusal}");
        assert!(
            refusal.ends_with(&format!("\" from the layer: {said}")),
            "{refusal}"
        );
    }
    let most = file("x", "").xattr("user.a", [1; 65_535]);
    assert_eq!(
        files(&made(&[&[most]]))[&b"x"[..]].inode.xattrs[0].1,
        [1; 65_535]
    );
}

#[test]
fn an_image_beyond_its_limits_is_refused() {
    let layers = || vec![layer(&tar(&[file("a", [0; 5000]), file("b", "x")]), None)];
    let limits = |archive| Limits {
        archive,
        ..Limits::default()
    };
    // A block for the superblock, two and one for the files, one for the inodes.
    assert_eq!(
        limited(&limits(5 * 4096), layers()).unwrap().bytes,
        5 * 4096
    );
    let said = "the image has more than 20479 bytes in its EROFS image, the limit";
    assert_eq!(
        limited(&limits(5 * 4096 - 1), layers()),
        Err(format!("cannot take the image: {said}"))
    );
    let said = "the image has more than 12288 bytes in its EROFS image, the limit";
    assert_eq!(
        limited(&limits(3 * 4096), layers()),
        Err(format!("cannot take the layer: {said}"))
    );
}

#[test]
fn an_image_has_no_more_blocks_than_addresses() {
    let limits = Limits {
        expanded: u64::MAX,
        archive: u64::MAX,
        ..Limits::default()
    };
    let said = |size: u64| {
        let file = file("x", "").pax("size", size.to_string());
        limited(&limits, vec![layer(&tar(&[file]), None)]).unwrap_err()
    };
    // The highest number is that of a hole, and the superblock has a block before the file.
    let most = (u64::from(u32::MAX) - 2) * 4096;
    let refused = "cannot take the layer: the image has more than 17592186036224 bytes in its EROFS image, the limit";
    assert_eq!(said(most + 1), refused);
    // The data that are not in the layer are missed only then.
    let missed = said(most);
    assert!(
        missed.starts_with("the layer is not a valid tar archive"),
        "{missed}"
    );
}

#[test]
fn holes_take_no_blocks() {
    let size = (5 << 30) + 1;
    let pieces: [(u64, &[u8]); 3] = [
        (1 << 30, b"one"),
        ((4 << 30) - 2, b"two four"),
        (size - 1, b"3"),
    ];
    let most = i64::MAX.cast_unsigned();
    let entries = [
        sparse("s", size, &pieces),
        sparse("empty", most, &pieces[..0]),
        file("t", "after"),
    ];
    let image = image_of(&[&entries]);
    let out = tempfile::tempfile().unwrap();
    let made = write_erofs(&image, &Limits::default(), &out).unwrap();
    assert!(made.bytes < 5 << 20, "{}", made.bytes);
    let reader = Reader::open(&out).unwrap();
    let mut seen = 0;
    let walked = reader.walk(|path, inode| {
        let Content::File(place) = &inode.content else {
            return Ok(());
        };
        seen += 1;
        match path {
            b"t" => assert_eq!(std::io::read_to_string(reader.data(place))?, "after"),
            b"empty" => {
                assert_eq!((place.size, reader.blocks(place)?), (most, 0));
                for at in [0, most - 9] {
                    let mut bytes = Vec::new();
                    reader
                        .data_from(place, at)
                        .take(9)
                        .read_to_end(&mut bytes)?;
                    assert_eq!(bytes, [0; 9]);
                }
            }
            _ => {
                assert_eq!(place.size, size);
                // The chunks around a piece, of which all else is zeros.
                for (start, piece) in pieces {
                    let (before, mut bytes) = (start - (1 << 20), Vec::new());
                    let around = reader.data_from(place, before).take(2 << 20);
                    around.chain(&[0; 1 << 20][..]).read_to_end(&mut bytes)?;
                    let end = (1 << 20) + piece.len();
                    assert_eq!(&bytes[1 << 20..end], piece);
                    bytes[1 << 20..end].fill(0);
                    assert!(bytes.iter().all(|&byte| byte == 0), "{start}");
                }
            }
        }
        Ok::<_, crate::erofs::read::Error>(())
    });
    walked.unwrap();
    assert_eq!(seen, 3);
}

#[test]
fn holes_are_counted_where_they_take_memory() {
    let pieces: Vec<_> = (0..500).map(|number| (number << 20, &b"x"[..])).collect();
    let layers = || vec![layer(&tar(&[sparse("s", 500 << 20, &pieces)]), None)];
    let limits = |names| Limits {
        names,
        ..Limits::default()
    };
    assert!(limited(&limits(8001), layers()).is_ok());
    let said = "cannot take \"s\" from the layer: the image has more than 8000 bytes of names and attributes, the limit";
    assert_eq!(limited(&limits(8000), layers()), Err(said.to_owned()));
}

#[test]
fn a_file_may_be_larger_than_an_initramfs_holds() {
    let size: u64 = stress::count(3 << 20, (5 << 30) + 1);
    // The archive has holes on this host's disk, and the layer has none.
    let mut header = file("big", "").pax("size", size.to_string());
    header.header.set_size(0);
    let mut start = Vec::new();
    header.write(&mut start);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&start, 0).unwrap();
    let data = start.len() as u64;
    for (at, bytes) in [(0, &b"first"[..]), (size - 4, b"last")] {
        file.write_all_at(bytes, data + at).unwrap();
    }
    let len = data + size.next_multiple_of(512) + 1024;
    file.set_len(len).unwrap();
    let blob = Blob {
        file: Arc::new(file),
        offset: 0,
        len,
        name: "the layer".to_owned(),
    };
    let image = image(vec![Layer {
        blob,
        diff_id: None,
    }]);
    let out = tempfile::tempfile().unwrap();
    let made = write_erofs(&image, &Limits::default(), &out).unwrap();
    assert_eq!(made.bytes, size.next_multiple_of(4096) + 2 * 4096);
    let mut ends = [[0; 5], [0; 5]];
    out.read_exact_at(&mut ends[0], 4096).unwrap();
    out.read_exact_at(&mut ends[1], 4096 + size - 4).unwrap();
    assert_eq!(ends, [*b"first", *b"last\0"]);
}

#[test]
fn an_output_that_fails_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, "").unwrap();
    let only_read = OsFile::open(path).unwrap();
    for entries in [&[file("a", vec![1; 2 << 20])][..], &[]] {
        let written = write_erofs(&image_of(&[entries]), &Limits::default(), &only_read);
        let error = chain(&written.unwrap_err());
        assert!(
            error.starts_with("cannot write the root file system: "),
            "{error}"
        );
    }
}

//! What tar archives can say.

use super::*;

#[test]
fn long_names_of_gnu_and_pax_are_read() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let target = "t/".repeat(200);
    let pax = [
        file("short", "1").pax("path", &long),
        entry(EntryType::Symlink, "l").pax("linkpath", &target),
    ];
    let gnu = [file(&long, "1"), symlink("l", &target)];
    let expected = [
        format!("{}/", "d".repeat(150)),
        format!("{long}: 1"),
        format!("l -> {target}"),
    ];
    assert_eq!(list(&[&gnu]), expected);
    assert_eq!(list(&[&pax]), expected);
}

#[test]
fn a_ustar_prefix_comes_before_the_name() {
    let mut header = Header::new_ustar();
    let long = format!("{}/{}", "d".repeat(100), "f".repeat(60));
    header.set_path(&long).unwrap();
    header.set_size(0);
    header.set_cksum();
    let tar = [&header.as_bytes()[..], &[0; 1024]].concat();
    let archive = plain(&image(vec![layer(&tar, None)])).unwrap();
    assert_eq!(listing(&archive)[1], format!("{long}: "));
}

#[test]
fn names_are_kept_byte_for_byte() {
    let names = [
        &b"new\nline"[..],
        b"\xff\xfe",
        b"back\\slash",
        b" space ",
        "\u{e9}".as_bytes(),
    ];
    let entries: Vec<_> = names.iter().map(|name| file(name, "")).collect();
    let mut expected: Vec<_> = names
        .iter()
        .map(|name| format!("{}: ", name.escape_ascii()))
        .collect();
    expected.sort();
    let mut list = list(&[&entries]);
    list.sort();
    assert_eq!(list, expected);
}

#[test]
fn a_file_called_like_the_archives_trailer_is_a_file() {
    let list = list(&[&[file("TRAILER!!!", "1"), file("z", "2")]]);
    assert_eq!(list, ["./TRAILER!!!: 1", "z: 2"]);
}

#[test]
fn owners_times_and_sizes_come_from_pax_where_it_has_them() {
    let entry = file("a", "data").owner(1, 2);
    let entry = entry
        .pax("uid", "4000000000")
        .pax("gid", "70000")
        .pax("mtime", "1700000000.75");
    let found = found(&[&[entry]]);
    let a = &found[&b"a"[..]];
    assert_eq!(
        (a.uid, a.gid, a.mtime),
        (4_000_000_000, 70_000, 1_700_000_000)
    );
}

#[test]
fn large_numbers_are_read_from_headers() {
    let found = found(&[&[file("a", "data").owner(4_000_000_000, 3_000_000)]]);
    let a = &found[&b"a"[..]];
    assert_eq!((a.uid, a.gid), (4_000_000_000, 3_000_000));
}

#[test]
fn times_are_clamped_to_what_the_archive_holds() {
    let entries =
        ["-5.5", "99999999999", "4294967295"].map(|time| file(time, "").pax("mtime", time));
    let found = found(&[&entries]);
    let times: Vec<_> = (found.iter().filter(|(_, file)| file.mode == 0o100_644))
        .map(|(_, file)| file.mtime)
        .collect();
    assert_eq!(times, [0, u32::MAX, u32::MAX]);
}

#[test]
fn devices_have_their_numbers() {
    let mut null = entry(EntryType::Char, "dev/null").mode(0o666);
    null.header.set_device_major(1).unwrap();
    null.header.set_device_minor(3).unwrap();
    let mut disk = entry(EntryType::Block, "dev/vda").mode(0o660);
    disk.header.set_device_major(254).unwrap();
    disk.header.set_device_minor(1_000_000).unwrap();
    let list = list(&[&[null, disk, entry(EntryType::Fifo, "p")]]);
    let expected = [
        "dev/",
        "dev/null 20666 (1, 3)",
        "dev/vda 60660 (254, 1000000)",
        "p 10644 (0, 0)",
    ];
    assert_eq!(list, expected);
}

#[test]
fn a_hard_links_size_is_not_data() {
    let mut link = hard("b", "a");
    link.header.set_size(4);
    assert_eq!(
        list(&[&[file("a", "data"), link, file("c", "")]]),
        ["a: data", "b = a", "c: "]
    );
}

#[test]
fn a_file_with_a_slash_after_its_name_is_a_folder_in_archives_of_old() {
    let mut old = entry(EntryType::Regular, "old/");
    old.header.as_old_mut().linkflag = [0];
    let list = list(&[&[old, file("old/x", ""), file("new/", "1")]]);
    assert_eq!(list, ["new: 1", "old/", "old/x: "]);
}

#[test]
fn global_pax_headers_are_ignored() {
    let mut global = file("pax_global_header", record(b"path", b"../evil"));
    global.header.set_entry_type(EntryType::XGlobalHeader);
    assert_eq!(list(&[&[global, file("a", "1")]]), ["a: 1"]);
}

#[test]
fn what_follows_the_end_is_not_read_but_hashed() {
    let mut bytes = tar(&[file("a", "1")]);
    bytes.extend_from_slice(&tar(&[file("b", "2")]));
    let archive = plain(&image(vec![layer(&bytes, Some(digest(&bytes)))])).unwrap();
    assert_eq!(listing(&archive), ["a: 1"]);
}

#[test]
fn an_end_without_zeros_is_taken_where_the_digest_vouches_for_it() {
    let mut bytes = tar(&[file("a", "1")]);
    bytes.truncate(1024);
    let archive = plain(&image(vec![layer(&bytes, Some(digest(&bytes)))])).unwrap();
    assert_eq!(listing(&archive), ["a: 1"]);
    let error = plain(&image(vec![layer(&bytes, None)])).unwrap_err();
    assert_eq!(
        chain(&error),
        "the layer is not a valid tar archive: it ends too early"
    );
}

/// A sparse file of GNU tar with these pieces, each of as many `x` as it is long.
fn sparse(pieces: &[(u64, u64)], size: u64) -> Vec<u8> {
    let mut entry = entry(EntryType::GNUSparse, "s");
    let stored: u64 = pieces.iter().map(|piece| piece.1).sum();
    let gnu = entry.header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    let octal =
        |number: u64| -> [u8; 12] { format!("{number:011o}\0").into_bytes().try_into().unwrap() };
    let set = |place: &mut tar::GnuSparseHeader, piece: &(u64, u64)| {
        place.offset = octal(piece.0);
        place.numbytes = octal(piece.1);
    };
    let (own, more) = pieces.split_at(pieces.len().min(4));
    gnu.sparse
        .iter_mut()
        .zip(own)
        .for_each(|(place, piece)| set(place, piece));
    gnu.set_is_extended(!more.is_empty());
    entry.header.set_size(stored);
    let mut tar = Vec::new();
    block(&mut tar, &mut entry.header, b"s", b"", b"");
    let mut left = more.chunks(21).peekable();
    while let Some(chunk) = left.next() {
        let mut extension = tar::GnuExtSparseHeader::new();
        extension
            .sparse_mut()
            .iter_mut()
            .zip(chunk)
            .for_each(|(place, piece)| set(place, piece));
        extension.set_is_extended(left.peek().is_some());
        tar.extend_from_slice(extension.as_bytes());
    }
    tar.resize(tar.len() + usize::try_from(stored).unwrap(), b'x');
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar.extend_from_slice(&super::tar(&[file("t", "after")]));
    tar
}

#[test]
fn holes_of_sparse_files_are_zeros() {
    let many: Vec<_> = (0..60).map(|piece| (piece * 1000 + 7, 512)).collect();
    for (pieces, size) in [
        (&many[..], 70_000),
        (&[(0, 512)], 512),
        (&[], 5),
        (&[(5, 3), (8, 0)], 8),
    ] {
        let mut expected = vec![0; usize::try_from(size).unwrap()];
        for &(start, len) in pieces {
            let start = usize::try_from(start).unwrap();
            expected[start..start + usize::try_from(len).unwrap()].fill(b'x');
        }
        let tar = sparse(pieces, size);
        let found = read(&plain(&image(vec![layer(&tar, None)])).unwrap());
        assert_eq!(found[&b"s"[..]].data, expected);
        assert_eq!(found[&b"t"[..]].data, b"after");
    }
}

#[test]
fn holes_of_pax_headers_are_zeros() {
    let mut map = b"2\n3\n2\n10\n4\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"ABCDEF");
    let entry = file("GNUSparseFile.0/s", map)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "s")
        .pax("GNU.sparse.realsize", "16");
    let found = found(&[&[entry, file("t", "after")]]);
    assert_eq!(found[&b"s"[..]].data, b"\0\0\0AB\0\0\0\0\0CDEF\0\0");
    assert_eq!(found[&b"t"[..]].data, b"after");
}

#[test]
fn maps_that_make_no_sense_are_refused() {
    let bad: [(&[_], _); 4] = [
        (&[(0, 512), (100, 512)], 2000),
        (&[(0, 512)], 100),
        (&[(1 << 32, 1)], 10),
        (&[(1000, 512), (0, 512)], 2000),
    ];
    for (pieces, size) in bad {
        let error = plain(&image(vec![layer(&sparse(pieces, size), None)])).unwrap_err();
        assert_eq!(
            chain(&error),
            "cannot take \"s\" from the layer: its map of holes can't be read"
        );
    }
    let old = file("s", "data")
        .pax("GNU.sparse.map", "0,4")
        .pax("GNU.sparse.size", "4");
    assert!(refusal(&[&[old]]).ends_with("its map of holes can't be read"));
}

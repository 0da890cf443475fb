//! Layers that mean harm, or are broken: each is refused in words that name the layer, the entry and what is wrong.

use proptest::prelude::*;

use super::output::{gzip, zstd};
use super::*;

/// The refusal of a layer of these bytes.
fn refused(bytes: &[u8], diff_id: Option<String>) -> String {
    chain(&plain(&image(vec![layer(bytes, diff_id)])).unwrap_err())
}

#[test]
fn paths_that_lead_upwards_are_refused() {
    let said = |path| format!("cannot take {path:?} from the layer: its path has a .. in it");
    for path in ["../x", "a/../../x", "..", "/../x"] {
        assert_eq!(refusal(&[&[file(path, "")]]), said(path));
        assert_eq!(refusal(&[&[file("a", ""), hard("l", path)]]), said("l"));
    }
    for name in [".wh...", "a/.wh...", ".wh..", ".wh."] {
        assert!(
            refusal(&[&[folder("a"), file(name, "")]]).ends_with("it names no file"),
            "{name}"
        );
    }
}

#[test]
fn absolute_paths_are_below_the_root() {
    assert_eq!(
        list(&[&[file("///etc/x", "1"), hard("/y", "//etc/x")]]),
        ["etc/", "etc/x: 1", "y = etc/x"]
    );
}

#[test]
fn names_that_linux_does_not_have_are_refused() {
    let cases = [
        (file("", ""), "it names no file"),
        (file("./", "x").link("t"), "it names no file"),
        (symlink("/", "t"), "it names no file"),
        (symlink("l", ""), "it names no file"),
        (
            file("x", "").pax("path", "a\0b"),
            "its name or its target has a NUL in it",
        ),
        (
            symlink("l", "t").pax("linkpath", "a\0b"),
            "its name or its target has a NUL in it",
        ),
        (
            file("n".repeat(256), ""),
            "its path is longer than 4095 bytes, or a part of it than 255",
        ),
        (
            file("n/".repeat(2048) + "n", ""),
            "its path is longer than 4095 bytes, or a part of it than 255",
        ),
        (
            symlink("l", "t".repeat(4096)),
            "its path is longer than 4095 bytes, or a part of it than 255",
        ),
    ];
    for (entry, said) in cases {
        let refusal = refusal(&[&[entry]]);
        assert!(refusal.starts_with("cannot take \""), "{refusal}");
        assert!(
            refusal.ends_with(&format!("\" from the layer: {said}")),
            "{refusal}"
        );
    }
}

#[test]
fn paths_that_become_too_long_by_way_of_links_are_refused() {
    let deep = "d/".repeat(2000);
    let entries = [
        folder(&deep),
        symlink("l", &deep),
        file("l/e/".to_owned() + &"n".repeat(100), ""),
    ];
    assert!(
        refusal(&[&entries])
            .ends_with("its path is longer than 4095 bytes, or a part of it than 255")
    );
    let implied = [symlink("m", "n".repeat(256)), file("m/x", "")];
    assert!(
        refusal(&[&implied])
            .ends_with("its path is longer than 4095 bytes, or a part of it than 255")
    );
}

#[test]
fn hard_links_to_nowhere_and_to_folders_are_refused() {
    let cases = [
        ("no", "isn't there"),
        ("x/no", "isn't there"),
        ("d/no", "isn't there"),
        ("d", "is a folder"),
        (".", "isn't there"),
    ];
    for (target, said) in cases {
        let refusal = refusal(&[&[file("x", ""), folder("d"), hard("l", target)]]);
        let shown = if target == "." { "" } else { target };
        let expected = format!(
            "cannot take \"l\" from the layer: it is a hard link to {shown:?}, which {said}"
        );
        assert_eq!(refusal, expected);
    }
    let hidden = [file(".wh.x", ""), hard("l", "x")];
    assert!(refusal(&[&[file("x", "")], &hidden]).ends_with("which isn't there"));
}

#[test]
fn links_that_go_round_in_circles_are_refused() {
    let said =
        "cannot take \"a/x\" from the layer: its path leads through more than 40 symbolic links";
    assert_eq!(
        refusal(&[&[symlink("a", "b"), symlink("b", "a"), file("a/x", "")]]),
        said
    );
    assert_eq!(refusal(&[&[symlink("a", "./a/a"), file("a/x", "")]]), said);
    let chain = |links: u32| -> Vec<_> {
        let steps = (1..=links).map(|link| symlink(link.to_string(), (link - 1).to_string()));
        steps.chain([file(format!("{links}/x"), "")]).collect()
    };
    assert!(list(&[&chain(40)]).contains(&"0/x: ".to_owned()));
    assert!(refusal(&[&chain(41)]).ends_with("more than 40 symbolic links"));
}

#[test]
fn a_file_below_a_file_is_refused() {
    let said = "cannot take \"a/b/c\" from the layer: \"a/b\" is not a folder";
    assert_eq!(refusal(&[&[file("a/b", "")], &[file("a/b/c", "")]]), said);
}

#[test]
fn names_reserved_for_minivm_are_refused() {
    let said =
        |path| format!("cannot take {path:?} from the layer: the name is reserved for minivm");
    for path in [".minivm", ".minivm/x"] {
        assert_eq!(refusal(&[&[file(path, "")]]), said(path));
    }
    assert_eq!(
        refusal(&[&[file("x", ""), hard("/.minivm", "x")]]),
        said(".minivm")
    );
    assert_eq!(
        refusal(&[&[symlink("a", "/.minivm"), file("a/x", "")]]),
        said("a/x")
    );
    assert_eq!(list(&[&[file("a/.minivm", "")]]), ["a/", "a/.minivm: "]);
}

#[test]
fn unknown_types_of_entries_are_refused() {
    let said = "cannot take \"v\" from the layer: it has the type 'V', which no image has";
    assert_eq!(refusal(&[&[entry(EntryType::new(b'V'), "v")]]), said);
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    for id in ["4294967295", "99999999999", "-1"] {
        let said = format!("cannot take \"a\" from the layer: its owner {id} doesn't fit 32 bits");
        assert_eq!(refusal(&[&[file("a", "").pax("uid", id)]]), said);
    }
    let mut mode = file("a", "");
    mode.header.as_old_mut().mode = *b"rwxr-xr-";
    assert!(refusal(&[&[mode]]).ends_with("the mode in its header is not a valid number"));
    for size in [&b"zzz"[..], &[0xff; 12]] {
        let mut header = entry(EntryType::Regular, "a");
        header.header.as_old_mut().size[..size.len()].copy_from_slice(size);
        header.header.as_old_mut().name[0] = b'a';
        header.header.set_cksum();
        let refusal = refused(header.header.as_bytes(), None);
        assert_eq!(
            refusal,
            "cannot take \"a\" from the layer: the size in its header is not a valid number"
        );
    }
}

#[test]
fn a_file_of_4_gib_is_refused_by_its_header() {
    let big = file("big", "").pax("size", (1u64 << 32).to_string());
    let said = "cannot take \"big\" from the layer: it has 4294967296 bytes, an initramfs holds files of less than 4 GiB";
    assert_eq!(refusal(&[&[big]]), said);
}

#[test]
fn attributes_that_linux_would_not_take_are_refused() {
    let long = "n".repeat(256);
    let cases = [("", 1), ("a\0b", 1), (&long, 1), ("user.a", 65537)];
    for (name, size) in cases {
        let refusal = refusal(&[&[file("a", "").xattr(name, vec![b'v'; size])]]);
        assert!(
            refusal.ends_with("has a bad name, or more than 64 KiB"),
            "{refusal}"
        );
    }
}

#[test]
fn a_truncated_layer_is_refused_wherever_it_ends() {
    let bytes = tar(&[
        file("a", [b'x'; 3000]),
        file("n".repeat(200), "").xattr("user.a", "1"),
        file("b", "1"),
    ]);
    let whole = digest(&bytes);
    let end = bytes.len() - 1024;
    for cut in (0..end).step_by(100).chain([512, end]) {
        let said = "the layer is not a valid tar archive: it ends too early";
        assert_eq!(refused(&bytes[..cut], None), said, "{cut}");
        assert!(
            plain(&image(vec![layer(&bytes[..cut], Some(whole.clone()))])).is_err(),
            "{cut}"
        );
    }
    for packed in [gzip(&bytes), zstd(&bytes)] {
        for cut in (20..packed.len()).step_by(7) {
            let error = plain(&image(vec![layer(&packed[..cut], None)])).unwrap_err();
            assert!(
                chain(&error).starts_with("the layer is not a valid tar")
                    || chain(&error).starts_with("cannot read the layer: "),
                "{error}"
            );
        }
    }
}

#[test]
fn a_file_that_is_shorter_than_its_layer_is_refused() {
    let mut cut = layer(&tar(&[file("a", "1")]), None);
    cut.blob.len += 1000;
    let error = plain(&image(vec![cut])).unwrap_err();
    assert_eq!(
        chain(&error),
        "the layer is not a valid tar archive: it ends too early"
    );
}

#[test]
fn a_layer_with_another_digest_is_refused() {
    let bytes = tar(&[file("a", "1")]);
    let other = digest(b"other");
    let said = format!(
        "the layer has the digest {} when it is decompressed, not {other}",
        digest(&bytes)
    );
    assert_eq!(refused(&gzip(&bytes), Some(other)), said);
}

#[test]
fn files_that_are_not_archives_are_refused() {
    let said =
        |at| format!("the layer is not a valid tar archive: there is no tar header at byte {at}");
    assert_eq!(refused(&[b'x'; 2048], None), said(0));
    let mut flipped = tar(&[file("a", "1"), file("b", "2")]);
    flipped[1024] ^= 1;
    assert_eq!(refused(&flipped, None), said(1024));
    let mut after_zeros = tar(&[file("a", "1")]);
    after_zeros[1536] = b'x';
    assert_eq!(refused(&after_zeros, None), said(1024));
    assert!(refused(b"\x1f\x8bnot gzip", None).starts_with("cannot read the layer: "));
}

#[test]
fn other_compressions_are_refused_by_name() {
    let said = |format| {
        format!(
            "the layer is compressed with {format}; gzip, zstd, xz, bzip2 and plain tar archives can be read"
        )
    };
    assert_eq!(refused(b"LZIP\x01", None), said("lzip"));
    assert_eq!(refused(b"\x1f\x9d\x90", None), said("compress"));
    for broken in [&b"\xfd7zXZ\0\0\0"[..], b"BZh91AY&SY"] {
        let error = refused(&[broken, &[0xff; 40]].concat(), None);
        assert!(error.starts_with("cannot read the layer: "), "{error}");
    }
}

#[test]
fn bad_records_are_refused() {
    let mut bad = file("pax", "5 nonsense");
    bad.header.set_entry_type(EntryType::XHeader);
    let said = "the layer is not a valid tar archive: the extended header before byte 1536 has a bad record";
    assert_eq!(refusal(&[&[bad, file("a", "")]]), said);
}

#[test]
fn an_extended_header_without_an_entry_is_refused() {
    let mut last = file("pax", record(b"path", b"x"));
    last.header.set_entry_type(EntryType::XHeader);
    assert!(refusal(&[&[last]]).ends_with("it ends too early"));
}

#[test]
fn an_error_stays_on_one_line() {
    let refusal = refusal(&[&[file("../new\nline\x1b[31m", "")]]);
    assert!(
        refusal.chars().all(|char| !char.is_control()),
        "{refusal:?}"
    );
}

#[test]
fn a_layer_that_changes_after_it_was_checked_is_refused() {
    use std::os::unix::fs::FileExt;
    let layer = layer(&tar(&[file("a", "first")]), None);
    let budget = Budget::new(&Limits::default());
    let layers = std::slice::from_ref(&layer);
    let mut tree = Tree::new(&budget);
    let mut digests = Vec::new();
    for found in scan::all(layers, &budget).unwrap() {
        apply::layer(&mut tree, 0, "", found.entries).unwrap();
        digests.push(found.digest);
    }
    let write = || {
        let mut archive = Archive::new(Vec::new());
        Names::new(&tree).write(layers, &digests, &Limits::default(), &mut archive)
    };
    write().unwrap();
    let same_size = tar(&[file("a", "other")]);
    let mut behind = tar(&[file("a", "first")]);
    *behind.last_mut().unwrap() = 1;
    for change in [
        same_size,
        behind,
        tar(&[file("a", "other size")]),
        tar(&[folder("a")]),
    ] {
        layer.blob.file.write_all_at(&change, 6).unwrap();
        let error = write().unwrap_err();
        assert_eq!(chain(&error), "the layer has changed while it was read");
    }
}

proptest! {
    /// Whatever bytes a layer has, it is taken or refused, and the refusal has a text.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), magic in 0..4usize) {
        let start: [&[u8]; 4] = [b"", b"\x1f\x8b\x08\0\0\0\0\0\0\x03", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"];
        let bytes = [start[magic], &bytes].concat();
        if let Err(error) = plain(&image(vec![layer(&bytes, None)])) {
            prop_assert!(!chain(&error).is_empty());
        }
    }

    /// Sound archives with some bytes changed get further into the reader.
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = tar(&[
            folder("d"), file("d/f", "data").xattr("user.a", "1"), hard("h", "d/f"), symlink("s", "d"),
            file("s/n", "x".repeat(600)), file(".wh.x", ""), entry(EntryType::GNUSparse, "sparse"),
        ]);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
            // Mended checksums, or little else would be tested.
            let block = at / 512 * 512;
            let mut header = Header::from_byte_slice(&bytes[block..block + 512]).clone();
            header.set_cksum();
            bytes[block..block + 512].copy_from_slice(header.as_bytes());
        }
        if let Err(error) = plain(&image(vec![layer(&bytes, None)])) {
            prop_assert!(!chain(&error).is_empty());
        }
    }
}

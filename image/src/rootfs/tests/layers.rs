//! What layers do to each other.

use super::*;

#[test]
fn a_whiteout_hides_a_file_and_a_whole_folder() {
    let lower = [
        folder("a"),
        file("a/x", "1"),
        file("a/y", "2"),
        file("b", "3"),
    ];
    assert_eq!(
        list(&[&lower, &[file("a/.wh.x", "")]]),
        ["a/", "a/y: 2", "b: 3"]
    );
    assert_eq!(list(&[&lower, &[file(".wh.a", "")]]), ["b: 3"]);
}

#[test]
fn a_whiteout_spares_its_own_layer_wherever_it_stands() {
    let lower = [folder("a"), file("a/x", "old"), file("a/y", "old")];
    let new = [folder("a"), file("a/x", "new"), folder("a/z")];
    for hiding in ["a/.wh..wh..opq", ".wh.a"] {
        for place in 0..=new.len() {
            let mut upper = new.to_vec();
            upper.insert(place, file(hiding, ""));
            let expected = ["a/", "a/x: new", "a/z/"];
            assert_eq!(list(&[&lower, &upper]), expected, "{hiding} at {place}");
        }
    }
}

#[test]
fn an_opaque_folder_hides_what_is_below_and_keeps_its_own_attributes() {
    let lower = [
        folder("a").mode(0o700).owner(5, 6),
        file("a/x", ""),
        folder("a/b"),
        file("a/b/c", ""),
    ];
    let found = found(&[&lower, &[file("a/.wh..wh..opq", ""), file("a/new", "n")]]);
    let names: Vec<_> = found.keys().filter(|name| name.starts_with(b"a")).collect();
    assert_eq!(names, [&b"a"[..], b"a/new"]);
    let a = &found[&b"a"[..]];
    assert_eq!((a.mode, a.uid, a.gid), (0o040_700, 5, 6));
}

#[test]
fn a_whiteout_of_what_is_not_there_does_nothing() {
    let lower = [file("x", "1"), folder("d")];
    let upper = [
        file("d/.wh.no", ""),
        file("x/.wh.no", ""),
        file("no/.wh..wh..opq", ""),
    ];
    assert_eq!(list(&[&lower, &upper]), ["d/", "x: 1"]);
}

#[test]
fn other_names_of_aufs_are_ignored() {
    let entries = [
        folder(".wh..wh.plnk"),
        file(".wh..wh.plnk/1.2", ""),
        file("a/.wh..wh.aufs", ""),
    ];
    assert_eq!(list(&[&entries]), [""; 0]);
}

#[test]
fn a_whiteout_goes_through_a_lower_layers_link() {
    let lower = [
        symlink("bin", "usr/bin"),
        folder("usr"),
        folder("usr/bin"),
        file("usr/bin/sh", ""),
    ];
    let expected = ["bin -> usr/bin", "usr/", "usr/bin/"];
    assert_eq!(list(&[&lower, &[file("bin/.wh.sh", "")]]), expected);
}

#[test]
fn a_whiteout_in_a_folder_that_replaces_a_link_leaves_the_links_target_alone() {
    let lower = [symlink("l", "d"), folder("d"), file("d/x", "1")];
    let upper = [file("l/.wh.x", ""), folder("l")];
    assert_eq!(list(&[&lower, &upper]), ["d/", "d/x: 1", "l/"]);
}

#[test]
fn a_folder_over_a_folder_keeps_its_content_and_takes_the_new_attributes() {
    let lower = [
        folder("a").mode(0o700).xattr("user.old", "1"),
        file("a/x", "1"),
    ];
    let upper = [folder("a").mode(0o1777).owner(7, 8)];
    let archive = plain(&image_of(&[&lower, &upper])).unwrap();
    let found = read(&archive);
    let a = &found[&b"a"[..]];
    assert_eq!((a.mode, a.uid, a.gid), (0o041_777, 7, 8));
    assert!(found.contains_key(&b"a/x"[..]));
    assert_eq!(manifest(&archive).xattrs, []);
}

#[test]
fn anything_else_replaces_what_was_there() {
    let full = [folder("a"), file("a/x", "1")];
    let cases = [
        (file("a", "2"), "a: 2"),
        (symlink("a", "t"), "a -> t"),
        (entry(EntryType::Fifo, "a"), "a 10644 (0, 0)"),
    ];
    for (upper, expected) in &cases {
        assert_eq!(list(&[&full, std::slice::from_ref(upper)]), [*expected]);
        assert_eq!(
            list(&[std::slice::from_ref(upper), &full]),
            ["a/", "a/x: 1"]
        );
        for (lower, _) in &cases {
            assert_eq!(list(&[&[lower.clone(), upper.clone()]]), [*expected]);
        }
    }
}

#[test]
fn a_link_that_an_entry_is_named_like_is_replaced_not_followed() {
    let lower = [
        folder("d"),
        symlink("l", "d"),
        symlink("f", "g"),
        file("g", "1"),
    ];
    let upper = [folder("l"), file("l/x", "2"), file("f", "3")];
    assert_eq!(
        list(&[&lower, &upper]),
        ["d/", "f: 3", "g: 1", "l/", "l/x: 2"]
    );
}

#[test]
fn links_on_the_way_are_followed_inside_the_root() {
    let lower = [
        folder("usr"),
        folder("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("usr/abs", "/usr/lib"),
        symlink("usr/lib/up", "../../../../usr"),
        symlink("dangling", "made/below"),
    ];
    let upper = [
        file("lib/a", "1"),
        file("usr/abs/b", "2"),
        file("lib/up/c", "3"),
        file("dangling/d", "4"),
        file("/lib/up/./abs/up//e", "5"),
    ];
    let list = list(&[&lower, &upper]);
    let files: Vec<_> = list.iter().filter(|line| line.contains(':')).collect();
    let expected = [
        "made/below/d: 4",
        "usr/c: 3",
        "usr/e: 5",
        "usr/lib/a: 1",
        "usr/lib/b: 2",
    ];
    assert_eq!(files, expected);
}

#[test]
fn folders_without_an_entry_are_roots_and_0755() {
    let found = found(&[&[file("a/b/c", "").mode(0o600).owner(1, 1)]]);
    for name in [".", "a", "a/b"] {
        let folder = &found[name.as_bytes()];
        assert_eq!(
            (folder.mode, folder.uid, folder.gid),
            (0o040_755, 0, 0),
            "{name}"
        );
    }
}

#[test]
fn the_roots_own_entry_sets_its_attributes() {
    let root = folder("./").mode(0o711).owner(3, 4).xattr("user.r", "v");
    let archive = plain(&image_of(&[&[root, file("./a", "")]])).unwrap();
    let root = &read(&archive)[&b"."[..]];
    assert_eq!((root.mode, root.uid, root.gid), (0o040_711, 3, 4));
    assert_eq!(manifest(&archive).xattrs[0].path, b"");
}

#[test]
fn the_later_of_two_entries_in_a_layer_wins() {
    assert_eq!(list(&[&[file("a", "1"), file("./a", "2")]]), ["a: 2"]);
    assert_eq!(
        list(&[&[folder("a"), file("a/b", ""), file("a", "2")]]),
        ["a: 2"]
    );
}

#[test]
fn hard_links_stay_hard_links() {
    let found = found(&[&[
        file("b", "data").mode(0o4755),
        hard("c", "b"),
        hard("a", "/c"),
    ]]);
    let (a, b, c) = (&found[&b"a"[..]], &found[&b"b"[..]], &found[&b"c"[..]]);
    assert_eq!((a, b), (b, c));
    assert_eq!((a.links, &*a.data, a.mode), (3, &b"data"[..], 0o104_755));
}

#[test]
fn a_hard_link_keeps_the_data_of_a_name_that_is_gone() {
    let lower = [file("a", "data"), hard("b", "a"), hard("c", "b")];
    assert_eq!(list(&[&lower, &[file(".wh.a", "")]]), ["b: data", "c = b"]);
    assert_eq!(
        list(&[&lower, &[file("a", "new")]]),
        ["a: new", "b: data", "c = b"]
    );
    let one = found(&[&lower, &[file(".wh.a", ""), folder("b")]]);
    assert_eq!(one[&b"c"[..]].links, 1);
}

#[test]
fn a_hard_link_reaches_into_lower_layers_and_through_links() {
    let lower = [
        symlink("bin", "usr/bin"),
        file("usr/bin/x", "data"),
        symlink("s", "nowhere"),
    ];
    let upper = [hard("usr/y", "bin/x"), hard("t", "s")];
    let expected = [
        "bin -> usr/bin",
        "s -> nowhere",
        "t -> nowhere",
        "usr/",
        "usr/bin/",
        "usr/bin/x: data",
        "usr/y = usr/bin/x",
    ];
    assert_eq!(list(&[&lower, &upper]), expected);
}

#[test]
fn a_hard_link_to_itself_changes_nothing() {
    assert_eq!(list(&[&[file("a", "1"), hard("a", "a")]]), ["a: 1"]);
}

#[test]
fn empty_files_with_several_names_are_one_file() {
    assert_eq!(
        list(&[&[file("a", ""), hard("b", "a"), file("c", "")]]),
        ["a: ", "b = a", "c: "]
    );
}

#[test]
fn an_images_own_init_is_moved() {
    let text = |archive: &[u8], name: &str| read(archive)[name.as_bytes()].data.clone();
    let archive = plain(&image_of(&[&[
        file("init", "theirs"),
        hard("sbin/init", "init"),
    ]]))
    .unwrap();
    assert_eq!(text(&archive, "init"), b"our init");
    assert_eq!(
        listing(&archive),
        [".minivm/init: theirs", "sbin/", "sbin/init = .minivm/init"]
    );
    let folder = [folder("init"), file("init/a", "1"), file("initial", "2")];
    let archive = plain(&image_of(&[&folder])).unwrap();
    assert_eq!(
        listing(&archive),
        [".minivm/init/", ".minivm/init/a: 1", "initial: 2"]
    );
    assert_eq!(read(&archive)[&b"init"[..]].mode, 0o100_755);
}

#[test]
fn the_manifest_has_what_the_image_says() {
    let mut image = image_of(&[&[
        file("init", "").xattr("user.a", b"\0\n=\xff"),
        file("z", "")
            .xattr("security.capability", b"\x01\0\0\x02")
            .xattr("user.n", ""),
        hard("y", "z"),
    ]]);
    image.config = Config {
        entrypoint: vec!["/e".into(), "1".into()],
        cmd: vec!["2".into()],
        env: vec!["A=b".into()],
        working_dir: "/w".into(),
        user: "u:g".into(),
        ..Config::default()
    };
    let xattr = |path: &str, name: &str, value: &[u8]| Xattr {
        path: path.into(),
        name: name.into(),
        value: value.into(),
    };
    let expected = Manifest {
        argv: vec![b"/e".into(), b"1".into(), b"2".into()],
        env: vec![b"A=b".into()],
        cwd: b"/w".into(),
        user: "u:g".into(),
        xattrs: vec![
            xattr("init", "user.a", b"\0\n=\xff"),
            xattr("y", "security.capability", b"\x01\0\0\x02"),
            xattr("y", "user.n", b""),
        ],
    };
    assert_eq!(manifest(&plain(&image).unwrap()), expected);
}

#[test]
fn every_name_is_counted() {
    let image = image_of(&[&[file("a/b", ""), hard("c", "a/b"), symlink("d", "c")]]);
    let summary = write(
        &image,
        b"",
        Compression::None,
        &Limits::default(),
        Vec::new(),
    );
    assert_eq!(summary.unwrap().files, 4);
}

#[test]
fn an_image_without_layers_has_an_empty_root() {
    assert_eq!(list(&[]), [""; 0]);
    assert_eq!(list(&[&[]]), [""; 0]);
}

//! How far an image gets.

use super::output::{gzip, zstd};
use super::*;

fn limited(limits: &Limits, layers: Vec<Layer>) -> Result<Summary, String> {
    let image = image(layers);
    write(&image, b"", Compression::None, limits, std::io::sink()).map_err(|error| chain(&error))
}

fn layer_of(entries: &[Entry]) -> Layer {
    layer(&tar(entries), None)
}

#[test]
fn a_bomb_is_refused_before_it_has_expanded() {
    // A terabyte would take minutes: what is refused here was not expanded.
    let mut member = gzip(&vec![0; 64 << 20]);
    while member.len() < 1 << 20 {
        member.extend_from_within(..);
    }
    let bombs = [member, zstd(&vec![0; 256 << 20])];
    for bomb in bombs {
        let limits = Limits {
            expanded: 8 << 20,
            ..Limits::default()
        };
        let said = "cannot take the layer: the image has more than 8388608 bytes, the limit";
        assert_eq!(
            limited(&limits, vec![layer(&bomb, None)]),
            Err(said.to_owned())
        );
    }
}

#[test]
fn the_limit_is_for_all_layers_together() {
    let layers = || {
        vec![
            layer_of(&[file("a", [0; 4096])]),
            layer_of(&[file("b", [0; 4096])]),
        ]
    };
    let limits = |expanded| Limits {
        expanded,
        ..Limits::default()
    };
    let size = 2 * (512 + 4096 + 1024);
    assert!(limited(&limits(size), layers()).is_ok());
    let refused = limited(&limits(size - 1), layers()).unwrap_err();
    assert!(
        refused.ends_with("more than 11263 bytes, the limit"),
        "{refused}"
    );
}

#[test]
fn an_archive_that_is_too_large_is_refused_before_it_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), [0; 5000]).unwrap();
    std::fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
    let entries = [file("a", [0; 5000]), hard("b", "a")];
    let roots = [
        Root::Folder(folder.path().to_owned()),
        Root::Layers(vec![layer_of(&entries)]),
    ];
    for root in roots {
        let image = Image {
            root,
            ..image(Vec::new())
        };
        let mut out = Vec::new();
        let mut write = |archive| {
            let limits = Limits {
                archive,
                ..Limits::default()
            };
            let written = write(&image, b"", Compression::None, &limits, &mut out);
            written.map_err(|error| chain(&error))
        };
        let said = "the image has more than 4999 bytes in its archive, the limit";
        assert_eq!(write(4999), Err(format!("cannot take the image: {said}")));
        // The data are there once.
        assert!(write(9000).is_ok());
        assert!(out.starts_with(b"070701"));
    }
}

#[test]
fn holes_count_in_the_archive() {
    let mut entry = entry(EntryType::GNUSparse, "s");
    entry
        .header
        .as_gnu_mut()
        .unwrap()
        .set_real_size(u64::from(u32::MAX));
    entry.header.set_size(0);
    let limits = Limits {
        expanded: 1 << 20,
        ..Limits::default()
    };
    let refused = limited(&limits, vec![layer_of(&[entry])]).unwrap_err();
    assert!(
        refused.ends_with("the image has more than 1048576 bytes in its archive, the limit"),
        "{refused}"
    );
}

#[test]
fn entries_and_the_folders_they_imply_are_counted() {
    let entries = [file("a/b/c", ""), file("d", "")];
    let limits = |entries| Limits {
        entries,
        ..Limits::default()
    };
    assert!(limited(&limits(4), vec![layer_of(&entries)]).is_ok());
    let said = "cannot take \"a/b/c\" from the layer: the image has more than 3 files and folders, the limit";
    assert_eq!(
        limited(&limits(3), vec![layer_of(&entries)]),
        Err(said.to_owned())
    );
}

#[test]
fn names_targets_and_attributes_are_counted() {
    let entries = [symlink("1234", "567"), file("8", "").xattr("90", "123")];
    let limits = |names| Limits {
        names,
        ..Limits::default()
    };
    assert!(limited(&limits(77), vec![layer_of(&entries)]).is_ok());
    let refused = limited(&limits(76), vec![layer_of(&entries)]).unwrap_err();
    assert!(
        refused.ends_with("more than 76 bytes of names and attributes, the limit"),
        "{refused}"
    );
}

#[test]
fn headers_that_claim_gigabytes_are_refused_unread() {
    for kind in [
        EntryType::XHeader,
        EntryType::GNULongName,
        EntryType::GNULongLink,
    ] {
        let mut header = entry(kind, "x").header;
        header.set_size(4 << 30);
        header.set_cksum();
        let refused = limited(&Limits::default(), vec![layer(header.as_bytes(), None)]);
        let said = "the layer is not a valid tar archive: the extended header at byte 512 is longer than 1048576 bytes, the limit";
        assert_eq!(refused, Err(said.to_owned()));
    }
}

#[test]
fn paths_through_many_links_are_counted() {
    let target = "./".repeat(2000);
    let link = |link: u32| symlink(link.to_string(), target.clone() + &(link - 1).to_string());
    let links: Vec<_> = [folder("0")]
        .into_iter()
        .chain((1..=39).map(link))
        .collect();
    let files: Vec<_> = (0..10).map(|name| file(format!("39/{name}"), "")).collect();
    let hiding: Vec<_> = (0..100)
        .map(|name| file(format!("39/no/.wh.{name}"), ""))
        .collect();
    let limits = Limits {
        entries: 1000,
        ..Limits::default()
    };
    for upper in [files, hiding] {
        let refused = limited(&limits, vec![layer_of(&links), layer_of(&upper)]).unwrap_err();
        let said = "more than 16000 steps along symbolic links, the limit";
        assert!(refused.ends_with(said), "{refused}");
    }
}

//! The archive's bytes, compared with the format's description.

use minivm_tests::cpio::entries;

use super::*;

#[test]
fn a_file_is_its_header_name_and_data_padded_to_four() {
    let mut archive = Archive::new(Vec::new());
    let attributes = Attributes {
        permissions: 0o640,
        uid: 1,
        gid: 0x10,
        mtime: 0x6000_0000,
    };
    archive
        .file("/hi", attributes, 5, &b"12345 not this"[..])
        .unwrap();
    let bytes = archive.finish().unwrap();
    let expected = [
        "070701",   // magic
        "00000001", // inode
        "000081a0", // a regular file, 0640
        "00000001", // user
        "00000010", // group
        "00000001", // links
        "60000000", // time
        "00000005", // size
        "00000000",
        "00000000",
        "00000000",
        "00000000",   // devices
        "00000003",   // name and NUL
        "00000000",   // checksum
        "hi\0\0\0\0", // 110 + 3, padded to 116
        "12345\0\0\0",
    ]
    .concat();
    assert_eq!(&bytes[..expected.len()], expected.as_bytes());
}

#[test]
fn an_empty_archive_is_its_trailer() {
    let bytes = Archive::new(Vec::new()).finish().unwrap();
    assert_eq!(bytes.len(), 124);
    assert_eq!(&bytes[110..], b"TRAILER!!!\0\0\0\0");
}

#[test]
fn every_kind_of_entry_is_read_back() {
    let mut archive = Archive::new(Vec::new());
    archive.directory("d", Attributes::new(0o1777)).unwrap();
    archive
        .node(
            "d/tty",
            Node::CharDevice { major: 5, minor: 1 },
            Attributes::new(0o600),
        )
        .unwrap();
    archive
        .symlink("d/l", "../tty", Attributes::new(0o777))
        .unwrap();
    let file = archive
        .linked_file("a", Attributes::new(0o755), 2, 3, &b"abc"[..])
        .unwrap();
    archive.hard_link("b", file).unwrap();
    let bytes = archive.finish().unwrap();
    let entry = |name: &str, mode, inode, links, data: &[u8]| {
        (name.to_owned(), mode, inode, links, data.to_vec())
    };
    assert_eq!(
        entries(&bytes),
        [
            entry("d", 0o041_777, 1, 2, b""),
            entry("d/tty", 0o020_600, 2, 1, b""),
            entry("d/l", 0o120_777, 3, 1, b"../tty"),
            entry("a", 0o100_755, 4, 2, b"abc"),
            entry("b", 0o100_755, 4, 2, b""),
        ]
    );
}

#[test]
fn a_file_of_4_gib_is_refused() {
    let mut archive = Archive::new(Vec::new());
    let error = archive
        .file("big", Attributes::new(0o644), 1 << 32, io::empty())
        .unwrap_err();
    assert!(matches!(
        error,
        Error::TooLarge {
            size: 0x1_0000_0000,
            ..
        }
    ));
}

#[test]
fn a_file_that_ends_early_is_refused() {
    let mut archive = Archive::new(Vec::new());
    let error = archive
        .file("f", Attributes::new(0o644), 4, &b"abc"[..])
        .unwrap_err();
    assert_eq!(error.to_string(), "f ended after 3 of 4 bytes");
}

#[test]
fn names_linux_would_skip_are_refused() {
    let mut archive = Archive::new(io::sink());
    let fits = "n".repeat(4095);
    archive.directory(&fits, Attributes::new(0o755)).unwrap();
    let too_long = "n".repeat(4096);
    assert!(matches!(
        archive.directory(&too_long, Attributes::new(0o755)),
        Err(Error::TooLong { .. })
    ));
    assert!(matches!(
        archive.directory("/", Attributes::new(0o755)),
        Err(Error::BadName { .. })
    ));
    let target = "t".repeat(4097);
    assert!(matches!(
        archive.symlink("l", target, Attributes::new(0o777)),
        Err(Error::TooLong { .. })
    ));
}

#[test]
fn a_file_may_be_called_as_the_trailer_is() {
    let mut archive = Archive::new(Vec::new());
    archive
        .file(TRAILER, Attributes::new(0o644), 1, &b"x"[..])
        .unwrap();
    archive.directory("after", Attributes::new(0o755)).unwrap();
    let names: Vec<_> = entries(&archive.finish().unwrap())
        .into_iter()
        .map(|entry| entry.0)
        .collect();
    assert_eq!(names, ["./TRAILER!!!", "after"]);
}

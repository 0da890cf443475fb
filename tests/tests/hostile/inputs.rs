//! The bodies of the fuzz targets, run in a loop: with inputs that are good ones changed in a few places, or noise.
//!
//! That finds less than cargo-fuzz does, which looks for inputs that reach new code, but it needs no nightly compiler.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minivm_guest::channel::{Hello, STDIN_WINDOW, ToHost, VERSION};
use minivm_guest::newc::{Archive, Attributes};
use minivm_tests::stress::{self, Random};

#[path = "../../../fuzz/bodies/frames.rs"]
mod frames;
#[path = "../../../fuzz/bodies/layer.rs"]
mod layer;
#[path = "../../../fuzz/bodies/session.rs"]
mod session;
#[path = "../../../fuzz/bodies/unpack.rs"]
mod unpack;

/// Changes of one input, at most.
const CHANGES_MAX: usize = 8;

/// What formats have in the place of lengths and counts.
const WORDS: [&[u8]; 7] = [
    &[0; 8],
    &[0xff; 8],
    b"00000000",
    b"FFFFFFFF",
    b"80000000",
    b"77777777777",
    &[0x80, 0x80, 0x80, 0x80, 0x7f],
];

/// Runs a target with inputs made of a good one.
fn try_out(target: impl Fn(&[u8]), good: &[u8]) {
    let mut random = Random::default();
    target(good);
    for number in 0..stress::count(300, 100_000) {
        let input = match random.below(16) {
            0 => {
                let len = random.below(300);
                random.bytes(len)
            }
            _ => changed(good, &mut random),
        };
        let seed = stress::seed();
        let ended = catch_unwind(AssertUnwindSafe(|| target(&input)));
        assert!(ended.is_ok(), "input {number} of seed {seed}: {input:02x?}");
    }
}

/// The input with a few changes: other bytes, other lengths, pieces that are cut off, left out, or there twice.
fn changed(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut input = good.to_vec();
    for _ in 0..=random.below(CHANGES_MAX) {
        let at = random.below(input.len().max(1));
        let len = random.below(64).min(input.len() - at);
        match random.below(10) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..at + len)),
            2 => {
                let piece = input[at..at + len].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            3..6 => {
                let word = WORDS[random.below(WORDS.len())];
                let end = input.len().min(at + word.len());
                input.splice(at..end, word.iter().copied());
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.number().to_le_bytes()[0];
                }
            }
        }
    }
    input
}

/// A cpio archive with an entry of each kind.
fn archive() -> Vec<u8> {
    let attributes = Attributes::new(0o755);
    let mut archive = Archive::new(Vec::new());
    archive.directory("folder", attributes).unwrap();
    archive
        .file("folder/file", attributes, 5, &b"bytes"[..])
        .unwrap();
    archive.symlink("folder/link", "file", attributes).unwrap();
    archive.finish().unwrap()
}

/// A layer with an entry of each kind, and what hides another's.
fn tar(names: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size);
        header
    };
    for name in names {
        let mut folder = header(tar::EntryType::Directory, 0);
        builder.append_data(&mut folder, name, io::empty()).unwrap();
        let mut file = header(tar::EntryType::Regular, 5);
        let path = format!("{name}/file");
        builder
            .append_data(&mut file, &path, &b"bytes"[..])
            .unwrap();
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link] {
            let link = format!("{name}/{kind:?}");
            builder
                .append_link(&mut header(kind, 0), link, &path)
                .unwrap();
        }
        let mut hidden = header(tar::EntryType::Regular, 0);
        let path = format!("{name}/.wh.gone");
        builder.append_data(&mut hidden, path, io::empty()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn messages(files: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = Hello {
        version: VERSION,
        rings: None,
    };
    for message in [
        ToHost::Hello(hello),
        ToHost::Started,
        ToHost::Room(STDIN_WINDOW),
        ToHost::Stdout(b"4\n"),
        ToHost::FilesOf(0, None),
        ToHost::Files(files),
        ToHost::Files(b""),
    ] {
        message.encode(&mut bytes);
    }
    bytes
}

#[test]
fn frames_are_decoded_or_refused() {
    let good = [&[7][..], &messages(&archive())].concat();
    try_out(frames::run, &good);
}

#[test]
fn archives_are_unpacked_or_refused() {
    try_out(unpack::run, &archive());
}

#[test]
fn layers_become_a_root_or_are_refused() {
    let layer = |name| {
        let mut layer = tar(&[name]);
        // Both halves of the input are as long.
        layer.resize(16 << 10, 0);
        layer
    };
    try_out(layer::run, &[layer("one"), layer("one")].concat());
}

#[test]
fn sessions_end_whatever_the_guest_says() {
    for kind in 0..3 {
        let bytes = match kind {
            2 => archive(),
            _ => messages(&archive()),
        };
        try_out(session::run, &[&[kind][..], &bytes].concat());
    }
}

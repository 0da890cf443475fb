//! A fetcher that lies: each lie is one error, and none is believed.

use std::error::Error as _;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use minivm_image::Unwatched;

use super::super::failure::chain;
use super::*;

/// A fetcher that has sent these bytes and closed its end, and then the messages' errors.
fn listened(source: &str, bytes: &[u8]) -> Result<Report, String> {
    let (stream, there) = UnixStream::pair().unwrap();
    let mut there = &there;
    let mut fetcher = Fetcher {
        child: None,
        stream: Stream::from(OwnedFd::from(stream)),
        source: source.parse().unwrap(),
        options: Options::default(),
        pipe: None,
        id: None,
        own: None,
        layers: HashSet::new(),
        lines: 0,
    };
    thread::scope(|scope| {
        // More than the socket holds.
        scope.spawn(move || {
            let _ = there.write_all(bytes);
            there.shutdown(Shutdown::Both)
        });
        let listened = fetcher.listen(&Unwatched, &mut || {});
        // The rest is never read.
        fetcher.stream.end();
        listened.map_err(|error| {
            let source = error.source().map(|source| format!(": {source}"));
            let text = format!("{error}{}", source.unwrap_or_default());
            assert!(!text.contains('\n'), "{text}");
            text
        })
    })
}

fn encoded(reports: &[Report]) -> Vec<u8> {
    let (here, mut there) = UnixStream::pair().unwrap();
    let here = Stream::from(OwnedFd::from(here));
    thread::scope(|scope| {
        scope.spawn(move || reports.iter().for_each(|one| here.send(one, &[]).unwrap()));
        let mut bytes = Vec::new();
        there.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn refused(source: &str, reports: &[Report]) -> String {
    listened(source, &encoded(reports)).unwrap_err()
}

#[test]
fn what_is_not_a_message_is_an_error_that_names_the_image() {
    let valid = Digest::of("x").to_string();
    let mut evil = encoded(&[Report::Done(Digest::of("x"))]);
    let digits = evil.len() - valid.len();
    evil[digits..].fill(b'/');
    for (bytes, part) in [
        (&b"\x07\x00\x00\x00garbage"[..], "can't be read"),
        (b"\xff\xff\xff\x7f", "too long"),
        (b"\x02\x00\x00\x00\xc8\x01", "can't be read"),
        (&evil, "can't be read"),
    ] {
        let error = listened("a/b", bytes).unwrap_err();
        assert!(error.contains("that reads a/b"), "{error}");
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn one_that_ends_early_is_an_error() {
    for bytes in [&b""[..], b"\x07\x00", b"\x07\x00\x00\x00gar"] {
        let error = listened("dir:/x", bytes).unwrap_err();
        assert!(error.contains("dir:/x ended early"), "{error}");
    }
}

#[test]
fn too_many_layers_and_warnings_are_refused() {
    let layers: Vec<_> = (0..=LAYERS_MAX)
        .map(|number| Report::Started(Digest::of(number.to_string()), 1))
        .collect();
    assert!(refused("a", &layers).contains("more layers"));
    let lines: Vec<_> = (0..=LINES_MAX)
        .map(|_| Report::Line(2, "x".into()))
        .collect();
    assert!(refused("a", &lines).contains("too many lines"));
}

#[test]
fn a_question_about_another_image_is_not_answered() {
    for (source, question) in [
        ("dir:/x", Report::AskCredential),
        ("docker-daemon:x", Report::AskCredential),
        ("a/b", Report::AskImageId),
        ("a/b", Report::AskSave(1)),
        // Nothing was looked for.
        ("docker-daemon:x", Report::AskSave(1)),
    ] {
        let error = refused(source, &[question]);
        assert!(error.contains(": it asks for"), "{error}");
    }
}

#[test]
fn an_error_is_the_fetchers_unless_the_broker_has_its_own() {
    let failed = |answered| Report::Failed {
        chain: chain(&cannot("read it")(io::Error::from_raw_os_error(libc::EIO))),
        answered,
    };
    for answered in [false, true] {
        let error = refused("a", &[failed(answered)]);
        assert_eq!(error, "cannot read it: Input/output error (os error 5)");
    }
}

//! Where results go that a user names a path for: what is there is written to as what it is, or refused, and never replaced.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, run};
use minivm_tests::terminal::Terminal;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

/// The beginning of an EROFS image: nothing, and then the superblock.
const EROFS: [u8; 1028] = {
    let mut start = [0; 1028];
    let (_, magic) = start.split_at_mut(1024);
    magic.copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
    start
};

/// A folder for outputs, and a small image.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("image")).unwrap();
        fs::write(place.path("image/file"), [b'x'; 100_000]).unwrap();
        let mut tar = tar::Builder::new(File::create(place.path("image.tar")).unwrap());
        tar.append_dir_all("", place.path("image")).unwrap();
        tar.into_inner().unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The commands that write a file of their own, each writing to `name`.
    fn all(&self, name: &str) -> [(Command, &'static [u8]); 4] {
        let command = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
            command.current_dir(self.0.path()).args(args);
            command.env("XDG_CACHE_HOME", self.path("cache"));
            command
        };
        let html = [
            "compare",
            "-q",
            "--backends=monty",
            "--runs=1",
            "--no-reach",
            "--html",
            name,
        ];
        [
            (
                command(&["build", "-q", "dir:image", "-o", name]),
                b"070701",
            ),
            (
                command(&["build", "-q", "--format=erofs", "dir:image", "-o", name]),
                &EROFS,
            ),
            (
                command(&["save", "-q", "tar:image.tar", "-o", name]),
                b"oci-layout\0",
            ),
            (command(&html), b"<!doctype html>"),
        ]
    }

    /// What is in the folder by now, beside what was there.
    fn left(&self, known: &[&str]) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names
            .filter(|name| {
                !["image", "image.tar", "cache"].contains(&&**name) && !known.contains(&&**name)
            })
            .collect()
    }
}

#[track_caller]
fn assert_said(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(125), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "no {part:?} in {ended:?}");
    }
}

fn begins(bytes: &[u8], expected: &[u8]) -> bool {
    bytes
        .get(..expected.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(expected))
}

#[test]
fn devices_are_written_to_and_stay() {
    let place = Place::new();
    // A program that replaces the path replaces the link, and not the machine's device.
    symlink("/dev/null", place.path("null")).unwrap();
    symlink("/dev/full", place.path("full")).unwrap();
    for (mut command, _) in place.all("null") {
        assert_eq!(run(&mut command, PATIENCE).code, Some(0));
    }
    for (mut command, _) in place.all("full") {
        let ended = run(&mut command, PATIENCE);
        assert_said(&ended, &["cannot write full: No space left on device"]);
    }
    for name in ["null", "full"] {
        assert!(place.path(name).is_symlink());
        let device = fs::metadata(place.path(name)).unwrap().file_type();
        assert!(device.is_char_device(), "{name}");
    }
    assert_eq!(place.left(&["null", "full"]), [""; 0]);
}

#[test]
fn a_fifos_reader_gets_all_of_it() {
    let place = Place::new();
    let fifo = place.path("fifo");
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    for (mut command, start) in place.all("fifo") {
        let fifo = fifo.clone();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            File::open(fifo).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        });
        let ended = run(&mut command, PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(begins(&reader.join().unwrap(), start));
    }
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    let [(mut build, _), ..] = place.all("fifo");
    let ended = run(&mut build, PATIENCE);
    assert_said(
        &ended,
        &["cannot write fifo: it is a FIFO that nothing reads"],
    );
}

#[test]
fn stdout_and_other_open_files_are_written_to_as_they_are() {
    let place = Place::new();
    for (command, start) in place.all("/dev/fd/7") {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" 7>>seven"]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.current_dir(place.0.path());
        shell.env("XDG_CACHE_HOME", place.path("cache"));
        fs::write(place.path("seven"), "before ").unwrap();
        let ended = run(&mut shell, PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let seven = fs::read(place.path("seven")).unwrap();
        let seven = seven.strip_prefix(b"before ").unwrap();
        assert!(begins(seven, start));
    }
    for name in ["/dev/stdout", "/proc/self/fd/1"] {
        let [build, erofs, save, _] = place.all(name);
        for (mut command, start) in [build, erofs, save] {
            let ended = run(&mut command, PATIENCE);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            assert!(begins(&ended.stdout, start) && ended.stdout.len() > 100_000);
        }
    }
    // Where a file can be read too, and written anywhere, the next program still goes on behind it.
    let [build, erofs, save, _] = place.all("/dev/stdout");
    for (command, start) in [build, erofs, save] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 1<>shared; \"$0\" \"$@\" && echo behind"]);
        shell.arg(command.get_program()).args(command.get_args());
        let ended = run(shell.current_dir(place.0.path()), PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let shared = fs::read(place.path("shared")).unwrap();
        assert!(begins(&shared, start) && shared.ends_with(b"behind\n"));
        fs::remove_file(place.path("shared")).unwrap();
    }
    for (mut command, _) in place.all("/dev/fd/77") {
        let ended = run(&mut command, PATIENCE);
        assert_said(&ended, &["cannot write /dev/fd/77: Bad file descriptor"]);
    }
    assert_eq!(place.left(&["seven"]), [""; 0]);
}

#[test]
fn links_are_followed_and_other_names_keep_their_file() {
    let place = Place::new();
    fs::create_dir(place.path("folder")).unwrap();
    symlink("second", place.path("first")).unwrap();
    symlink("folder/target", place.path("second")).unwrap();
    let target = place.path("folder/target");
    for (mut command, start) in place.all("first") {
        // Once there is nothing where it leads, once a file.
        let ended = run(&mut command, PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(begins(&fs::read(&target).unwrap(), start));
        fs::hard_link(&target, place.path("other")).ok();
    }
    assert!(begins(&fs::read(place.path("other")).unwrap(), b"070701"));
    for name in ["first", "second"] {
        assert!(place.path(name).is_symlink(), "{name}");
    }
    let known = ["first", "second", "folder", "other"];
    assert_eq!(place.left(&known), [""; 0]);
    assert_eq!(fs::read_dir(place.path("folder")).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_written_to_is_refused_and_stays() {
    let place = Place::new();
    let _listener = UnixListener::bind(place.path("socket")).unwrap();
    fs::create_dir(place.path("folder")).unwrap();
    symlink("loop", place.path("loop")).unwrap();
    for (name, why) in [
        ("socket", "it is a socket"),
        ("folder", "it is a folder"),
        ("folder/", "it names a folder"),
        ("new/", "it names a folder"),
        (".", "it names a folder"),
        ("nowhere/new", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
    ] {
        for (mut command, _) in place.all(name) {
            let ended = run(&mut command, PATIENCE);
            assert_said(&ended, &[&format!("cannot write {name}: {why}")]);
        }
    }
    assert!(is_socket(&place.path("socket")));
    assert_eq!(place.left(&["socket", "folder", "loop"]), [""; 0]);
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().file_type().is_socket()
}

#[test]
fn another_users_link_in_a_shared_folder_is_refused() {
    use std::os::unix::fs::{PermissionsExt, lchown};
    let place = Place::new();
    let shared = place.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    symlink(place.path("victim"), shared.join("link")).unwrap();
    // Only root can give it away.
    if lchown(shared.join("link"), Some(1234), None).is_err() {
        return;
    }
    for (mut command, _) in place.all("shared/link") {
        let ended = run(&mut command, PATIENCE);
        assert_said(&ended, &["cannot write shared/link", "another user's link"]);
    }
    assert!(!place.path("victim").exists());
}

#[test]
fn a_terminal_shows_what_is_made_and_how_large_it_is() {
    let place = Place::new();
    for (format, made, size) in [
        ("initramfs", "an initramfs", "unpacked"),
        ("erofs", "an EROFS image", "in all"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command.current_dir(place.0.path());
        command.env("XDG_CACHE_HOME", place.path("cache"));
        command.args(["build", "--format", format, "dir:image", "-o", "out"]);
        let mut terminal = Terminal::new(24, 200);
        let mut child = terminal.start(&mut command);
        let screen = terminal.screen();
        terminal.let_go();
        let seen: Vec<u8> = screen.iter().flatten().collect();
        assert!(child.wait().unwrap().success());
        let seen = String::from_utf8_lossy(&seen);
        let making = format!("making {made} of dir:");
        assert!(seen.contains(&making) && seen.contains(size), "{seen}");
    }
}

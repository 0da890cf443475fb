//! Guests of a few bytes that read a file in place, as persistent memory.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::error::Error as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use minivm_tests::code::{RESET, SHOW, WAIT, map, show};
use minivm_tests::input::input;
use minivm_tests::output::tap;
use minivm_tests::patience::PATIENCE;
use minivm_tests::snapshot::save_in;
use minivm_vmm::{
    Builder, Config, Control, Error, Exit, ExitKind, Kernel, Observer, Outcome, Reset, Result,
    SaveFiles, Snapshot, SnapshotError, SnapshotFiles, layout,
};
use tempfile::TempDir;

const RAM: u64 = 64 << 20;
/// The bytes of a test's file: more than 2 MiB, and no whole page.
const SIZE: usize = (2 << 20) + 777;
const HEADER: u64 = 2 << 20;

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

/// Makes a folder with a file for persistent memory, named `name`.
fn file(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content()).unwrap();
    (folder, path)
}

fn config(pmem: &Path, code: &[&[u8]]) -> Config {
    let base = place(0);
    let maps = [map(base), map(base + HEADER), map(base + 2 * HEADER)].concat();
    Config {
        memory: RAM,
        pmem: Some(pmem.into()),
        ..Config::new(Kernel::Code([&maps, &code.concat()[..]].concat()))
    }
}

/// Returns the address of a byte of the range.
fn place(offset: u64) -> u64 {
    layout::pmem(RAM).unwrap().0 + offset
}

/// `mov rsi, address`.
fn point(address: u64) -> Vec<u8> {
    [&[0x48, 0xbe], &address.to_le_bytes()[..]].concat()
}

/// Writes the byte at an address to COM1: `mov al, [rsi]` between.
fn show_at(address: u64) -> Vec<u8> {
    [&point(address)[..], &[0x8a, 0x06], &SHOW].concat()
}

/// Writes 0x77 to an address: `mov byte [rsi], 0x77`.
fn write_at(address: u64) -> Vec<u8> {
    [&point(address)[..], &[0xc6, 0x06, 0x77]].concat()
}

/// Does something with the byte at RSI for each of so many pages from an address on.
fn each_page(address: u64, pages: u32, body: &[u8]) -> Vec<u8> {
    let mut code = [&point(address)[..], &[0xb9], &pages.to_le_bytes()].concat();
    code.extend(body);
    // add rsi, 4096; dec ecx; jnz to the body
    code.extend([0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, 0xff, 0xc9, 0x75]);
    let back = i8::try_from(body.len() + 11).unwrap();
    code.extend((-back).to_le_bytes());
    code
}

/// A machine that runs on a thread of its own.
struct Running {
    control: Control,
    output: Receiver<u8>,
    runner: JoinHandle<Result<Outcome>>,
}

impl Running {
    fn start(builder: Builder) -> Self {
        let (tap, output) = tap();
        let machine = builder.console_output(tap).build().unwrap();
        Running {
            control: machine.control(),
            output,
            runner: std::thread::spawn(move || machine.run()),
        }
    }

    fn read(&self) -> u8 {
        self.output.recv_timeout(PATIENCE).unwrap()
    }

    /// Waits for the end; returns it, and the rest of the output.
    fn end(self) -> (Result<Outcome>, Vec<u8>) {
        let mut rest = Vec::new();
        while let Ok(byte) = self.output.recv_timeout(PATIENCE) {
            rest.push(byte);
        }
        self.control.stop();
        (self.runner.join().unwrap(), rest)
    }

    fn finish(self) -> Vec<u8> {
        let (outcome, rest) = self.end();
        assert_eq!(outcome.unwrap(), Outcome::Reboot(Reset::Line));
        rest
    }
}

#[test]
fn a_guest_reads_the_file_behind_its_header() {
    let (_folder, path) = file("image");
    let last = SIZE as u64 - 1;
    let code = [0, 4096, 4097, HEADER, HEADER + 1000, HEADER + last]
        .map(|at| show_at(place(at)))
        .concat();
    // Behind the file's end: in its last page, and in a page that it doesn't have.
    let padding = [last + 1, last + 4096, 2 * HEADER - 1].map(|at| show_at(place(HEADER + at)));
    let code = [&code[..], &padding.concat(), &RESET].concat();
    let shown = Running::start(Builder::new(config(&path, &[&code]))).finish();
    let content = content();
    let expected = [0, b'N', b'V', content[0], content[1000], content[SIZE - 1]];
    assert_eq!(shown, [&expected[..], &[0; 3]].concat());
}

/// Keeps the accesses to memory that it sees.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Observer for Log {
    fn on_exit(&self, exit: &Exit<'_>) {
        if let ExitKind::MmioWrite(_) | ExitKind::PmemWrite(_) = exit.kind {
            let seen = format!("{:x?} {:x?}", exit.kind, exit.data);
            self.0.lock().unwrap().push(seen);
        }
    }
}

#[test]
fn a_write_changes_neither_memory_nor_the_file() {
    let (_folder, path) = file("image");
    let places = [4096, HEADER, HEADER + SIZE as u64 - 1, HEADER + SIZE as u64];
    // Before a page is there, and when it is.
    let twice = places.map(|at| [write_at(place(at)), show_at(place(at))].concat());
    let twice = twice.concat();
    let end = place(3 * HEADER);
    let code = [&twice[..], &twice, &map(end), &write_at(end), &RESET].concat();
    let log = Arc::new(Log::default());
    let builder = Builder::new(config(&path, &[&code])).observer(log.clone());
    let shown = Running::start(builder).finish();
    let content = content();
    let expected = [b'N', content[0], content[SIZE - 1], 0];
    assert_eq!(shown, expected.repeat(2));
    assert!(fs::read(&path).unwrap() == content, "the file has changed");
    let write = |at: u64| format!("PmemWrite({:x}) [77]", place(at));
    let seen = places.map(write);
    let mut seen = [&seen[..], &seen].concat();
    seen.push(format!("MmioWrite({end:x}) [77]"));
    assert_eq!(*log.0.lock().unwrap(), seen);
}

#[test]
fn machines_that_write_to_every_page_change_nothing() {
    let (_folder, path) = file("image");
    let pages = u32::try_from(3 * HEADER / 4096).unwrap();
    let write = each_page(place(0), pages, &[0xc6, 0x06, 0x77]);
    let code = [&write[..], &show_at(place(HEADER + 7)), &RESET].concat();
    for _ in 0..100 {
        let shown = Running::start(Builder::new(config(&path, &[&code]))).finish();
        assert_eq!(shown, [7]);
    }
    assert!(
        fs::read(&path).unwrap() == content(),
        "the file has changed"
    );
}

/// Returns the sums of two fields of this process's mappings of a file, in bytes. (proc_pid_smaps(5).)
fn mapped(file: &Path) -> [u64; 2] {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_of_file = false;
    let mut sums = [0; 2];
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            is_of_file = line.ends_with(&*file.to_string_lossy());
        }
        let field = ["Rss:", "Pss:"].iter().position(|name| *name == first);
        if let Some(at) = field.filter(|_| is_of_file) {
            sums[at] += words.next().unwrap().parse::<u64>().unwrap() << 10;
        }
    }
    sums
}

#[test]
fn machines_of_one_file_take_its_pages_once() {
    const MACHINES: u64 = 20;
    let (_folder, path) = file("image");
    let pages = SIZE.div_ceil(4096);
    let read = each_page(place(HEADER), u32::try_from(pages).unwrap(), &[0x8a, 0x06]);
    let code = [&read[..], &show(b'.'), &WAIT, &RESET].concat();
    let machines: Vec<_> = (0..MACHINES)
        .map(|_| {
            let builder = Builder::new(config(&path, &[&code]));
            let (reader, sender) = std::io::pipe().unwrap();
            let input = File::from(std::os::fd::OwnedFd::from(reader));
            (Running::start(builder.console_input(input)), sender)
        })
        .collect();
    for (machine, _) in &machines {
        assert_eq!(machine.read(), b'.');
    }
    let [resident, proportional] = mapped(&path);
    let once = pages as u64 * 4096;
    assert_eq!(resident, MACHINES * once);
    // The kernel rounds each mapping's share.
    assert!(
        proportional.abs_diff(once) <= MACHINES * 4096,
        "{proportional} of {once}"
    );
    for (machine, mut sender) in machines {
        sender.write_all(b"x").unwrap();
        machine.finish();
    }
}

#[test]
fn a_write_that_kvm_cannot_emulate_ends_the_machine() {
    let (_folder, path) = file("image");
    // fst qword [rsi]
    let code = [&point(place(HEADER))[..], &[0xdd, 0x16], &show(b'?')].concat();
    let (outcome, shown) = Running::start(Builder::new(config(&path, &[&code]))).end();
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Exit { .. }), "{error:?}");
    assert!(error.to_string().contains("persistent memory"), "{error}");
    assert_eq!(shown, b"");
    assert!(
        fs::read(&path).unwrap() == content(),
        "the file has changed"
    );
}

#[test]
fn a_file_that_is_cut_short_ends_its_machines_by_name() {
    let (_folder, path) = file("image");
    let code = [&show(b'>')[..], &WAIT, &show_at(place(2 * HEADER)), &RESET].concat();
    let start = || {
        let builder = Builder::new(config(&path, &[&code])).console_input(input(b"x"));
        let running = Running::start(builder);
        assert_eq!(running.read(), b'>');
        running
    };
    // This one ends before.
    assert_eq!(start().finish(), [content()[2 << 20]]);
    let (builder, sender) = {
        let (reader, sender) = std::io::pipe().unwrap();
        let source = File::from(std::os::fd::OwnedFd::from(reader));
        (
            Builder::new(config(&path, &[&code])).console_input(source),
            sender,
        )
    };
    let running = Running::start(builder);
    assert_eq!(running.read(), b'>');
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    std::io::Write::write_all(&mut &sender, b"x").unwrap();
    let (outcome, shown) = running.end();
    let error = outcome.unwrap_err();
    let text = format!("{error}: {}", error.source().unwrap());
    let expected = format!(
        "cannot read the persistent memory {}: it was cut short while the machine ran, from {SIZE} bytes to 4096",
        path.display()
    );
    assert_eq!(text, expected);
    assert_eq!(shown, b"");
}

#[test]
fn machines_of_one_file_share_it() {
    let (_folder, path) = file("image");
    let code = [&show(b'>')[..], &WAIT, &show_at(place(HEADER + 5)), &RESET].concat();
    let start = || Running::start(Builder::new(config(&path, &[&code])).console_input(input(b"x")));
    let both = [start(), start()];
    for machine in both {
        assert_eq!(machine.read(), b'>');
        assert_eq!(machine.finish(), [5]);
    }
}

/// Saves a machine that is about to show two bytes of its file.
fn saved(path: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let last = HEADER + SIZE as u64 - 1;
    let code = [
        show_at(place(HEADER + 9)),
        show_at(place(last)),
        RESET.to_vec(),
    ]
    .concat();
    let machine = Builder::new(config(path, &[&code])).build().unwrap();
    let saved = save_in(folder.path(), |state, memory, name| {
        machine.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    });
    saved.unwrap();
    folder
}

fn open(folder: &Path, pmem: &Path) -> Result<Snapshot> {
    SnapshotFiles::open(folder)?.pmem(pmem)?.read()
}

#[test]
fn a_snapshot_continues_with_its_file_wherever_that_is() {
    let (place, path) = file("image");
    let folder = saved(&path);
    let moved = place.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    let snapshot = open(folder.path(), &moved).unwrap();
    let expected = [9, content()[SIZE - 1]];
    let prepared = [snapshot.prepare().unwrap(), snapshot.prepare().unwrap()];
    fs::remove_file(&moved).unwrap();
    let restored = Running::start(Builder::restore(&snapshot));
    assert_eq!(restored.finish(), expected);
    for prepared in prepared {
        let machine = Running::start(Builder::restore_prepared(prepared));
        assert_eq!(machine.finish(), expected);
    }
}

#[test]
fn a_snapshot_is_refused_without_its_file_or_with_another() {
    let (place, path) = file("image\n\u{1b}[31m");
    let folder = saved(&path);
    let refusal = |opened: Result<Snapshot>| match opened.map(drop).unwrap_err() {
        Error::Snapshot { source, .. } => source,
        other => panic!("{other:?}"),
    };
    let missing = refusal(Snapshot::open(folder.path()));
    assert!(
        matches!(missing, SnapshotError::PmemMissing(_)),
        "{missing}"
    );
    let text = missing.to_string();
    assert!(text.contains(r"image\n\u{1b}[31m"), "{text}");
    assert!(!text.contains(char::is_control), "{text:?}");

    let other = place.path().join("other");
    let mut changed = content();
    changed[1000] ^= 1;
    for bytes in [&changed, &content()[..SIZE - 1], b"x"] {
        fs::write(&other, bytes).unwrap();
        let refused = refusal(open(folder.path(), &other));
        assert!(
            matches!(refused, SnapshotError::OtherPmem { .. }),
            "{refused}"
        );
        let text = refused.to_string();
        assert!(
            text.contains("other\" is not") && text.contains("image"),
            "{text}"
        );
    }
    let absent = open(folder.path(), Path::new("/absent")).map(drop);
    assert!(matches!(absent, Err(Error::File { .. })), "{absent:?}");

    let plain = tempfile::tempdir().unwrap();
    let machine = Builder::new(Config {
        pmem: None,
        ..config(&path, &[&RESET])
    });
    let machine = machine.build().unwrap();
    save_in(plain.path(), |state, memory, name| {
        machine.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    })
    .unwrap();
    let refused = refusal(open(plain.path(), &path));
    assert!(matches!(refused, SnapshotError::NoPmem), "{refused}");
    Snapshot::open(plain.path()).unwrap();
}

#[test]
fn what_is_no_file_for_persistent_memory_is_refused_by_name() {
    let (folder, _) = file("image");
    let path = |name: &str| folder.path().join(name);
    File::create(path("empty")).unwrap();
    let large = File::create(path("large")).unwrap();
    large.set_len((64 << 30) + 1).unwrap();
    large.set_len(64 << 30).unwrap();
    let largest = Builder::new(config(&path("large"), &[&RESET]));
    largest.check().unwrap();
    large.set_len((64 << 30) + 1).unwrap();
    let made = Command::new("mkfifo").arg(path("fifo")).status();
    assert!(made.unwrap().success());
    for (name, why) in [
        ("absent", "No such file"),
        ("", "s a directory"),
        ("fifo", "neither a regular file nor a block device"),
        ("empty", "it is empty"),
        ("large", "more than 64 GiB"),
    ] {
        let refused = Builder::new(config(&path(name), &[&RESET])).check();
        let error = refused.unwrap_err();
        let text = format!("{error}: {}", error.source().unwrap());
        assert!(
            text.starts_with("cannot read the persistent memory /"),
            "{text}"
        );
        assert!(text.contains(why), "{text}");
    }
}

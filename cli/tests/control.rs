//! The control socket, `minivm snapshot` and `minivm restore`: a machine of a few bytes of code that is saved while it runs, and
//! everything that clients, folders and files can do wrong meanwhile. Real guests are in `tests/tests/boot/restore.rs`.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0; even a KVM that can't run a whole Linux often can.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use minivm_tests::code::RESET;
use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::processes;
use minivm_tests::program::{Ended, Program, run};
use minivm_tests::stress;
use rustix::process::Signal;
use tempfile::TempDir;

/// minivm's own error.
const ERROR: i32 = 125;
/// The bytes that a pipe without a reader's reads holds (pipe(7), "Pipe capacity").
const PIPE: u64 = 64 << 10;

/// Writes bytes to the console that count up from 1, for ever.
#[rustfmt::skip]
const COUNT: [u8; 12] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x31, 0xc0,             // xor eax, eax
    0xff, 0xc0, 0xee,       // again: inc eax; out dx, al
    0xeb, 0xfb, 0xf4,       // jmp again
];

fn minivm() -> Command {
    Command::new(env!("CARGO_BIN_EXE_minivm"))
}

/// A folder for one test, with a guest's kernel in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        fs::write(place.kernel(), Elf::of_code(&[&COUNT]).bytes()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn kernel(&self) -> PathBuf {
        self.path("kernel")
    }

    fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    fn folder(&self) -> PathBuf {
        self.path("saved")
    }

    /// The machine that most tests are about.
    fn boot(&self) -> Command {
        let mut command = minivm();
        command.args(["--accel", "kvm", "--memory", "64M", "--kernel"]);
        command
            .arg(self.kernel())
            .arg("--control")
            .arg(self.socket());
        command
    }

    /// One that has begun to count.
    fn counting(&self) -> Program {
        started(&mut self.boot())
    }

    fn snapshot(&self, flags: &[&str]) -> Ended {
        self.snapshot_in(&self.folder(), flags)
    }

    fn snapshot_in(&self, folder: &Path, flags: &[&str]) -> Ended {
        let mut command = minivm();
        command.arg("snapshot").arg(self.socket()).arg(folder);
        run(command.args(flags), PATIENCE)
    }

    fn restore(&self) -> Command {
        let mut command = minivm();
        command
            .args(["restore", "--accel", "kvm"])
            .arg(self.folder());
        command
    }

    /// Saves a machine and ends it: all that it wrote.
    fn saved(&self) -> Vec<u8> {
        let machine = self.counting();
        assert_saved(&self.snapshot(&["--stop"]), &self.folder());
        ended_well(machine)
    }
}

fn started(command: &mut Command) -> Program {
    let mut program = Program::start(command);
    program.wait_for("ABC", PATIENCE);
    program
}

fn ended_well(machine: Program) -> Vec<u8> {
    let ended = machine.end(PATIENCE);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    ended.stdout
}

/// Kills it: all that it wrote.
fn killed(machine: Program) -> Vec<u8> {
    machine.signal(Signal::KILL);
    machine.end(PATIENCE).stdout
}

/// Checks that the bytes count up, from `first` on.
fn assert_counts_from(first: usize, bytes: &[u8]) {
    assert!(!bytes.is_empty());
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(usize::from(*byte), (first + at) % 256, "at {at}");
    }
}

/// Checks the one line that reports a snapshot.
fn assert_saved(ended: &Ended, folder: &Path) {
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    let text = ended.text();
    let rest = text.strip_prefix(&format!("saved in {}: ", folder.display()));
    let rest = rest.unwrap_or_else(|| panic!("{ended:?}"));
    assert!(
        rest.contains(" MiB on disk; the guest stood still for ") && rest.ends_with("s\n"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
}

/// Checks that it ended with minivm's own error, in one line that has all the `parts` in it.
fn assert_refused(what: &str, ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.text(), "", "{what}");
    ended.assert_refused(what, parts);
}

#[test]
fn a_machine_is_saved_while_it_runs_and_goes_on_three_times() {
    let place = Place::new();
    let machine = place.counting();
    assert_saved(&place.snapshot(&[]), &place.folder());
    let starts = [(); 2].map(|()| {
        let mut command = place.restore();
        let mut restored = Program::start(&mut command);
        restored.wait_for("ABC", PATIENCE);
        killed(restored)
    });
    assert_counts_from(1, &killed(machine));
    for bytes in &starts {
        assert_counts_from(bytes[0].into(), bytes);
        assert_eq!(bytes[0], starts[0][0], "both begin where it was saved");
    }
}

#[test]
fn a_machine_that_is_stopped_goes_on_with_its_next_byte() {
    let place = Place::new();
    let before = place.saved();
    assert!(!place.socket().exists());
    assert_counts_from(1, &before);
    let restored = started(place.restore().arg("--control").arg(place.socket()));
    // What was restored can be saved in the place of what it comes from.
    assert_saved(&place.snapshot(&["--stop"]), &place.folder());
    let after = ended_well(restored);
    assert_counts_from(before.len() + 1, &after);
    let last = killed(started(&mut place.restore()));
    assert_counts_from(before.len() + after.len() + 1, &last);
}

#[test]
fn a_client_waits_until_the_machine_has_ended() {
    let place = Place::new();
    for _ in 0..stress::count(10, 200) {
        let machine = place.counting();
        assert_saved(&place.snapshot(&["--stop"]), &place.folder());
        assert!(!place.socket().exists());
        drop(machine);
    }
}

/// The machine may not even have been built.
#[test]
fn a_machine_that_has_just_been_started_can_be_saved() {
    let place = Place::new();
    for _ in 0..stress::count(10, 200) {
        let machine = Program::start(&mut place.boot());
        let start = Instant::now();
        while !place.socket().exists() {
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        assert_saved(&place.snapshot(&["--stop"]), &place.folder());
        let before = ended_well(machine);
        let after = killed(started(&mut place.restore()));
        assert_counts_from(1, &[before, after].concat());
    }
}

#[test]
fn the_client_knows_where_a_relative_folder_is() {
    let place = Place::new();
    let machine = place.counting();
    let other = place.path("other");
    fs::create_dir(&other).unwrap();
    let mut command = minivm();
    command.args(["snapshot", "../socket", "deep/down"]);
    let ended = run(command.current_dir(&other), PATIENCE);
    assert_saved(&ended, &other.join("deep/down"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&other.join("deep/down")), 0o700);
    assert_eq!(mode(&other.join("deep/down/state")), 0o600);
    assert_counts_from(1, &killed(machine));
}

/// Says something to the socket, and that it will say no more: what is answered.
fn said(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    // A machine that has heard enough doesn't read the rest.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn garbage_is_answered_and_disturbs_nobody() {
    let place = Place::new();
    let machine = place.counting();
    let noise: Vec<u8> = (0..100_000u32)
        .map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()[0])
        .collect();
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("an empty line", b"\n"),
        ("text", b"GET / HTTP/1.1\r\n\r\n"),
        ("half a request", b"{\"snapshot\":\"/tmp/x"),
        ("no line", b"{\"snapshot\":\"/tmp/x\"}"),
        ("a relative path", b"{\"snapshot\":\"x\"}\n"),
        ("a number", b"{\"snapshot\":7}\n"),
        ("another request", b"{\"stop\":true}\n"),
        ("not UTF-8", b"{\"snapshot\":\"\xff\"}\n"),
        ("deep", &[b'['; 10_000]),
        ("no end", &[b' '; 200_000]),
        ("noise", &noise),
    ] {
        let answer = said(&place.socket(), bytes);
        // Where the rest isn't read, the answer may be lost with it.
        assert!(
            answer.starts_with("{\"failed\":\"") || answer.is_empty() && bytes.len() > 4096,
            "{what}: {answer}"
        );
    }
    assert_saved(&place.snapshot(&["--stop"]), &place.folder());
    assert_counts_from(1, &ended_well(machine));
}

#[test]
fn a_client_that_hangs_is_left_after_a_while() {
    let place = Place::new();
    let machine = place.counting();
    let mut hanging = UnixStream::connect(place.socket()).unwrap();
    hanging.write_all(b"{\"snap").unwrap();
    assert_saved(&place.snapshot(&[]), &place.folder());
    let mut answer = String::new();
    hanging.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "{\"failed\":\"no request came in time\"}\n");
    // Nor does one keep the machine from ending.
    let _hanging = UnixStream::connect(place.socket()).unwrap();
    let _waiting = UnixStream::connect(place.socket()).unwrap();
    machine.signal(Signal::TERM);
    assert_counts_from(1, &machine.end(PATIENCE).stdout);
}

#[test]
fn a_client_that_leaves_ends_no_machine() {
    let place = Place::new();
    let machine = place.counting();
    let request = format!("{{\"snapshot\":{:?},\"stop\":true}}\n", place.folder());
    for _ in 0..stress::count(20, 500) {
        // Served first, so that the other one has left by its turn: the machine may end for one that leaves after its answer.
        let first = UnixStream::connect(place.socket()).unwrap();
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        drop(stream);
        drop(first);
    }
    assert_saved(&place.snapshot(&[]), &place.folder());
    assert_counts_from(1, &killed(machine));
}

#[test]
fn a_machine_whose_output_nobody_takes_is_saved_once_somebody_does() {
    let place = Place::new();
    let mut command = place.boot();
    let mut machine = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It fills the pipe, and then stands in the middle of an instruction.
    let mut stdout = machine.stdout.take().unwrap();
    let start = Instant::now();
    while rustix::io::ioctl_fionread(&stdout).unwrap() < PIPE {
        assert!(start.elapsed() < PATIENCE, "the pipe is never full");
        std::thread::sleep(Duration::from_millis(1));
    }
    let ask = || {
        let mut command = minivm();
        command.arg("snapshot").arg(place.socket());
        let asks = Program::start(command.arg(place.folder()).arg("--stop"));
        let answer = Some(('S', Some(libc::SYS_recvfrom)));
        wait_until("it doesn't wait for an answer", || {
            processes::thread(asks.id(), "minivm") == answer
        });
        asks
    };
    let leaves = ask();
    assert_eq!(killed(leaves), b"");
    let stays = ask();
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).unwrap();
    assert_eq!(machine.wait().unwrap().code(), Some(0));
    assert_saved(&stays.end(PATIENCE), &place.folder());
    assert_counts_from(1, &output);
}

#[test]
fn clients_at_once_are_served_one_after_the_other() {
    let place = Place::new();
    let machine = place.counting();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let place = &place;
            scope.spawn(move || {
                let folder = place.path(&number.to_string());
                assert_saved(&place.snapshot_in(&folder, &[]), &folder);
            });
        }
    });
    assert_saved(&place.snapshot(&["--stop"]), &place.folder());
    assert_counts_from(1, &ended_well(machine));
}

#[test]
fn a_second_machine_at_the_same_socket_is_refused() {
    let place = Place::new();
    let machine = place.counting();
    let socket = place.socket();
    let parts = ["another machine listens at", socket.to_str().unwrap()];
    for _ in 0..3 {
        assert_refused("a second one", &run(&mut place.boot(), PATIENCE), &parts);
    }
    assert_saved(&place.snapshot(&["--stop"]), &place.folder());
    assert_counts_from(1, &ended_well(machine));
}

#[test]
fn of_machines_that_are_started_at_once_one_gets_the_socket() {
    let place = Place::new();
    // There is a leftover for them to replace.
    drop(UnixListener::bind(place.socket()).unwrap());
    let mut machines: Vec<_> = (0..6).map(|_| Program::start(&mut place.boot())).collect();
    let start = Instant::now();
    let saved = loop {
        let ended = place.snapshot(&["--stop"]);
        if ended.code == Some(0) {
            break ended;
        }
        assert!(start.elapsed() < PATIENCE, "{ended:?}");
    };
    assert_saved(&saved, &place.folder());
    let codes: Vec<_> = machines
        .drain(..)
        .map(|machine| {
            let ended = machine.end(PATIENCE);
            if ended.code == Some(ERROR) {
                assert_refused("another", &ended, &["another machine listens at"]);
            }
            ended.code
        })
        .collect();
    let winners = codes.iter().filter(|code| **code == Some(0)).count();
    assert_eq!(winners, 1, "{codes:?}");
}

#[test]
fn a_killed_machines_socket_is_replaced() {
    let place = Place::new();
    killed(place.counting());
    assert!(
        fs::symlink_metadata(place.socket())
            .unwrap()
            .file_type()
            .is_socket()
    );
    let socket = place.socket();
    assert_refused(
        "no listener",
        &place.snapshot(&[]),
        &[
            "no machine listens at",
            socket.to_str().unwrap(),
            "--control",
        ],
    );
    let machine = place.counting();
    let mode = fs::symlink_metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_saved(&place.snapshot(&["--stop"]), &place.folder());
    ended_well(machine);
}

#[test]
fn the_sockets_mode_does_not_depend_on_the_umask() {
    let place = Place::new();
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec \"$0\" \"$@\""]);
    command
        .arg(place.boot().get_program())
        .args(place.boot().get_args());
    let machine = started(&mut command);
    let mode = fs::symlink_metadata(place.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(machine);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let place = Place::new();
    let parts = ["is there and is no socket", "--control"];
    fs::write(place.socket(), "mine").unwrap();
    assert_refused("a file", &run(&mut place.boot(), PATIENCE), &parts);
    assert_eq!(fs::read_to_string(place.socket()).unwrap(), "mine");
    assert_refused(
        "a client of it",
        &place.snapshot(&[]),
        &["no machine listens at"],
    );
    fs::remove_file(place.socket()).unwrap();
    std::os::unix::fs::symlink("kernel", place.socket()).unwrap();
    assert_refused("a link", &run(&mut place.boot(), PATIENCE), &parts);
    fs::remove_file(place.socket()).unwrap();
    fs::create_dir(place.socket()).unwrap();
    assert_refused("a folder", &run(&mut place.boot(), PATIENCE), &parts);
}

#[test]
fn a_socket_that_cannot_be_made_is_told() {
    let place = Place::new();
    let at = |path: &Path| {
        let mut command = minivm();
        command.args(["--accel", "kvm", "--kernel"]);
        command.arg(place.kernel()).arg("--control").arg(path);
        run(&mut command, PATIENCE)
    };
    let nowhere = place.path("nowhere/socket");
    assert_refused(
        "no folder",
        &at(&nowhere),
        &[
            "cannot listen at",
            nowhere.to_str().unwrap(),
            "No such file",
        ],
    );
    let file = place.path("kernel/socket");
    assert_refused("below a file", &at(&file), &["Not a directory"]);
    let long = place.path(&"x".repeat(120));
    assert_refused(
        "too long",
        &at(&long),
        &["cannot listen at", "at most 107 bytes"],
    );
}

#[test]
fn the_socket_goes_with_its_machine() {
    let place = Place::new();
    let gone = |what: &str| assert!(fs::symlink_metadata(place.socket()).is_err(), "{what}");
    let with_kernel = |bytes: &[u8]| {
        fs::write(place.kernel(), bytes).unwrap();
        run(&mut place.boot(), PATIENCE)
    };
    assert_eq!(with_kernel(&Elf::of_code(&[&RESET]).bytes()).code, Some(0));
    gone("a reset");
    assert_eq!(
        with_kernel(&Elf::of_code(&[&[0x0f, 0x0b]]).bytes()).code,
        Some(1)
    ); // ud2
    gone("a crash");
    assert_eq!(with_kernel(b"not a kernel").code, Some(ERROR));
    gone("no kernel");
    fs::write(place.kernel(), Elf::of_code(&[&COUNT]).bytes()).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let machine = place.counting();
        machine.signal(signal);
        assert_eq!(machine.end(PATIENCE).signal, Some(signal.as_raw()));
        gone("a signal");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = place.boot();
    let status = command.stdin(Stdio::null()).stdout(writer).status();
    assert_eq!(status.unwrap().code(), Some(141));
    gone("a broken pipe");
}

#[test]
fn a_socket_of_another_process_is_not_removed() {
    let place = Place::new();
    let machine = place.counting();
    fs::remove_file(place.socket()).unwrap();
    let _other = UnixListener::bind(place.socket()).unwrap();
    machine.signal(Signal::TERM);
    machine.end(PATIENCE);
    assert!(place.socket().exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_the_clients_error_only() {
    let place = Place::new();
    // Root by name, without a right to files that their modes don't give.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    command
        .arg(place.boot().get_program())
        .args(place.boot().get_args());
    let machine = started(&mut command);
    let closed = place.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    let file = place.path("file");
    fs::write(&file, "mine").unwrap();
    let foreign = place.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("state"), "mine").unwrap();
    for (what, folder, part) in [
        ("unwritable", &closed, "Permission denied"),
        ("below it", &closed.join("deep"), "Permission denied"),
        ("a file", &file, "File exists"),
        ("below a file", &file.join("deep"), "Not a directory"),
        ("a foreign state", &foreign, "name another folder"),
    ] {
        for flags in [&[][..], &["--stop"]] {
            let parts = ["cannot save", folder.to_str().unwrap(), part];
            assert_refused(what, &place.snapshot_in(folder, flags), &parts);
        }
    }
    assert_eq!(fs::read_to_string(foreign.join("state")).unwrap(), "mine");
    assert_saved(&place.snapshot(&["--stop"]), &place.folder());
    assert_counts_from(1, &ended_well(machine));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_full_disk_is_the_clients_error_only() {
    let place = Place::new();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs -o size=16k none \"$disk\" && exec \"$0\" \"$@\"");
    command
        .arg(place.boot().get_program())
        .args(place.boot().get_args());
    let machine = started(command.env("disk", &disk));
    let parts = ["cannot save", "No space left on device"];
    for flags in [&[][..], &["--stop"]] {
        assert_refused(
            "full",
            &place.snapshot_in(&disk.join("saved"), flags),
            &parts,
        );
    }
    assert_saved(&place.snapshot(&["--stop"]), &place.folder());
    assert_counts_from(1, &ended_well(machine));
}

/// A thing that was done to a snapshot's state file and memory file, and what is said of it.
type Damage = (&'static str, fn(&Path, &Path), &'static [&'static str]);

#[test]
fn a_bad_snapshot_is_refused_by_name() {
    fn change(file: &Path, at: usize, byte: u8) {
        let mut bytes = fs::read(file).unwrap();
        bytes[at] = byte;
        fs::remove_file(file).unwrap();
        fs::write(file, bytes).unwrap();
    }
    fn cut(file: &Path, len: u64) {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(len).unwrap();
    }
    let damages: [Damage; 10] = [
        (
            "foreign",
            |state, _| fs::write(state, "text").unwrap(),
            &["is not a minivm snapshot's"],
        ),
        (
            "older",
            |state, _| change(state, 8, 0),
            &["has format 0", "older"],
        ),
        (
            "newer",
            |state, _| change(state, 8, 200),
            &["has format 200", "newer"],
        ),
        (
            "truncated",
            |state, _| cut(state, 100),
            &["truncated: save it anew"],
        ),
        (
            "damaged",
            |state, _| change(state, 70, 0xee),
            &["does not match its checksum"],
        ),
        (
            "short memory",
            |_, memory| cut(memory, 4096),
            &["has 4096 bytes instead of 67108864"],
        ),
        (
            "other memory",
            |_, memory| change(memory, 1 << 20, 0xf4),
            &["memory file does not match its checksum"],
        ),
        (
            "no memory",
            |_, memory| fs::remove_file(memory).unwrap(),
            &["cannot read the snapshot", "No such file"],
        ),
        (
            "no state",
            |state, _| fs::remove_file(state).unwrap(),
            &["cannot read the snapshot", "No such file"],
        ),
        (
            "a pipe",
            |state, _| {
                fs::remove_file(state).unwrap();
                let fifo = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, state, fifo, 0o600.into(), 0).unwrap();
            },
            &["cannot read the snapshot", "not a regular file"],
        ),
    ];
    for (what, damage, parts) in damages {
        let place = Place::new();
        place.saved();
        let mut memory = fs::read_dir(place.folder())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let memory = memory
            .find(|path| path.to_str().unwrap().contains("memory-"))
            .unwrap();
        damage(&place.folder().join("state"), &memory);
        let ended = run(&mut place.restore(), PATIENCE);
        assert_refused(what, &ended, parts);
        assert_refused(what, &ended, &[place.folder().to_str().unwrap()]);
    }
}

#[test]
fn a_machine_with_a_file_that_it_reads_in_place_continues_with_that_file_alone() {
    let place = Place::new();
    let (file, other) = (place.path("image"), place.path("other"));
    fs::write(&file, [7; 5000]).unwrap();
    fs::write(&other, [8; 5000]).unwrap();
    let machine = started(place.boot().arg("--pmem").arg(&file));
    assert_saved(&place.snapshot(&["--stop"]), &place.folder());
    let before = ended_well(machine);
    let restore = |pmem: Option<&Path>| {
        let mut command = place.restore();
        command.args(
            pmem.map(|path| [Path::new("--pmem"), path])
                .iter()
                .flatten(),
        );
        command
    };
    let image = format!("{file:?}");
    let refused = run(&mut restore(None), PATIENCE);
    assert_refused("without", &refused, &[&image, "name it (--pmem FILE)"]);
    let refused = run(&mut restore(Some(&other)), PATIENCE);
    let named = format!("{other:?} is not");
    assert_refused("another", &refused, &[&named, &image, "(--pmem FILE)"]);
    let after = killed(started(&mut restore(Some(&file))));
    assert_counts_from(1, &[before, after].concat());
}

#[test]
fn a_copied_snapshot_is_as_good() {
    let place = Place::new();
    let before = place.saved();
    let copy = Command::new("cp")
        .arg("-r")
        .arg(place.folder())
        .arg(place.path("copy"))
        .status();
    assert!(copy.unwrap().success());
    fs::remove_dir_all(place.folder()).unwrap();
    fs::rename(place.path("copy"), place.folder()).unwrap();
    assert_counts_from(before.len() + 1, &killed(started(&mut place.restore())));
}

#[test]
fn the_lab_is_named_where_it_is_the_remedy() {
    let place = Place::new();
    place.saved();
    let mut restore = minivm();
    restore
        .args(["restore", "--accel", "lab"])
        .arg(place.folder());
    let folder = place.folder();
    let parts = [
        "cannot restore",
        folder.to_str().unwrap(),
        "minivm lab -- minivm restore",
    ];
    assert_refused("restore", &run(&mut restore, PATIENCE), &parts);
    let mut boot = minivm();
    boot.args(["--accel", "lab", "--kernel"])
        .arg(place.kernel());
    boot.arg("--control").arg(place.socket());
    let parts = ["--control", "in the lab", "minivm lab -- "];
    assert_refused("boot", &run(&mut boot, PATIENCE), &parts);
    assert!(!place.socket().exists());
}

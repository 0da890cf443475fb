//! `--trace` on machines of a few bytes of code: what it shows of every exit, in each of its formats, and what becomes of it where its
//! output can't be written. The trace of a whole boot is in `tests/tests/boot/trace.rs`.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0; even a KVM that can't run a whole Linux often can.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use minivm_tests::chrome_trace;
use minivm_tests::code::{LOOP, RESET, map, show};
use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::program::{Ended, Program, run};
use minivm_tests::terminal::Terminal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// Asks whether COM1 can transmit: `mov dx, 0x3fd; in al, dx`.
const POLL: [u8; 5] = [0x66, 0xba, 0xfd, 0x03, 0xec];
/// Writes the code of a power-on self-test, which no device takes: `mov al, 0x42; out 0x80, al`.
const POST: [u8; 4] = [0xb0, 0x42, 0xe6, 0x80];
/// Routes pin 4 to vector 0x24: `mov esi, IOAPIC; mov dword [rsi], 0x18; mov dword [rsi + 0x10], 0x24`.
#[rustfmt::skip]
const ROUTE: [u8; 18] = [
    0xbe, 0x00, 0x00, 0xc0, 0xfe,
    0xc7, 0x06, 0x18, 0x00, 0x00, 0x00,
    0xc7, 0x46, 0x10, 0x24, 0x00, 0x00, 0x00,
];
/// Reads from port 0x80 sixty thousand times, for which a trace has room: `mov ecx, 60000; again: in al, 0x80; dec ecx; jnz again`.
const MANY: [u8; 11] = [
    0xb9, 0x60, 0xea, 0x00, 0x00, 0xe4, 0x80, 0xff, 0xc9, 0x75, 0xfa,
];
/// What all that means, exit by exit.
const MEANINGS: [&str; 9] = [
    "COM1: line status? transmitter empty, idle",
    "COM1: transmit 'h'",
    "COM1: line status? transmitter empty, idle",
    r"COM1: transmit '\n'",
    "nothing is at port 0x80 (power-on self-test's code, also used for a short delay): ignored: 0x42",
    "nothing is at port 0x80 (power-on self-test's code, also used for a short delay): ignored: 0x42",
    "IOAPIC: select pin 4's delivery",
    "IOAPIC: set a pin's entry: pin 4 → vector 0x24, physical, edge, unmasked",
    "keyboard controller: pulse the processor's reset line",
];

/// A folder for one test, with a guest's kernel in it.
struct Place(TempDir);

impl Place {
    fn new(code: &[&[u8]]) -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        fs::write(place.path("kernel"), Elf::of_code(code).bytes()).unwrap();
        place
    }

    /// The machine that most tests are about.
    fn usual() -> Self {
        let map = map(0xfec0_0000);
        let (h, end) = (show(b'h'), show(b'\n'));
        Place::new(&[&POLL, &h, &POLL, &end, &POST, &POST, &map, &ROUTE, &RESET])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `minivm` with this kernel and these further arguments.
    fn minivm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command.args(["--accel", "kvm", "--memory", "64M", "--kernel"]);
        command.arg(self.path("kernel")).args(arguments);
        command.env_remove("NO_COLOR").current_dir(self.0.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        run(&mut self.minivm(arguments), PATIENCE)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The exits in a file of JSON lines.
    fn exits(&self, name: &str) -> Vec<Value> {
        let text = self.read(name);
        let events = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        events
            .filter(|event| event["event"] == "exit" && is_the_guests(event))
            .collect()
    }
}

/// Whether an exit is of the guest's own making, and not of a signal to the vCPU's thread.
fn is_the_guests(event: &Value) -> bool {
    event["kind"] != "interrupted" && event["kind"] != "not-runnable"
}

/// The routing makes the reset look like a panic's.
const PANIC: Option<i32> = Some(1);

#[test]
fn a_live_trace_explains_and_folds_the_exits_and_counts_them_at_the_end() {
    let expected = [
        r#"out 0x3f8                           COM1: transmit "h\n", line status? ×2  0x1000"#,
        "out 0x80 ← 0x42                     nothing is at port 0x80 (power-on self-test's code, also used for a short delay): ignored: 0x42 (×2)  0x1000",
        "mmio-write 0xfec00010 ← 0x00000024  IOAPIC: set a pin's entry: pin 4 → vector 0x24, physical, edge, unmasked  0x1000",
        "out 0x64 ← 0xfe                     keyboard controller: pulse the processor's reset line  0x1000",
    ];
    // Exits are folded that come soon after each other, with no call out of the guest between them.
    let place = Place::usual();
    let run = || place.run(&["--trace", "--trace-filter=io,mmio"]);
    let mut ended = run();
    wait_until("the exits are never folded", || {
        let folded = expected.iter().all(|line| ended.stderr.contains(line));
        if !folded {
            ended = run();
        }
        folded
    });
    assert_eq!(
        (ended.code, &*ended.stdout),
        (PANIC, &b"h\n"[..]),
        "{ended:?}"
    );
    let mut rest = &*ended.stderr;
    for line in expected {
        let at = rest
            .find(line)
            .unwrap_or_else(|| panic!("no {line}\n{}", ended.stderr));
        rest = &rest[at..];
    }
    assert!(rest.contains("machine ended\n"), "{rest}");
    assert!(rest.contains("Exits to minivm, out of KVM: "), "{rest}");
    assert!(rest.contains("COM1: transmit"), "{rest}");
    assert!(
        rest.contains("Exits of the processor, out of the guest: "),
        "{rest}"
    );
    assert!(
        !ended.stderr.contains(['\u{1b}', '\r']),
        "no terminal, no colours: {ended:?}"
    );
}

#[test]
fn a_trace_in_json_lines_has_each_exit_with_all_that_is_known_of_it() {
    let place = Place::usual();
    assert_eq!(place.run(&["--trace=out.jsonl"]).code, PANIC);
    let exits = place.exits("out.jsonl");
    let meanings: Vec<_> = exits
        .iter()
        .map(|exit| exit["meaning"].as_str().unwrap())
        .collect();
    assert_eq!(meanings, MEANINGS);
    let routed = &exits[7];
    for (key, value) in [
        ("kind", "mmio-write"),
        ("address", "0xfec00010"),
        ("data", "24000000"),
        ("device", "ioapic"),
    ] {
        assert_eq!(routed[key], value, "{routed}");
    }
    assert_eq!(routed["vcpu"], 0);
    assert!(
        routed["rip"].as_str().unwrap().starts_with("0x1000"),
        "{routed}"
    );
    let times: Vec<_> = exits
        .iter()
        .map(|exit| exit["at"].as_u64().unwrap())
        .collect();
    assert!(times.is_sorted() && times[0] > 0, "{times:?}");
    assert!(place.read("out.jsonl").contains(r#"{"event":"step","at":"#));
}

#[test]
fn a_trace_for_chrome_is_one() {
    let place = Place::usual();
    assert_eq!(place.run(&["--trace=out.json"]).code, PANIC);
    let checked = chrome_trace::check(&place.read("out.json")).unwrap();
    let names: Vec<_> = checked
        .complete
        .iter()
        .filter(|name| !name.starts_with("no exit"))
        .collect();
    assert_eq!(names.len(), MEANINGS.len());
    assert_eq!(names[1], "COM1: transmit");
    assert!(
        checked.threads.contains(&"vcpu0".into()) && checked.threads.contains(&"machine".into())
    );
    assert!(checked.instant.contains(&"ended".into()), "{checked:?}");
}

#[test]
fn the_format_can_be_named_and_else_follows_from_the_files_name() {
    let place = Place::usual();
    place.run(&["--trace=a.json", "--trace-format", "jsonl"]);
    assert_eq!(place.exits("a.json").len(), MEANINGS.len());
    place.run(&["--trace=a.txt"]);
    assert!(place.read("a.txt").contains("  vcpu0  out 0x3f8"));
    let live = place.run(&["--trace", "--trace-format", "jsonl"]);
    assert!(
        live.stderr.contains(r#""meaning":"COM1: transmit 'h'""#),
        "{live:?}"
    );
}

#[test]
fn a_filter_chooses_what_is_shown_and_counted() {
    let place = Place::usual();
    let ended = place.run(&["--trace=out.jsonl", "--trace-filter", "ioapic,port=0x80"]);
    let exits = place.exits("out.jsonl");
    let addresses: Vec<_> = exits
        .iter()
        .map(|exit| exit["address"].as_str().unwrap())
        .collect();
    assert_eq!(addresses, ["0x80", "0x80", "0xfec00000", "0xfec00010"]);
    assert!(
        ended
            .stderr
            .contains("Exits to minivm, out of KVM: 4 that the filter lets pass, of "),
        "{ended:?}"
    );
}

#[test]
fn an_unknown_filter_is_refused_as_wrong_usage() {
    let place = Place::usual();
    for filter in ["com9", "port=", "com1,,io"] {
        let ended = place.run(&["--trace=out.json", "--trace-filter", filter]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(
            ended
                .stderr
                .lines()
                .next()
                .unwrap()
                .contains("unknown filter"),
            "{ended:?}"
        );
    }
    for flag in ["--trace-filter=io", "--trace-format=text", "--symbols=x"] {
        assert_eq!(place.run(&[flag]).code, Some(2), "{flag} without --trace");
    }
    assert!(!place.path("out.json").exists());
}

#[test]
fn what_a_trace_cannot_use_is_refused_before_the_machine_runs() {
    let place = Place::usual();
    fs::write(
        place.path("System.map.other"),
        "ffffffffffffffff B The real System.map\n",
    )
    .unwrap();
    let traced = |arguments: &[&str]| {
        let ended = place.run(arguments);
        assert!(ended.stdout.is_empty(), "{ended:?}");
        ended
    };
    for (name, reason) in [("missing/out", "No such file"), (".", "it names a folder")] {
        let told = format!("cannot write the trace to {name}");
        traced(&[&format!("--trace={name}")]).assert_refused(name, &[&told, reason]);
    }
    traced(&["--trace", "--symbols", "none"])
        .assert_refused("no file", &["cannot read the symbols in none"]);
    traced(&["--trace", "--symbols", "System.map.other"])
        .assert_refused("no symbols", &["has no symbols of a kernel"]);
    // A trace of an earlier run is kept where this one can't begin.
    fs::write(place.path("kept"), "before").unwrap();
    fs::write(place.path("kernel"), "no kernel").unwrap();
    traced(&["--trace=kept"]).assert_refused("no kernel", &["cannot boot"]);
    assert_eq!(place.read("kept"), "before");
}

#[test]
fn a_full_disk_ends_the_trace_and_not_the_machine() {
    let ended = Place::usual().run(&["--trace=/dev/full"]);
    assert_eq!(
        (ended.code, &*ended.stdout),
        (PANIC, &b"h\n"[..]),
        "{ended:?}"
    );
    let told: Vec<_> = ended
        .stderr
        .lines()
        .filter(|line| line.starts_with("minivm: the trace"))
        .collect();
    let [line] = told[..] else {
        panic!("{ended:?}")
    };
    assert!(
        line.contains(
            "and the machine runs on: cannot write the trace to /dev/full: No space left"
        ),
        "{line}"
    );
    assert!(
        ended.stderr.contains("Exits to minivm, out of KVM: "),
        "the count goes on: {ended:?}"
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_disk_that_fills_meanwhile_ends_the_trace_and_not_the_machine() {
    let place = Place::new(&[&MANY, &show(b'!'), &RESET]);
    fs::create_dir(place.path("disk")).unwrap();
    let minivm = place.minivm(&["--trace=disk/trace.jsonl"]);
    let script = r#"mount -t tmpfs -o size=64k none disk; "$@"; tail -n 2 disk/trace.jsonl >&2"#;
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-euc", script, "sh"]);
    command.arg(minivm.get_program()).args(minivm.get_args());
    let ended = run(command.current_dir(place.0.path()), PATIENCE);
    assert_eq!(
        (ended.code, &*ended.stdout),
        (Some(0), &b"!"[..]),
        "{ended:?}"
    );
    let told = "and the machine runs on: cannot write the trace to disk/trace.jsonl: No space left";
    assert_eq!(ended.stderr.matches(told).count(), 1, "{ended:?}");
    assert!(
        ended.stderr.contains(r#""address":"0x80""#),
        "what had room is kept: {ended:?}"
    );
    assert!(ended.stderr.contains("60000"), "all are counted: {ended:?}");
}

#[test]
fn a_reader_that_leaves_ends_the_trace_and_not_the_machine() {
    let place = Place::new(&[&MANY, &show(b'!'), &RESET]);
    mknodat(CWD, place.path("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let program = Program::start(&mut place.minivm(&["--trace=pipe", "--trace-format=jsonl"]));
    let mut reader = fs::File::open(place.path("pipe")).unwrap();
    let mut first = [0; 1000];
    reader.read_exact(&mut first).unwrap();
    drop(reader);
    let ended = program.end(PATIENCE);
    assert_eq!(
        (ended.code, &*ended.stdout),
        (Some(0), &b"!"[..]),
        "{ended:?}"
    );
    assert!(
        ended
            .stderr
            .contains("and the machine runs on: cannot write the trace to pipe: Broken pipe"),
        "{ended:?}"
    );
}

#[test]
fn a_signal_that_ends_minivm_leaves_a_whole_trace() {
    // A byte's exit is noted after the byte is out: with the second byte, that of the first is in the trace.
    let place = Place::new(&[&show(b'?'), &show(b'!'), &LOOP]);
    let mut program = Program::start(&mut place.minivm(&["--trace=out.json"]));
    program.wait_for("!", PATIENCE);
    program.signal(Signal::TERM);
    let ended = program.end(PATIENCE);
    assert_eq!(ended.signal, Some(Signal::TERM.as_raw()), "{ended:?}");
    assert!(ended.stderr.contains("COM1: transmit"), "{ended:?}");
    let checked = chrome_trace::check(&place.read("out.json")).unwrap();
    assert!(
        checked.complete.contains(&"COM1: transmit".into()),
        "{checked:?}"
    );
}

#[test]
fn a_signal_ends_minivm_whose_trace_has_a_reader_that_takes_nothing() {
    let again = [0xeb, 0xfc];
    let place = Place::new(&[&[0xe6, 0x80], &again]);
    let fifo = place.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let program = Program::start(&mut place.minivm(&["--trace=fifo", "--trace-format", "jsonl"]));
    let at_once = Timespec::default();
    wait_until("the pipe is never full", || {
        let mut pipe = [PollFd::new(&reader, PollFlags::OUT)];
        poll(&mut pipe, Some(&at_once)).unwrap() == 0
    });
    program.signal(Signal::TERM);
    let ended = program.end(PATIENCE);
    assert_eq!(ended.signal, Some(Signal::TERM.as_raw()), "{ended:?}");
}

#[test]
fn a_terminal_has_colours_unless_they_are_not_wanted() {
    let place = Place::usual();
    for (variable, colours) in [(None, true), (Some("NO_COLOR"), false)] {
        let mut terminal = Terminal::new(24, 80);
        let mut command = place.minivm(&["--trace"]);
        command
            .env("TERM", "xterm")
            .envs(variable.map(|name| (name, "1")));
        let mut child = terminal.start(&mut command);
        terminal.let_go();
        let screen: Vec<u8> = terminal.screen().iter().flatten().collect();
        child.wait().unwrap();
        let screen = String::from_utf8_lossy(&screen);
        assert!(screen.contains("IOAPIC: set a pin's entry"), "{screen}");
        assert_eq!(screen.contains('\u{1b}'), colours, "{variable:?}: {screen}");
    }
}

#[test]
fn a_restored_machine_is_traced_from_where_it_goes_on() {
    let place = Place::new(&[&show(b'?'), &LOOP]);
    let mut program = Program::start(&mut place.minivm(&["--control", "socket"]));
    program.wait_for("?", PATIENCE);
    let mut snapshot = Command::new(env!("CARGO_BIN_EXE_minivm"));
    snapshot
        .args(["snapshot", "socket", "saved", "--stop"])
        .current_dir(place.0.path());
    assert_eq!(run(&mut snapshot, PATIENCE).code, Some(0));
    assert_eq!(program.end(PATIENCE).code, Some(0));
    let mut restore = Command::new(env!("CARGO_BIN_EXE_minivm"));
    restore.args(["restore", "saved", "--accel", "kvm", "--trace=out.jsonl"]);
    let restored = Program::start(restore.current_dir(place.0.path()));
    let entered = || {
        fs::read_to_string(place.path("out.jsonl"))
            .is_ok_and(|text| text.contains(r#""step":"entered""#))
    };
    wait_until("the machine is not entered", entered);
    restored.signal(Signal::TERM);
    restored.end(PATIENCE);
    let steps = place.read("out.jsonl");
    assert!(
        steps.contains(r#""step":"state-set""#) && !steps.contains("kernel-loaded"),
        "{steps}"
    );
}

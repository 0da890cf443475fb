//! minivm in a terminal: raw while the guest runs, and as it was on every way out.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0; even a KVM that can't run a whole Linux often can.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use minivm_tests::code::{LOOP, RESET, show};
use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::program::ends_until;
use minivm_tests::terminal::Terminal;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, OutputModes};
use tempfile::TempDir;

/// Opens COM1 and sends back what it receives.
#[rustfmt::skip]
const ECHO: [u8; 31] = [
    0x66, 0xba, 0xf9, 0x03, 0xb0, 0x01, 0xee, // mov dx, 0x3f9; mov al, 1; out dx, al: interrupt on received data
    0x66, 0xba, 0xfc, 0x03, 0xb0, 0x02, 0xee, // mov dx, 0x3fc; mov al, 2; out dx, al: request to send
    0x66, 0xba, 0xfd, 0x03, 0xec,             // again: mov dx, 0x3fd; in al, dx: the line status
    0xa8, 0x01, 0x74, 0xf7,                   // test al, 1; jz again
    0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,       // mov dx, 0x3f8; in al, dx; out dx, al
    0xeb, 0xef,                               // jmp again
];

/// minivm in a terminal of its own.
struct Session {
    child: Child,
    terminal: Terminal,
    screen: Receiver<Vec<u8>>,
    /// What has come and was not expected yet.
    seen: VecDeque<u8>,
    /// The terminal's settings before minivm was started.
    before: String,
    _files: TempDir,
}

impl Session {
    /// Boots a kernel's file of these bytes.
    fn start(kernel: &[u8]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("kernel");
        std::fs::write(&path, kernel).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command.args(["--accel", "kvm", "--kernel"]).arg(&path);
        let terminal = Terminal::new(24, 80);
        Session {
            before: terminal.settings_in_words(),
            child: terminal.start(&mut command),
            screen: terminal.screen(),
            seen: VecDeque::new(),
            terminal,
            _files: files,
        }
    }

    /// Waits for the next byte.
    fn next(&mut self) -> u8 {
        while self.seen.is_empty() {
            self.seen
                .extend(self.screen.recv_timeout(PATIENCE).unwrap());
        }
        self.seen.pop_front().unwrap()
    }

    /// Waits for the guest's next byte.
    fn expect(&mut self, byte: u8) {
        assert_eq!(self.next(), byte);
    }

    fn press(&mut self, keys: &[u8]) {
        self.terminal.press(keys);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn assert_raw(&self) {
        let now = self.terminal.settings();
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        assert!(!now.local_modes.intersects(cooked), "{now:?}");
        assert!(!now.output_modes.contains(OutputModes::OPOST), "{now:?}");
    }

    /// Waits for the end, and checks that the terminal is as it was.
    fn end(&mut self) -> ExitStatus {
        assert!(ends_until(&self.child, Instant::now() + PATIENCE), "no end");
        let status = self.child.wait().unwrap();
        assert_eq!(self.terminal.settings_in_words(), self.before);
        status
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended, which is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A session with a guest that runs until it is ended.
fn endless() -> Session {
    let mut session = Session::start(&Elf::of_code(&[&show(b'.'), &LOOP]).bytes());
    session.expect(b'.');
    session.assert_raw();
    session
}

#[test]
fn ctrl_a_x_ends_the_machine_with_code_0() {
    let mut session = endless();
    session.press(b"\x01x");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn other_keys_go_to_the_guest() {
    let mut session = Session::start(&Elf::of_code(&[&show(b'.'), &ECHO]).bytes());
    session.expect(b'.');
    // Ctrl-C, Ctrl-D, Ctrl-Z, return and Ctrl-\ would all be the terminal's own otherwise.
    for key in [b'a', 0x03, 0x04, 0x1a, b'\r', 0x1c] {
        session.press(&[key]);
        session.expect(key);
    }
    session.press(b"\x01\x01");
    session.expect(0x01);
    session.press(b"\x01x");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn a_signal_ends_it_with_the_terminal_as_it_was() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let mut session = endless();
        session.signal(signal);
        assert_eq!(session.end().signal(), Some(signal.as_raw()), "{signal:?}");
    }
}

/// Writes to the console for ever.
#[rustfmt::skip]
const FLOOD: [u8; 7] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, 0xeb, 0xfd,       // again: out dx, al; jmp again
];

/// Ends minivm's terminal as the user who closes its window does, and returns how minivm ends. `words` start it.
fn hung_up(words: &[&str], code: &[u8]) -> ExitStatus {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("kernel");
    std::fs::write(&path, Elf::of_code(&[code]).bytes()).unwrap();
    // In a session of its own, which has the terminal.
    let mut command = Command::new("setsid");
    command.arg("--ctty").args(words);
    command.arg(env!("CARGO_BIN_EXE_minivm"));
    command.args(["--accel", "kvm", "--kernel"]).arg(&path);
    let terminal = Terminal::new(24, 80);
    let mut child = terminal.start(&mut command);
    wait_until("the terminal never becomes raw", || {
        let settings = terminal.settings();
        !settings.local_modes.contains(LocalModes::ICANON)
    });
    drop(terminal);
    assert!(ends_until(&child, Instant::now() + PATIENCE), "no end");
    child.wait().unwrap()
}

#[test]
fn a_terminal_that_is_gone_ends_it() {
    for code in [&LOOP[..], &FLOOD] {
        let status = hung_up(&[], code);
        assert_eq!(status.signal(), Some(Signal::HUP.as_raw()), "{status}");
    }
    // Where the signal is ignored, the output can't be written any more.
    let status = hung_up(&["env", "--ignore-signal=HUP"], &FLOOD);
    assert_eq!(status.code(), Some(125), "{status}");
}

#[test]
fn the_guests_own_end_leaves_the_terminal_as_it_was() {
    let mut session = Session::start(&Elf::of_code(&[&show(b'.'), &RESET]).bytes());
    session.expect(b'.');
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn a_guests_crash_leaves_the_terminal_as_it_was() {
    let mut session = Session::start(&Elf::of_code(&[&show(b'.'), &[0x0f, 0x0b]]).bytes()); // ud2
    session.expect(b'.');
    assert_eq!(session.end().code(), Some(1));
}

#[test]
fn an_error_leaves_the_terminal_as_it_was() {
    let mut session = Session::start(b"not a kernel");
    assert_eq!(session.end().code(), Some(125));
    let line: Vec<u8> = std::iter::repeat_with(|| session.next())
        .take_while(|&byte| byte != b'\n')
        .collect();
    let line = String::from_utf8(line).unwrap();
    // The terminal that is as it was makes a line's end of two bytes.
    assert!(
        line.starts_with("minivm: cannot boot ") && line.ends_with('\r'),
        "{line:?}"
    );
}

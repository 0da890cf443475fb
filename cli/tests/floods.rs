//! A guest that floods its console: what comes out is bounded, and while its reader takes nothing the machine ends as any other.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0; even a KVM that can't run a whole Linux often can.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use minivm_tests::code::{RESET, show};
use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::processes::{self, Process};
use minivm_tests::program::{Program, ends_until, run};
use minivm_tests::terminal::Terminal;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// minivm's own error.
const ERROR: i32 = 125;
/// The bytes that a pipe holds from which nothing is read (pipe(7), "Pipe capacity").
const PIPE: u64 = 64 << 10;
/// `again: out dx, al; jmp again`, after a byte was shown.
const AGAIN: [u8; 3] = [0xee, 0xeb, 0xfd];

/// A folder for one test, with guests' kernels in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        let shown = show(b'.').repeat(300);
        let guests: [(&str, &[&[u8]]); 3] = [
            ("flood", &[&show(b'.'), &AGAIN]),
            ("shows-300", &[&shown, &RESET]),
            ("crashes", &[&shown, &[0x0f, 0x0b]]),
        ];
        for (name, code) in guests {
            fs::write(place.path(name), Elf::of_code(code).bytes()).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn boot(&self, guest: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command.args(["--accel", "kvm", "--memory", "64M", "--kernel"]);
        command.arg(self.path(guest));
        command
    }
}

/// A machine whose guest waits for the reader of its console.
struct Blocked {
    minivm: Child,
    monitor: Process,
    /// Nothing is read from it.
    _stdout: ChildStdout,
}

impl Blocked {
    fn start(place: &Place) -> Blocked {
        let mut command = place.boot("flood");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut minivm = command.stderr(Stdio::null()).spawn().unwrap();
        let stdout = minivm.stdout.take().unwrap();
        wait_until("the pipe is never full", || {
            rustix::io::ioctl_fionread(&stdout).unwrap() == PIPE
        });
        let below = processes::below(minivm.id());
        let [monitor] = below[..] else {
            panic!("{below:?}");
        };
        Blocked {
            minivm,
            monitor,
            _stdout: stdout,
        }
    }

    /// Waits for the end of both processes, and returns minivm's code and the signal that ended it.
    fn end(mut self) -> (Option<i32>, Option<i32>) {
        assert!(
            ends_until(&self.minivm, Instant::now() + PATIENCE),
            "no end"
        );
        let status = self.minivm.wait().unwrap();
        wait_until("the monitor doesn't end", || !self.monitor.still_runs());
        (status.code(), status.signal())
    }
}

fn kill(process: u32, signal: Signal) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    kill_process(process.unwrap(), signal).unwrap();
}

#[test]
fn a_machine_whose_console_takes_nothing_ends_by_every_signal() {
    let place = Place::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::KILL] {
        let machine = Blocked::start(&place);
        kill(machine.minivm.id(), signal);
        assert_eq!(machine.end(), (None, Some(signal.as_raw())));
    }
}

#[test]
fn a_machine_whose_console_takes_nothing_ends_with_its_monitor() {
    let place = Place::new();
    let machine = Blocked::start(&place);
    kill(machine.monitor.id, Signal::KILL);
    assert_eq!(machine.end(), (Some(ERROR), None));
}

#[test]
fn a_machine_whose_console_takes_nothing_is_stopped_while_it_is_to_be_saved() {
    let place = Place::new();
    let socket = place.path("socket");
    let mut terminal = Terminal::new(24, 80);
    // Nothing is read from the terminal.
    let mut minivm = terminal.start(place.boot("flood").arg("--control").arg(&socket));
    let mut below = Vec::new();
    wait_until("there is no monitor, or none that listens", || {
        below = processes::below(minivm.id());
        socket.exists() && !below.is_empty()
    });
    let [monitor] = below[..] else {
        panic!("{below:?}");
    };
    let writes = Some(('S', Some(libc::SYS_write)));
    wait_until("the guest doesn't wait for the terminal", || {
        terminal.is_full() && processes::thread(monitor.id, "vcpu0") == writes
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
    let command = command.arg("snapshot").arg(&socket);
    let waiting = Program::start(command.arg(place.path("saved")));
    wait_until("the machine is not to be saved", || {
        processes::thread(monitor.id, "save").is_some()
    });
    terminal.press(b"\x01x");
    wait_until("the monitor doesn't end", || !monitor.still_runs());
    // What minivm has to say can be read from now on.
    let _screen = terminal.screen();
    assert!(ends_until(&minivm, Instant::now() + PATIENCE), "no end");
    assert_eq!(minivm.wait().unwrap().code(), Some(0));
    waiting
        .end(PATIENCE)
        .assert_refused("saved", &["the machine has ended"]);
}

#[test]
fn a_console_is_cut_at_its_limit_and_the_guest_goes_on() {
    let place = Place::new();
    let cut = "minivm: output was cut at --max-output\n";
    for (guest, limit, shown, code, told) in [
        ("shows-300", "100", 100, 125, cut),
        ("shows-300", "0", 0, 125, cut),
        ("shows-300", "300", 300, 0, ""),
        ("shows-300", "1K", 300, 0, ""),
    ] {
        let ended = run(place.boot(guest).args(["--max-output", limit]), PATIENCE);
        let seen = (ended.text(), ended.code, &*ended.stderr);
        assert_eq!(seen, (".".repeat(shown), Some(code), told), "{limit}");
    }
    // A failure of the guest's is still told.
    let ended = run(place.boot("crashes").args(["--max-output", "10"]), PATIENCE);
    assert_eq!((ended.text().len(), ended.code), (10, Some(1)), "{ended:?}");
    assert!(ended.stderr.contains("triple fault") && ended.stderr.ends_with(cut));
}

#[test]
fn a_flood_of_messages_is_cut_and_the_guest_goes_on() {
    let place = Place::new();
    // Writes to a port without a device, 20,000 times, and shows a byte.
    let strays = [
        0xb9, 0x20, 0x4e, 0x00, 0x00, // mov ecx, 20000
        0xe6, 0x80, 0xff, 0xc9, 0x75, 0xfa, // again: out 0x80, al; dec ecx; jnz again
    ];
    let code = Elf::of_code(&[&strays, &show(b'!'), &RESET]).bytes();
    fs::write(place.path("strays"), code).unwrap();
    let ended = run(place.boot("strays").arg("-vv"), PATIENCE);
    assert_eq!((ended.code, &*ended.text()), (Some(0), "!"));
    let lines = ended.stderr.lines();
    let strays = lines.filter(|line| line.contains("where no device is"));
    assert!((9_000..=10_000).contains(&strays.count()));
    let cut = "minivm: there were 10000 messages, and further ones are not logged";
    assert_eq!(ended.stderr.matches(cut).count(), 1);
}

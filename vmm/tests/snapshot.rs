//! Machines of a few bytes of code that are saved and go on: in this process, in another one, many times.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0, as `machine_code.rs` does.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivm_vmm::{Builder, Config, Control, Kernel, Outcome, Reset, Result, Snapshot};

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Passes every byte on to a channel.
struct Tap(Sender<u8>);

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody may be there to read any more.
        let _ = bytes.iter().try_for_each(|byte| self.0.send(*byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A machine that runs on a thread of its own.
struct Running {
    control: Control,
    output: Receiver<u8>,
    runner: JoinHandle<Result<Outcome>>,
}

impl Running {
    fn start(builder: Builder) -> Self {
        let (tap, output) = channel();
        let machine = builder.console_output(Tap(tap)).build().unwrap();
        let control = machine.control();
        Running {
            control,
            output,
            runner: std::thread::spawn(move || machine.run()),
        }
    }

    /// What it writes until it has written `count` bytes.
    fn read(&self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| self.output.recv_timeout(DEADLINE).unwrap())
            .collect()
    }

    /// Runs it to its end: what it writes until then.
    fn finish(self) -> Vec<u8> {
        let start = Instant::now();
        while !self.control.has_ended() && start.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.control.stop();
        assert_eq!(
            self.runner.join().unwrap().unwrap(),
            Outcome::Reboot(Reset::Line)
        );
        self.output.iter().collect()
    }

    /// Stops it: what it has written that wasn't read.
    fn stop(self) -> Vec<u8> {
        self.control.stop();
        assert_eq!(self.runner.join().unwrap().unwrap(), Outcome::Stopped);
        self.output.iter().collect()
    }
}

/// How many bytes [`computation`] writes before it sums up.
const STEPS: u32 = 6000;

/// Writes a sequence of pseudo-random numbers' low bytes to COM1, sums the numbers up in memory, writes the sum, resets.
/// Whatever is lost of its registers, its memory or its output, and whatever is done twice, shows in what it writes.
fn computation() -> Config {
    #[rustfmt::skip]
    let code = [
        0xb8, 0x01, 0x00, 0x00, 0x00,                   // mov eax, 1
        0xbe, 0x70, 0x17, 0x00, 0x00,                   // mov esi, STEPS
        0x66, 0xba, 0xf8, 0x03,                         // mov dx, 0x3f8
        // again:
        0x89, 0xc1, 0xc1, 0xe1, 0x0d, 0x31, 0xc8,       // mov ecx, eax; shl ecx, 13; xor eax, ecx
        0x89, 0xc1, 0xc1, 0xe9, 0x11, 0x31, 0xc8,       // mov ecx, eax; shr ecx, 17; xor eax, ecx
        0x89, 0xc1, 0xc1, 0xe1, 0x05, 0x31, 0xc8,       // mov ecx, eax; shl ecx, 5; xor eax, ecx
        0xee,                                           // out dx, al
        0x01, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00,       // add [0x200000], eax
        0xff, 0xce, 0x75, 0xdf,                         // dec esi; jnz again
        0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00,       // mov eax, [0x200000]
        0xee, 0xc1, 0xe8, 0x08,                         // out dx, al; shr eax, 8
        0xee, 0xc1, 0xe8, 0x08,                         // out dx, al; shr eax, 8
        0xee, 0xc1, 0xe8, 0x08,                         // out dx, al; shr eax, 8
        0xee,                                           // out dx, al
        0xb0, 0xfe, 0xe6, 0x64,                         // mov al, 0xfe; out 0x64, al
    ];
    Config {
        memory: 64 << 20,
        ..Config::new(Kernel::Code(code.to_vec()))
    }
}

/// What [`computation`] writes.
fn computed() -> Vec<u8> {
    let (mut number, mut sum) = (1u32, 0u32);
    let mut output = Vec::new();
    for _ in 0..STEPS {
        number ^= number << 13;
        number ^= number >> 17;
        number ^= number << 5;
        sum = sum.wrapping_add(number);
        output.push(number.to_le_bytes()[0]);
    }
    output.extend(sum.to_le_bytes());
    output
}

/// Runs `config` until it has written `count` bytes or a few more, saves it, and stops it: what it wrote.
fn saved_after(count: usize, config: Config, folder: &Path) -> Vec<u8> {
    let running = Running::start(Builder::new(config));
    let mut output = running.read(count);
    running.control.pause();
    running.control.snapshot(folder).unwrap();
    output.extend(running.stop());
    output
}

#[test]
fn a_machine_goes_on_where_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    for count in [1, 2, 500, 3000] {
        let mut output = saved_after(count, computation(), folder.path());
        assert!(output.len() < STEPS as usize + 4, "it was saved too late");
        let snapshot = Snapshot::open(folder.path()).unwrap();
        output.extend(Running::start(Builder::restore(&snapshot)).finish());
        assert_eq!(output, computed(), "saved after {count}");
    }
}

/// This test is both processes: the other one is given the snapshot's folder, and a file for the output.
#[test]
fn it_goes_on_in_another_process_a_hundred_times() {
    let name = "it_goes_on_in_another_process_a_hundred_times";
    if let Some(folder) = std::env::var_os("MINIVM_TEST_SNAPSHOT") {
        let snapshot = Snapshot::open(&folder).unwrap();
        let output = Running::start(Builder::restore(&snapshot)).finish();
        fs::write(Path::new(&folder).join("output"), output).unwrap();
        return;
    }
    for round in 0..100 {
        let folder = tempfile::tempdir().unwrap();
        let mut output = saved_after(1 + round * 30, computation(), folder.path());
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("MINIVM_TEST_SNAPSHOT", folder.path())
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        output.extend(fs::read(folder.path().join("output")).unwrap());
        assert_eq!(output, computed(), "round {round}");
    }
}

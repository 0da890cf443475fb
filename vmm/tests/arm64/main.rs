//! Guests of a few arm64 instructions on real KVM: a behaviour each, and what hostile ones do.

// Tests run: on any KVM

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

mod asm;
mod hostile;
mod linux;
mod machine;
mod snapshot;

use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use minivm_tests::output::tap;
use minivm_vmm::{Builder, Config, Control, Kernel, Machine, Outcome, Result};

/// The limit for a hang.
const DEADLINE: Duration = Duration::from_secs(200);

fn config(code: &[u32]) -> Config {
    let code = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    Config::new(Kernel::Code(code))
}

/// Builds a machine that runs `code`; returns it with the receiver of its output to COM1.
fn machine(config: Config) -> (Machine, Receiver<u8>) {
    let (tap, output) = tap();
    let machine = Builder::new(config).console_output(tap).build();
    (machine.unwrap(), output)
}

/// A machine that runs on a thread of its own.
struct Running {
    control: Control,
    output: Receiver<u8>,
    thread: JoinHandle<Result<Outcome>>,
}

impl Running {
    fn start(config: Config) -> Self {
        let (machine, output) = machine(config);
        let control = machine.control();
        let thread = thread::spawn(move || machine.run());
        Running {
            control,
            output,
            thread,
        }
    }

    /// Waits for the next byte of output.
    fn next(&self) -> u8 {
        self.output.recv_timeout(DEADLINE).unwrap()
    }

    /// Stops the machine, which has not ended by itself.
    fn stop(self) {
        assert!(!self.control.has_ended());
        self.control.stop();
        assert_eq!(self.thread.join().unwrap().unwrap(), Outcome::Stopped);
    }
}

/// Runs `code` to its end; returns how that came, and the output to COM1.
fn run(config: Config) -> (Result<Outcome>, Vec<u8>) {
    let running = Running::start(config);
    // The channel closes when the machine is gone.
    let mut output = Vec::new();
    loop {
        match running.output.recv_timeout(DEADLINE) {
            Ok(byte) => output.push(byte),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(_) => {
                running.control.stop();
                break;
            }
        }
    }
    (running.thread.join().unwrap(), output)
}

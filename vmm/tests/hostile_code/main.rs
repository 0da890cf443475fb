//! Guests of machine code that do what no kernel does: every port, every hole in memory, every MSR, faults at each step, floods, and
//! controls that race. The monitor ends each with the outcome that the test names, and keeps nothing of it.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

mod driver;
mod faults;
mod floods;
mod growth;
mod memory;
mod msrs;
mod ports;
mod races;

use std::path::Path;
use std::sync::mpsc::channel;

use minivm_tests::patience::{PATIENCE, processes};
use minivm_tests::snapshot::save_in;
use minivm_vmm::{Control, Machine, Outcome, Result, SaveFiles};

/// Saves a paused machine in place of a snapshot that may be in the folder.
fn save(control: &Control, folder: &Path) -> Result<()> {
    save_in(folder, |state, memory, name| {
        control.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    })
}

/// Runs a machine to its end.
fn run_to_end(machine: Machine) -> Result<Outcome> {
    let control = machine.control();
    let (sender, ended) = channel();
    let runner = std::thread::spawn(move || sender.send(machine.run()).unwrap());
    let outcome = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let threads = processes();
        control.stop();
        panic!("the machine hangs, or its thread panicked\n{threads}")
    });
    runner.join().unwrap();
    outcome
}

//! What hostile guests and long rows of machines leave in the process that runs them: nothing.

use std::sync::Barrier;

use minivm_tests::code::RESET;
use minivm_tests::growth::{alone, check};
use minivm_tests::snapshot::save_in;
use minivm_tests::stress;
use minivm_vmm::{Builder, Config, Kernel, Machine, Outcome, Reset, SaveFiles, Snapshot};

use super::{floods, races, run_to_end};

fn reset() -> Machine {
    let config = Config {
        memory: 32 << 20,
        ..Config::new(Kernel::Code(RESET.to_vec()))
    };
    Builder::new(config).build().unwrap()
}

/// Runs a guest that writes to each page of its 64 MiB behind its code, and then resets.
fn touch_all_memory() {
    let touch = [
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 2 MiB
        0x89, 0x3f, // again: mov [rdi], edi
        0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
        0x81, 0xff, 0x00, 0x00, 0x00, 0x04, // cmp edi, 64 MiB
        0x72, 0xf0, // jb again
    ];
    let config = Config {
        memory: 64 << 20,
        ..Config::new(Kernel::Code([&touch[..], &RESET].concat()))
    };
    let machine = Builder::new(config).build().unwrap();
    assert_eq!(run_to_end(machine).unwrap(), Outcome::Reboot(Reset::Line));
}

#[test]
fn hostile_guests_leave_nothing_behind() {
    alone("growth::hostile_guests_leave_nothing_behind", || {
        check(stress::count(3, 100), || {
            floods::flood_and_stop(200);
            races::race(3, 12);
            touch_all_memory();
        });
    });
}

#[test]
fn machines_in_a_row_leave_nothing_behind() {
    alone("growth::machines_in_a_row_leave_nothing_behind", || {
        let folder = tempfile::tempdir().unwrap();
        let machine = reset();
        let saved = save_in(folder.path(), |state, memory, name| {
            machine.snapshot_into(&SaveFiles {
                state,
                memory,
                name,
            })
        });
        saved.unwrap();
        let snapshot = Snapshot::open(folder.path()).unwrap();
        check(stress::count(4, 100), || {
            for number in 0..stress::count(25, 100) {
                let machine = match number % 4 {
                    0 => Builder::restore(&snapshot).build().unwrap(),
                    _ => reset(),
                };
                // One in ten never runs.
                if number % 10 != 0 {
                    assert_eq!(run_to_end(machine).unwrap(), Outcome::Reboot(Reset::Line));
                }
            }
        });
    });
}

#[test]
fn machines_at_once_leave_nothing_behind() {
    alone("growth::machines_at_once_leave_nothing_behind", || {
        let machines = stress::count(24, 200);
        check(stress::count(2, 5), || {
            let all_are_built = Barrier::new(machines);
            std::thread::scope(|scope| {
                for _ in 0..machines {
                    scope.spawn(|| {
                        let machine = reset();
                        all_are_built.wait();
                        assert_eq!(run_to_end(machine).unwrap(), Outcome::Reboot(Reset::Line));
                    });
                }
            });
        });
    });
}

//! Controls of one machine that race: pause, resume, snapshot, restore and stop from many threads, beside two vCPUs at work.

use std::path::Path;
use std::time::Duration;

use minivm_tests::code::{map, place, wake};
use minivm_tests::output::Shared;
use minivm_tests::patience::wait_until;
use minivm_tests::stress::{self, Random};
use minivm_vmm::{Builder, Config, Control, Error, Kernel, Outcome, Snapshot, layout};

use super::{run_to_end, save};

/// A machine whose first vCPU counts on COM1 and whose second one counts on COM2, with interrupts off.
fn counting() -> Config {
    // In real mode: mov dx, 0x2f8; again: inc al; out dx, al; jmp again
    let second = [0xba, 0xf8, 0x02, 0xfe, 0xc0, 0xee, 0xeb, 0xfb];
    let first = [0x66, 0xba, 0xf8, 0x03, 0xfe, 0xc0, 0xee, 0xeb, 0xfb];
    let code = [
        &map(layout::LOCAL_APIC.0)[..],
        &place(0x3_0000, &second),
        &wake(0x30),
        &first,
    ];
    Config {
        memory: 64 << 20,
        cpus: 2,
        ..Config::new(Kernel::Code(code.concat()))
    }
}

/// Checks that a count lost nothing: each byte is one more than the one before.
fn assert_counted(bytes: &[u8]) {
    let steps = bytes
        .windows(2)
        .position(|pair| pair[1] != pair[0].wrapping_add(1));
    assert_eq!(steps, None, "of {} bytes", bytes.len());
}

/// Restores a machine, lets it write something, and stops it.
fn restore(snapshot: &Snapshot) {
    let (com1, com2) = (Shared::default(), Shared::default());
    let machine = Builder::restore(snapshot)
        .console_output(com1.clone())
        .com2_output(com2.clone())
        .build()
        .unwrap();
    let control = machine.control();
    let written = com1.clone();
    let stopper = std::thread::spawn(move || {
        wait_until("the clone writes nothing", || written.bytes().len() > 3);
        control.stop();
    });
    assert_eq!(run_to_end(machine).unwrap(), Outcome::Stopped);
    stopper.join().unwrap();
    assert_counted(&com1.bytes());
    assert_counted(&com2.bytes());
}

/// Does one of the things that race.
fn act(control: &Control, folder: &Path, choice: usize) {
    match choice {
        0 => control.pause(),
        1 => control.resume(),
        2 | 3 => {
            control.pause();
            match save(control, folder) {
                // Another thread may have resumed it, or save it there.
                Ok(()) | Err(Error::NotPaused | Error::Save { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
            control.resume();
        }
        _ => match Snapshot::open(folder) {
            Ok(snapshot) => restore(&snapshot),
            // Another thread has not saved one yet, or puts a new one in its place.
            Err(Error::File { .. } | Error::Snapshot { .. }) => {}
            Err(other) => panic!("{other:?}"),
        },
    }
}

/// Races `threads` threads with one machine, each of which does `steps` things; then saves it once more, and stops it from several.
pub(crate) fn race(threads: usize, steps: usize) {
    let (com1, com2) = (Shared::default(), Shared::default());
    let machine = Builder::new(counting())
        .console_output(com1.clone())
        .com2_output(com2.clone())
        .build()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folders = ["one", "two"].map(|name| folder.path().join(name));
    let control = machine.control();
    let mut random = Random::default();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run_to_end(machine));
        // Before that, it is neither paused nor at work.
        wait_until("it doesn't start", || !com1.bytes().is_empty());
        let acting = (0..threads).map(|number| {
            let (control, folder) = (&control, &folders[number % folders.len()]);
            let mut random = Random::new(random.number());
            scope.spawn(move || (0..steps).for_each(|_| act(control, folder, random.below(5))))
        });
        let acting: Vec<_> = acting.collect();
        let panicked = acting.into_iter().filter_map(|thread| thread.join().err());
        let panicked = panicked.count();
        control.pause();
        let saved = folders.each_ref().map(|folder| save(&control, folder));
        (0..3).for_each(|_| drop(scope.spawn(|| control.stop())));
        assert_eq!(running.join().unwrap().unwrap(), Outcome::Stopped);
        assert!(
            panicked == 0 && saved.iter().all(Result::is_ok),
            "{saved:?}"
        );
    });
    assert_counted(&com1.bytes());
    assert_counted(&com2.bytes());
    for folder in folders {
        let snapshot = Snapshot::open(folder).unwrap();
        snapshot.verify().unwrap();
        restore(&snapshot);
    }
}

#[test]
fn pauses_stops_snapshots_and_restores_race() {
    race(6, stress::count(12, 2000));
}

#[test]
fn a_machine_is_stopped_at_any_moment_of_its_start() {
    for moment in 0..stress::count(20, 5000) {
        let machine = Builder::new(counting()).build().unwrap();
        let controls = [(); 3].map(|()| machine.control());
        let threads = controls.map(|control| {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(moment * 97 % 3000));
                if moment % 3 == 0 {
                    control.pause();
                }
                control.stop();
            })
        });
        assert_eq!(run_to_end(machine).unwrap(), Outcome::Stopped);
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }
}

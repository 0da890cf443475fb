//! Signals at any moment of a machine's life, and a machine that is suspended.

use std::time::{Duration, Instant};

use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::processes;
use minivm_tests::program::Program;
use minivm_tests::stress::{self, Random};
use rustix::process::{Pid, Signal, kill_process};

use crate::Scene;

#[test]
fn whenever_a_signal_comes_nothing_stays_and_the_next_start_works() {
    let scene = Scene::new();
    let start = || {
        let mut command = scene.boot(&[], "endless");
        command.arg("--control").arg(scene.path("socket"));
        Program::start(&mut command)
    };
    // A whole life: to the guest's first output, and to an end by a signal. Returns how long the first part took.
    let live = || {
        let began = Instant::now();
        let mut machine = start();
        machine.wait_for(".", PATIENCE);
        let life = began.elapsed();
        machine.signal(Signal::TERM);
        machine.end(PATIENCE);
        assert!(!scene.path("socket").exists());
        life
    };
    let life = live();
    let mut random = Random::default();
    for number in 0..stress::count(32, 1000) {
        let signal = [Signal::TERM, Signal::INT, Signal::HUP, Signal::KILL][number % 4];
        let moment = life * u32::try_from(random.below(1200)).unwrap() / 1000;
        let when = format!("{signal:?} after {moment:?} of {life:?}");
        let machine = start();
        // Not a wait for anything: it is the moment that the signal comes at.
        std::thread::sleep(moment);
        machine.signal(signal);
        let ended = machine.end(PATIENCE);
        assert_eq!(ended.signal, Some(signal.as_raw()), "{when}: {ended:?}");
        assert_eq!(ended.stderr, "", "{when}");
        scene.assert_nothing_stays(&when);
        if signal == Signal::KILL {
            // Nothing can be done at that one. The next start takes the socket's place.
            live();
        }
        assert!(!scene.path("socket").exists(), "{when}");
    }
}

/// Sends a signal to this process's only child and all below it.
fn signal_all(signal: Signal) {
    for process in alive() {
        let pid = Pid::from_raw(i32::try_from(process.id).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

fn alive() -> Vec<processes::Process> {
    let below = processes::below(std::process::id()).into_iter();
    below.filter(|process| process.is_alive).collect()
}

/// Whether all threads of a process are stopped.
fn is_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

#[test]
fn a_machine_that_was_suspended_goes_on() {
    let scene = Scene::new();
    let mut machine = Program::start(&mut scene.boot(&[], "waiting"));
    machine.wait_for(".", PATIENCE);
    for _ in 0..3 {
        signal_all(Signal::STOP);
        wait_until("it doesn't stop", || {
            alive().iter().all(|it| is_stopped(it.id))
        });
        // Longer than its timers.
        std::thread::sleep(Duration::from_millis(200));
        signal_all(Signal::CONT);
    }
    signal_all(Signal::STOP);
    machine.write(b"x").unwrap();
    signal_all(Signal::CONT);
    let ended = machine.end(PATIENCE);
    let seen = (ended.code, &*ended.text(), &*ended.stderr);
    assert_eq!(seen, (Some(0), ".!", ""));
    scene.assert_nothing_stays("suspended");
}

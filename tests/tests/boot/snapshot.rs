//! Real kernels that are saved in the middle of their work and go on in other processes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use minivm_machine::{Input, SnapshotFolder};
use minivm_tests::output::Shared;
use minivm_tests::patience::{PATIENCE, wait_until};
use minivm_tests::stress::{self, Random};
use minivm_vmm::{Builder, Config, Control, Kernel, Outcome, Result, Snapshot};
use sha2::{Digest, Sha256};

use crate::guest::{self, kernel, shared};

/// The variable that makes a test be the other process: the snapshot's folder. The output goes to a file beside it.
const FOLDER: &str = "MINIVM_TEST_SNAPSHOT";

/// What came over the console.
#[derive(Clone, Default)]
struct Console(Shared);

impl Console {
    fn len(&self) -> usize {
        self.0.0.lock().unwrap().len()
    }

    fn text(&self) -> String {
        self.0.text()
    }

    fn wait_for_text(&self, text: &str) {
        wait_until("it doesn't come", || self.text().contains(text));
    }

    fn wait_for(&self, count: usize) {
        wait_until("no more comes", || self.len() >= count);
    }
}

/// A machine that runs on a thread of its own.
struct Running {
    control: Control,
    console: Console,
    ended: Receiver<Result<Outcome>>,
}

impl Running {
    fn start(builder: Builder) -> Self {
        let console = Console::default();
        let machine = builder.console_output(console.0.clone()).build().unwrap();
        let control = machine.control();
        let (sender, ended) = channel();
        std::thread::spawn(move || sender.send(machine.run()));
        Running {
            control,
            console,
            ended,
        }
    }

    /// Runs it to its end, which is to be a good one: what it wrote.
    fn finish(self) -> String {
        match self.ended.recv_timeout(PATIENCE) {
            Ok(outcome) => assert_eq!(
                outcome.unwrap(),
                Outcome::PowerOff,
                "{}",
                self.console.text()
            ),
            Err(_) => panic!("it doesn't end:\n{}", self.console.text()),
        }
        self.console.text()
    }
}

/// A guest whose init is the program `computation`.
fn computation(cpus: u8) -> Config {
    static INITRAMFS: OnceLock<PathBuf> = OnceLock::new();
    let initramfs = INITRAMFS.get_or_init(|| {
        let init = fs::read(env!("CARGO_BIN_EXE_computation")).unwrap();
        guest::initramfs("computation", &[("init", &init)], "")
    });
    config(initramfs, cpus)
}

/// A guest with a shell on its console.
fn shell() -> Config {
    let init = b"#!/bin/busybox sh\nexec /bin/busybox sh -i </dev/console >/dev/console 2>&1\n";
    let files: [(&str, &[u8]); 2] = [("init", init), ("bin/busybox", &guest::busybox())];
    config(&guest::initramfs("shell", &files, ""), 1)
}

fn config(initramfs: &Path, cpus: u8) -> Config {
    Config {
        initramfs: Some(initramfs.into()),
        cmdline: "console=ttyS0 quiet loglevel=0 panic=-1 reboot=t".into(),
        cpus,
        memory: 64 << 20,
        ..Config::new(Kernel::File(kernel().into()))
    }
}

/// Restores the snapshot in another process, where this test runs as well and takes the other branch of [`or_restore`].
fn restore_elsewhere(test: &str, folder: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("snapshot::{test}"),
            "--include-ignored",
            "--nocapture",
        ])
        .env(FOLDER, folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::read_to_string(output_file(folder)).unwrap()
}

fn output_file(folder: &Path) -> PathBuf {
    folder.with_extension("output")
}

/// The other process's half of a test.
fn or_restore(test: impl FnOnce()) {
    match std::env::var_os(FOLDER) {
        None => {
            let _shared = shared();
            test();
        }
        Some(folder) => {
            let snapshot = Snapshot::open(&folder).unwrap();
            let text = Running::start(Builder::restore(&snapshot)).finish();
            fs::write(output_file(Path::new(&folder)), text).unwrap();
        }
    }
}

/// The widest vectors of this host's processor, as the program `computation` names them. A guest has the same.
fn vectors() -> &'static str {
    match is_x86_feature_detected!("avx512f") {
        true => "Avx512",
        false if is_x86_feature_detected!("avx2") => "Avx2",
        false => "Sse",
    }
}

/// Saves a guest again and again while it computes, and restores each of the snapshots.
fn goes_on_every_time(test: &str, cpus: u8) {
    let whole = Running::start(Builder::new(computation(cpus))).finish();
    let vectors = vectors();
    assert!(
        whole.contains(&format!("starts with {vectors}\r\n"))
            && whole.contains("result ")
            && whole.contains("vectors are kept\r\n")
            && whole.ends_with("clocks are right\r\n"),
        "{whole}"
    );
    let (snapshots, rounds) = stress::count((5, 1), (10, 10));
    let folder = tempfile::tempdir().unwrap();
    let path = |index: usize| folder.path().join(index.to_string());

    let running = Running::start(Builder::new(computation(cpus)));
    let mut written = Vec::new();
    for index in 0..snapshots {
        running
            .console
            .wait_for(whole.len() * (2 * index + 1) / (2 * snapshots + 1));
        running.control.pause();
        // It may have come to its end before it was paused.
        if running.control.has_ended() {
            break;
        }
        let control = &running.control;
        SnapshotFolder::save(path(index), |files| control.snapshot_into(files)).unwrap();
        written.push(running.console.text());
        running.control.resume();
    }
    assert!(!written.is_empty(), "it had ended before it was saved");
    assert_eq!(running.finish(), whole, "it was disturbed by being saved");

    for (index, before) in written.iter().enumerate() {
        for round in 0..rounds {
            let after = restore_elsewhere(test, &path(index));
            assert_eq!(
                format!("{before}{after}"),
                whole,
                "snapshot {index}, round {round}"
            );
        }
    }
}

#[test]
fn a_guest_with_one_cpu_goes_on_every_time() {
    or_restore(|| goes_on_every_time("a_guest_with_one_cpu_goes_on_every_time", 1));
}

#[test]
fn a_guest_with_two_cpus_goes_on_every_time() {
    or_restore(|| goes_on_every_time("a_guest_with_two_cpus_goes_on_every_time", 2));
}

#[test]
fn clones_of_a_shell_go_their_own_ways() {
    let _shared = shared();
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(Builder::new(shell()));
    running.console.wait_for_text("# ");
    running.control.pause();
    let control = &running.control;
    SnapshotFolder::save(folder.path(), |files| control.snapshot_into(files)).unwrap();
    running.control.stop();
    let snapshot = Snapshot::open(folder.path()).unwrap();
    let clones = [1, 2, 3, 4].map(|number| {
        // The answer isn't in what the terminal echoes.
        let commands = format!(
            "n={number}; busybox echo clone-$((n * 1111)) >/file; \
             busybox sleep 1; busybox cat /file; busybox ls /; busybox poweroff -f\n"
        );
        let input = Input::from_reader(io::Cursor::new(commands)).unwrap();
        (
            number,
            Running::start(Builder::restore(&snapshot).console_input(input)),
        )
    });
    for (number, clone) in clones {
        let text = clone.finish();
        for other in 1..=4 {
            let word = format!("clone-{}", other * 1111);
            assert_eq!(
                text.contains(&word),
                other == number,
                "clone {number}:\n{text}"
            );
        }
    }
    snapshot.verify().unwrap();
}

/// States with a right checksum that no machine was ever in: KVM refuses them, or runs what it can make of them.
#[test]
fn no_mad_state_makes_a_restore_panic_or_hang() {
    let _shared = shared();
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(Builder::new(computation(1)));
    running.console.wait_for(100);
    running.control.pause();
    let control = &running.control;
    SnapshotFolder::save(folder.path(), |files| control.snapshot_into(files)).unwrap();
    running.control.stop();
    let path = folder.path().join("state");
    let good = fs::read(&path).unwrap();
    let mut random = Random::default();
    let (mut refused, mut ran) = (0, 0);
    for _ in 0..stress::count(30, 2000) {
        let mut state = good.clone();
        for _ in 0..4 {
            let at = 48 + random.below(state.len() - 48);
            state[at] = random.number().to_le_bytes()[0];
        }
        let sum = Sha256::new()
            .chain_update(&state[..16])
            .chain_update(&state[48..])
            .finalize();
        state[16..48].copy_from_slice(&sum);
        fs::write(&path, state).unwrap();
        let machine =
            Snapshot::open(folder.path()).and_then(|snapshot| Builder::restore(&snapshot).build());
        let Ok(machine) = machine else {
            refused += 1;
            continue;
        };
        ran += 1;
        let control = machine.control();
        let (ended, wait) = channel();
        // However it ends: with a reset, a crash, an error of KVM's, or because it is stopped.
        std::thread::spawn(move || ended.send(machine.run().map(drop).map_err(drop)));
        if wait.recv_timeout(Duration::from_millis(30)).is_err() {
            control.stop();
            wait.recv_timeout(PATIENCE).expect("it can be stopped").ok();
        }
    }
    assert!(refused > 0 && ran > 0, "{refused} refused, {ran} ran");
}

//! A real guest that is saved by the command `minivm snapshot` while it runs, and goes on by `minivm restore`.
//!
//! What clients and files can do wrong is tried with smaller guests, in `cli/tests/control.rs`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, Program, run};

use crate::guest::{self, kernel, minivm, shared};

/// Counts until a line is typed, says it again, and ends.
const INIT: &[u8] = b"#!/bin/busybox sh
exec </dev/console >/dev/console 2>&1
/bin/busybox stty -echo
while :; do n=$((n + 1)); echo \"count $n\"; done &
counter=$!
read word
kill $counter
wait
echo \"heard $word\"
/bin/busybox poweroff -f
";

fn initramfs() -> &'static Path {
    static INITRAMFS: OnceLock<PathBuf> = OnceLock::new();
    INITRAMFS.get_or_init(|| {
        let files: [(&str, &[u8]); 2] = [("init", INIT), ("bin/busybox", &guest::busybox())];
        guest::initramfs("counting", &files, "")
    })
}

fn boot(socket: &Path) -> Program {
    let mut command = minivm();
    command.args(["--accel", "kvm", "--memory", "64M", "--kernel"]);
    command.arg(kernel()).arg("--initramfs").arg(initramfs());
    let cmdline = "console=ttyS0 quiet loglevel=0 panic=-1 reboot=t";
    command.args(["--cmdline", cmdline]).arg("--control");
    Program::start(command.arg(socket))
}

fn restore(folder: &Path) -> Program {
    let mut command = minivm();
    Program::start(command.args(["restore", "--accel", "kvm"]).arg(folder))
}

fn snapshot(socket: &Path, folder: &Path, flags: &[&str]) -> Ended {
    let mut command = minivm();
    command.arg("snapshot").arg(socket).arg(folder);
    let ended = run(command.args(flags), PATIENCE);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    ended
}

/// Types a word; the guest is to say it again and to end.
fn heard(mut machine: Program, word: &str) -> String {
    machine.write(format!("{word}\n").as_bytes()).unwrap();
    let ended = machine.end(PATIENCE);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    let text = ended.text();
    assert!(text.contains(&format!("heard {word}\n")), "{text}");
    text
}

/// The numbers that a guest has counted, which are to follow one another. Where it was saved, a line may have been begun.
fn counted(text: &str) -> (u32, u32) {
    let numbers: Vec<u32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("count ")?.parse().ok())
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{text}"
    );
    let first = numbers.first().unwrap_or_else(|| panic!("{text}"));
    (*first, *numbers.last().unwrap())
}

#[test]
fn a_guest_is_saved_while_it_runs_and_goes_on_in_other_processes() {
    let _shared = shared();
    let place = tempfile::tempdir().unwrap();
    let (socket, folder) = (place.path().join("socket"), place.path().join("saved"));
    let mut machine = boot(&socket);
    machine.wait_for("count 50\n", PATIENCE);
    let saved = snapshot(&socket, &folder, &[]).text();
    println!("{saved}");
    assert!(saved.starts_with(&format!("saved in {}: ", folder.display())));

    let mut clones = [(); 2].map(|()| restore(&folder));
    for clone in &mut clones {
        // One that had only begun to count would be stopped with the first number.
        clone.wait_for_times("\ncount ", 3, PATIENCE);
    }
    let [one, other] = clones;
    let (one, other) = (heard(one, "one"), heard(other, "other"));
    assert!(!one.contains("heard other") && !other.contains("heard one"));
    let ((begun, last), (begun_too, last_too)) = (counted(&one), counted(&other));
    assert!(
        begun > 50 && last > begun && last_too > begun,
        "{one}\n{other}"
    );
    assert_eq!(begun, begun_too, "both begin where it was saved");

    // The one that was saved has noticed nothing.
    let (first, last) = counted(&heard(machine, "original"));
    assert!(first == 1 && last >= begun);
    assert!(!socket.exists());
}

#[test]
fn a_guest_that_is_stopped_goes_on_with_the_next_byte() {
    let _shared = shared();
    let place = tempfile::tempdir().unwrap();
    let (socket, folder) = (place.path().join("socket"), place.path().join("saved"));
    let mut machine = boot(&socket);
    machine.wait_for("count 20\n", PATIENCE);
    snapshot(&socket, &folder, &["--stop"]);
    assert!(!socket.exists());
    let before = machine.end(PATIENCE);
    assert_eq!((before.code, before.stderr.as_str()), (Some(0), ""));
    let mut restored = restore(&folder);
    restored.wait_for("\ncount ", PATIENCE);
    let after = heard(restored, "after");
    let whole = format!("{}{after}", before.text());
    let (first, last) = counted(&whole);
    assert!(first == 1 && last > 20);
    let lines = whole.lines().filter(|line| line.starts_with("count "));
    assert_eq!(lines.count(), usize::try_from(last).unwrap(), "{whole}");
}

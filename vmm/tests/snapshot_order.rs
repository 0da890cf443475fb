//! The order in which a machine's state is read and set again is the one that `docs/learn/snapshot.md` has in its table.
//!
//! The page's numbers are compared with the system calls of a process that saves a machine and restores it, under strace.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't continue fails")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use minivm_tests::code::RESET;
use minivm_tests::snapshot::save_in;
use minivm_vmm::{Builder, Config, Kernel, SaveFiles, Snapshot};

/// The table's page.
const PAGE: &str = include_str!("../../docs/learn/snapshot.md");
/// Names the folder in which the traced process works.
const FOLDER: &str = "MINIVM_TEST_ORDER";
/// Sets something that belongs to no state, and that a boot sets too.
const NO_STATE: &str = "KVM_SET_TSS_ADDR";

/// A call in the table: its name, and whether every host makes it.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    call: String,
    always: bool,
}

#[test]
fn state_is_read_and_set_in_the_order_of_the_page() {
    let name = "state_is_read_and_set_in_the_order_of_the_page";
    if let Some(folder) = std::env::var_os(FOLDER) {
        return save_and_restore(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let traced = Command::new("strace")
        .args(["-f", "-e", "trace=ioctl", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(FOLDER, folder.path())
        .stdout(Stdio::null())
        .status();
    let traced = traced.expect("strace can be started (apt-get install strace)");
    assert!(traced.success(), "{traced}");
    let calls = calls(&fs::read_to_string(&trace).unwrap());
    let at = |call: &str| calls.iter().rposition(|made| made == call).unwrap();
    let read = &calls[at("KVM_GET_MSR_INDEX_LIST") + 1..=at("KVM_GET_CLOCK")];
    compare("read", &column(2), read);
    let set = calls[at("KVM_CREATE_VM")..].iter();
    let set = set.filter(|call| call.contains("_SET_") && *call != NO_STATE);
    compare("set", &column(4), &set.cloned().collect::<Vec<_>>());
}

/// Saves a machine that hasn't run, and restores it: both are done by this thread, in each step that a machine which runs has.
fn save_and_restore(folder: &Path) {
    let folder = folder.join("snapshot");
    let config = Config {
        memory: 64 << 20,
        ..Config::new(Kernel::Code(RESET.to_vec()))
    };
    let machine = Builder::new(config).build().unwrap();
    let saved = save_in(&folder, |state, memory, name| {
        machine.snapshot_into(&SaveFiles {
            state,
            memory,
            name,
        })
    });
    saved.unwrap();
    let snapshot = Snapshot::open(&folder).unwrap();
    drop(Builder::restore(&snapshot).build().unwrap());
}

/// Returns the names of KVM's calls in a trace that gave something or changed something.
fn calls(trace: &str) -> Vec<String> {
    let name = |line: &str| {
        let (_, arguments) = line.split_once("ioctl(")?;
        let (_, arguments) = arguments.split_once(", ")?;
        let end = arguments.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        Some(arguments[..end].to_owned())
    };
    let kvms = |call: &String| call.starts_with("KVM_") && call != "KVM_CHECK_EXTENSION";
    trace.lines().filter_map(name).filter(kvms).collect()
}

/// Returns the calls in a column of the table, by their numbers there.
fn column(number: usize) -> Vec<Step> {
    let table = PAGE
        .lines()
        .skip_while(|line| !line.starts_with("| state |"));
    let rows = table.skip(2).take_while(|line| line.starts_with('|'));
    let mut steps: Vec<_> = rows
        .flat_map(|row| row.split('|').nth(number).unwrap().split(';'))
        .filter_map(step)
        .collect();
    steps.sort_by_key(|(number, _)| *number);
    let numbers: Vec<_> = steps.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
    steps.into_iter().map(|(_, step)| step).collect()
}

/// Reads a cell, or a part of one: a number, and the name of a call, or nothing where a state has none.
fn step(cell: &str) -> Option<(usize, Step)> {
    let (number, rest) = cell.trim().split_once(". ")?;
    let call = rest.split('`').nth(1).unwrap_or_default().to_owned();
    let always = !rest.contains("only where");
    Some((number.parse().ok()?, Step { call, always }))
}

/// Checks that the calls are the steps, one after the other, without those of other hosts. Calls of one kind may be several.
fn compare(what: &str, steps: &[Step], calls: &[String]) {
    assert!(steps.len() > 8, "{what}: {steps:?}");
    let mut calls = calls.iter().peekable();
    for Step { call, always } in steps {
        let mut made = 0;
        while calls.next_if_eq(&call).is_some() {
            made += 1;
        }
        assert!(
            made > 0 || !always,
            "{what}: the page has {call} here, and the machine made {:?}",
            calls.collect::<Vec<_>>()
        );
    }
    assert_eq!(calls.next(), None, "{what}: this call is not in the page");
}

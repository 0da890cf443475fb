//! docs/learn/first-kvm-run.md has all calls that `minivm --kernel` makes on KVM's descriptors, up to the first KVM_RUN, in
//! their order: compared with those of a real run, under strace.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

use minivm_tests::code::{RESET, show};
use minivm_tests::given;
use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::run;

/// The descriptors of KVM's, as strace writes them with `-y`.
const DESCRIPTORS: [&str; 3] = ["</dev/kvm>", "<anon_inode:kvm-vm>", "<anon_inode:kvm-vcpu:"];
/// Calls with a capability that strace shows.
const ASKS: &str = "KVM_CHECK_EXTENSION";

/// A row of the page's table.
#[derive(Debug)]
struct Row {
    /// The call's name, with its capability where it asks for one.
    call: String,
    /// Whether it is made only where KVM offers the capability that the row before asks for.
    if_offered: bool,
    /// The file of the project's in which it is made, or a crate's name.
    place: String,
}

/// The rows of the page's table: those that begin with a number.
fn rows() -> Vec<Row> {
    let page = root().join("docs/learn/first-kvm-run.md");
    let page = fs::read_to_string(page).unwrap();
    page.lines().filter_map(row).collect()
}

/// The row of a line: `| 1 | `CALL` `CAPABILITY` (sections) | … | [`FILE`](…) |`.
fn row(line: &str) -> Option<Row> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
    cells.next()?.parse::<usize>().ok()?;
    let cell = cells.next()?;
    let mut names = cell.split('`').skip(1).step_by(2);
    let call = match (names.next()?, names.next()) {
        (ASKS, Some(capability)) => format!("{ASKS} {capability}"),
        (call, _) => call.to_owned(),
    };
    Some(Row {
        call,
        if_offered: cell.contains("if offered"),
        place: cells.last()?.split('`').nth(1)?.to_owned(),
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The call in a line of strace's, if it is on a descriptor of KVM's: an `ioctl` by its request.
fn call(line: &str) -> Option<String> {
    let (_, call) = line.split_once(' ')?;
    let (name, arguments) = call.trim_start().split_once('(')?;
    let mut arguments = arguments
        .split([',', ' ', ')'])
        .filter(|word| !word.is_empty());
    if name == "openat" {
        return line.contains("\"/dev/kvm\"").then(|| "open".to_owned());
    }
    if !DESCRIPTORS
        .iter()
        .any(|descriptor| call.contains(descriptor))
    {
        return None;
    }
    Some(match name {
        // An unoptimized program looks whether a descriptor is open before it closes it.
        "fcntl" => return None,
        "ioctl" => match (arguments.nth(1)?, arguments.next()) {
            (ASKS, Some(capability)) => format!("{ASKS} {capability}"),
            (request, _) => request.to_owned(),
        },
        other => other.to_owned(),
    })
}

/// The calls of minivm's, up to the first KVM_RUN.
fn calls() -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let [kernel, trace] = ["kernel", "trace"].map(|name| folder.path().join(name));
    fs::write(&kernel, Elf::of_code(&[&show(b'.'), &RESET]).bytes()).unwrap();
    let mut strace = Command::new("strace");
    // A line a call, with descriptors' files.
    strace
        .args(["-f", "-y", "-e", "trace=%desc", "-o"])
        .arg(&trace);
    strace.arg(given::minivm(env!("CARGO_BIN_EXE_minivm")));
    strace.args(["--accel", "kvm", "--kernel"]).arg(&kernel);
    let ended = run(&mut strace, PATIENCE);
    assert_eq!((ended.code, &*ended.text()), (Some(0), "."), "{ended:?}");
    let trace = fs::read_to_string(trace).unwrap();
    let mut calls: Vec<_> = trace.lines().filter_map(call).collect();
    let first_run = calls.iter().position(|call| call == "KVM_RUN").unwrap();
    calls.truncate(first_run + 1);
    calls
}

#[test]
fn the_page_has_every_call_in_order() {
    let calls = calls();
    let mut made = calls.iter().peekable();
    let rows = rows();
    for row in &rows {
        let next = made.next_if(|call| **call == row.call);
        let missing = next.is_none() && !row.if_offered;
        assert!(
            !missing,
            "next comes {:?}, and not {row:?}; all: {calls:#?}",
            made.peek()
        );
    }
    assert_eq!(made.next(), None, "the page ends before: {calls:#?}");
    assert!(rows.len() > 20, "{rows:?}");
}

#[test]
fn each_row_names_the_file_that_makes_its_call() {
    for Row { call, place, .. } in rows() {
        if !place.contains('/') {
            assert_eq!(place, "kvm-ioctls", "{call}");
            continue;
        }
        let text = fs::read_to_string(root().join(&place)).unwrap();
        let name = call.split(' ').next_back().unwrap();
        assert!(text.contains(name), "{place} doesn't explain {name}");
    }
}

#[test]
fn calls_are_read_from_a_trace() {
    for (line, expected) in [
        (
            "7 openat(AT_FDCWD</tmp>, \"/dev/kvm\", O_RDWR|O_CLOEXEC) = 5</dev/kvm>",
            Some("open"),
        ),
        (
            "7 ioctl(5</dev/kvm>, KVM_CREATE_VM, 0) = 6<anon_inode:kvm-vm>",
            Some("KVM_CREATE_VM"),
        ),
        (
            "17  ioctl(6<anon_inode:kvm-vm>, KVM_CHECK_EXTENSION, KVM_CAP_SPLIT_IRQCHIP <unfinished ...>",
            Some("KVM_CHECK_EXTENSION KVM_CAP_SPLIT_IRQCHIP"),
        ),
        (
            "7 ioctl(7<anon_inode:kvm-vcpu:0>, KVM_RUN <unfinished ...>",
            Some("KVM_RUN"),
        ),
        (
            "7 mmap(NULL, 12288, PROT_READ, MAP_SHARED, 7<anon_inode:kvm-vcpu:0>, 0) = 0x7f",
            Some("mmap"),
        ),
        ("7 <... ioctl resumed>)              = 0", None),
        ("7 ioctl(0</dev/null>, TIOCGWINSZ, 0x7f) = -1 ENOTTY", None),
    ] {
        assert_eq!(call(line).as_deref(), expected, "{line}");
    }
}

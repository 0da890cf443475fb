//! The trace of a whole boot. In a lab whose clock counts instructions, a boot repeats to the exit: what docs/trace.md shows of one is
//! compared with one.

// Tests run: here and in labs

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, run};
use minivm_tests::{chrome_trace, given};
use serde_json::Value;

/// The most that a count may differ from the page's, in percent: another build of minivm shifts a timer's tick.
const MARGIN: u64 = 5;

fn minivm() -> std::path::PathBuf {
    given::minivm(env!("CARGO_BIN_EXE_minivm"))
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/trace.md");
    fs::read_to_string(path).unwrap()
}

/// Boots our kernel with Python's initramfs in a lab that counts instructions; `rest` are the shell's words behind `minivm`'s.
fn boot_in_counting_lab(script: &str) -> Ended {
    let mut command = Command::new(minivm());
    command
        .args([
            "lab",
            "--icount",
            "--timeout=300s",
            "--",
            "sh",
            "-euc",
            script,
        ])
        .env("MINIVM", minivm())
        .env("KERNEL", given::path("MINIVM_TEST_KERNEL"))
        .env("BZIMAGE", given::path("MINIVM_TEST_BZIMAGE"))
        .env("INITRAMFS", given::path("MINIVM_TEST_INITRAMFS"));
    run(&mut command, PATIENCE)
}

/// The exits of a trace in JSON lines, without the returns of `KVM_RUN` that the guest didn't cause.
fn exits(trace: &str) -> Vec<Value> {
    let events = trace.lines().filter(|line| line.starts_with('{'));
    let events = events.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_the_guest = |event: &Value| {
        event["event"] == "exit"
            && event["kind"] != "interrupted"
            && event["kind"] != "not-runnable"
    };
    events.filter(of_the_guest).collect()
}

/// The devices in the order in which the guest turned to them, each with the number of exits until it turned to the next.
fn course(exits: &[Value]) -> Vec<(String, u64)> {
    let mut course: Vec<(String, u64)> = Vec::new();
    for exit in exits {
        let device = exit["device"].as_str().unwrap();
        match course.last_mut() {
            Some((last, count)) if last == device => *count += 1,
            _ => course.push((device.into(), 1)),
        }
    }
    course
}

/// The course of the boot on the page: the table with the columns `device` and `exits`.
fn course_on_the_page(page: &str) -> Vec<(String, u64)> {
    let rows = page
        .lines()
        .skip_while(|line| !line.starts_with("| exits | device |"));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    cells
        .map(|cells| (cells[2].into(), cells[1].parse().unwrap()))
        .collect()
}

/// The counts of a table at the end of a trace, by kind and meaning.
fn counts(text: &str) -> BTreeMap<(String, String), u64> {
    let rows = text.lines().skip_while(|line| !line.starts_with(" exits "));
    let rows = rows.skip(2).take_while(|line| line.contains(" % "));
    let (mut counts, mut kind) = (BTreeMap::new(), String::new());
    for row in rows {
        let (exits, rest) = row.split_once('%').unwrap();
        let exits = exits.split_whitespace().next().unwrap().parse().unwrap();
        let mut cells = rest
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        // The kind's column is empty where it is that of the row before.
        if !rest.starts_with("    ") {
            kind = cells.next().unwrap().into();
        }
        // A kind's sum has none.
        let meaning = cells.next().unwrap_or_default();
        if kind != "interrupted" {
            counts.insert((kind.clone(), meaning.into()), exits);
        }
    }
    counts
}

fn assert_close(what: &str, shown: u64, counted: u64) {
    let most = shown.max(counted);
    assert!(
        shown.abs_diff(counted) * 100 <= most * MARGIN,
        "{what}: {counted} exits, and docs/trace.md shows {shown}"
    );
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn every_exit_of_a_whole_boot_is_explained_and_as_the_page_shows_it() {
    let ended = boot_in_counting_lab(
        r#"exec "$MINIVM" --accel kvm --kernel "$KERNEL" --initramfs "$INITRAMFS" --trace --trace-format jsonl"#,
    );
    assert_eq!(
        (ended.code, ended.text().trim()),
        (Some(0), "4"),
        "{ended:?}"
    );
    let (exits, page) = (exits(&ended.stderr), page());
    assert!(exits.len() > 100, "{ended:?}");
    assert!(
        !ended.stderr.contains("Without an explanation"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("Lost"), "{}", ended.stderr);
    let named = exits
        .iter()
        .filter(|exit| exit["symbol"].is_string())
        .count();
    assert_eq!(named, exits.len(), "System.map lies beside the kernel");

    let (course, shown) = (course(&exits), course_on_the_page(&page));
    let devices = |course: &[(String, u64)]| {
        course
            .iter()
            .map(|(device, _)| device.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(devices(&course), devices(&shown), "{course:?}");
    for ((device, counted), (_, shown)) in course.iter().zip(&shown) {
        assert_close(device, *shown, *counted);
    }
    let (counts, shown) = (counts(&ended.stderr), counts(&page));
    assert!(counts.keys().eq(shown.keys()), "{counts:#?}\n{shown:#?}");
    for (row, counted) in &counts {
        assert_close(&row.1, shown[row], *counted);
    }
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn another_kernels_symbols_are_refused_where_they_can_be_told_and_else_warned_about() {
    // Another size is another kernel. A bzImage's is not known, but its instructions come from elsewhere.
    let ended = boot_in_counting_lab(
        r#"
        map=$(dirname "$KERNEL")/System.map
        sed 's/^[0-9a-f]* B _end$/ffffffff81fff000 B _end/' "$map" > /run/longer
        sed 's/^ffffffff81/ffffffff91/' "$map" > /run/elsewhere
        code=0
        "$MINIVM" --accel kvm --kernel "$KERNEL" --trace=/run/t --symbols /run/longer || code=$?
        echo "$code" >&2
        "$MINIVM" --accel kvm --kernel "$BZIMAGE" --initramfs "$INITRAMFS" --trace=/run/t --symbols /run/elsewhere
        "#,
    );
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut lines = ended.stderr.lines();
    let refused = lines.next().unwrap();
    assert!(refused.starts_with("minivm: /run/longer has the symbols of another kernel: it ends at 0xffffffff81fff000, and"), "{ended:?}");
    assert_eq!(lines.next(), Some("125"), "{ended:?}");
    let warned = lines.next().unwrap();
    assert!(
        warned.starts_with("minivm: the symbols in /run/elsewhere seem to be another kernel's"),
        "{ended:?}"
    );
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_machine_in_a_lab_of_its_own_is_traced_from_here() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("boot.json");
    let mut command = Command::new(minivm());
    command
        .args(["--accel", "lab", "--kernel"])
        .arg(given::path("MINIVM_TEST_KERNEL"));
    command
        .arg("--initramfs")
        .arg(given::path("MINIVM_TEST_INITRAMFS"));
    command.arg(format!("--trace={}", trace.display()));
    let ended = run(&mut command, PATIENCE);
    assert_eq!(
        (ended.code, ended.text().trim()),
        (Some(0), "4"),
        "{ended:?}"
    );
    let text = fs::read_to_string(trace).unwrap();
    let checked = chrome_trace::check(&text).unwrap();
    assert!(checked.complete.len() > 100, "{checked:?}");
    assert_eq!(checked.complete.last().unwrap(), "ACPI: power off");
    assert!(
        checked.instant.contains(&"KVM's own counts".into()),
        "{checked:?}"
    );
    assert!(text.contains(r#""symbol":"acpi_os_write_port+0x"#));
    assert!(
        !ended.stderr.contains("Without an explanation"),
        "{ended:?}"
    );
    assert!(
        ended
            .stderr
            .contains("Exits of the processor, out of the guest: "),
        "{ended:?}"
    );
}

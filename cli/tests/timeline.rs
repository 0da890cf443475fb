//! `minivm timeline` of machines of a few bytes of code, whose console plays a kernel's; and what it refuses.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use minivm_tests::code::{LOOP, RESET};
use minivm_tests::kernel_file::{CODE, Elf};
use minivm_tests::patience::{PATIENCE, with_limits_from};
use minivm_tests::program::{Ended, run};
use serde_json::Value;

/// The bytes of the code before what it prints: `mov dx, 0x3f8; mov esi, …; mov ecx, …; rep outsb`, and an end.
const PRINT: usize = 16;
const END: usize = 4;

/// Makes a kernel's file that prints a text on the console, in one exit or a few, and then runs `end`.
fn kernel(folder: &Path, text: &str, end: &[u8]) -> PathBuf {
    let at = u32::try_from(CODE).unwrap() + u32::try_from(PRINT + END).unwrap();
    let len = u32::try_from(text.len()).unwrap();
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xbe];
    code.extend(at.to_le_bytes());
    code.push(0xb9);
    code.extend(len.to_le_bytes());
    code.extend([0xf3, 0x6e]);
    assert_eq!(code.len(), PRINT);
    code.extend(end);
    code.resize(PRINT + END, 0);
    let path = folder.join("kernel");
    fs::write(&path, Elf::of_code(&[&code, text.as_bytes()]).bytes()).unwrap();
    path
}

fn timeline(args: &[&str]) -> Ended {
    let mut minivm = Command::new(env!("CARGO_BIN_EXE_minivm"));
    run(
        minivm.args(["timeline", "--accel=kvm"]).args(args),
        PATIENCE,
    )
}

fn measured(ended: &Ended) -> Value {
    let all: Vec<Value> = serde_json::from_slice(&ended.stdout).unwrap();
    let [one] = &*all else { panic!("{all:?}") };
    one.clone()
}

fn names(phases: &Value) -> Vec<&str> {
    let phases = phases.as_array().unwrap().iter();
    phases
        .map(|phase| phase["name"].as_str().unwrap())
        .collect()
}

#[test]
fn a_raw_machine_has_its_phases_and_its_console_those_of_the_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let log = "[    0.000000] Linux version 6.0-\x1b[31mtest\r\n\
        [    0.100000] printk: console [ttyS0] enabled\r\n\
        [    0.200000] devtmpfs: initialized\r\n\
        [    0.300000] Run /init as init process\r\nhello\r\n";
    let kernel = kernel(folder.path(), log, &RESET);
    let ended = timeline(&["--json", "--kernel", kernel.to_str().unwrap()]);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    let one = measured(&ended);
    assert_eq!(
        (&one["start"], &one["accel"]),
        (&"raw".into(), &"kvm".into())
    );
    assert_eq!(one["kernel"], "Linux version 6.0-[31mtest");
    let phases = &one["phases"];
    assert_eq!(
        names(phases),
        [
            "process start",
            "machine",
            "first entry",
            "kernel",
            "programs",
            "end"
        ]
    );
    assert_eq!(
        names(&phases[3]["parts"]),
        ["before its console", "drivers"]
    );
    assert_eq!(
        names(&phases[1]["parts"]),
        [
            "preparation",
            "memory reserved",
            "/dev/kvm opened",
            "KVM_CREATE_VM",
            "memory lent to KVM",
            "interrupt controllers",
            "vCPUs",
            "kernel loaded",
            "initramfs loaded",
            "boot data",
            "registers",
            "devices"
        ]
    );
    let kinds = one["exits"].as_array().unwrap().iter();
    let kinds: Vec<_> = kinds.map(|of| of["kind"].as_str().unwrap()).collect();
    assert!(
        kinds.starts_with(&["console (COM1)", "power and reset"]),
        "{kinds:?}"
    );
    assert!(one["guest_error"].is_null() && one["log_error"].is_null());
}

#[test]
fn the_time_limit_ends_a_machine_and_its_timeline_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path(), "x", &LOOP);
    let text = with_limits_from(Duration::from_millis(100), |limit| {
        let limit = format!("--timeout={}ms", limit.as_millis());
        let ended = timeline(&[&limit, "--kernel", kernel.to_str().unwrap()]);
        assert_eq!((ended.code, &*ended.stderr), (Some(124), ""));
        let text = ended.text();
        text.contains("console (COM1) 1").then_some(text)
    });
    for part in [
        "KVM_CREATE_VM",
        "kernel and programs",
        "was stopped",
        "console (COM1) 1",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path(), "x", &RESET);
    let kernel = kernel.to_str().unwrap();
    let missing = folder.path().join("none");
    let missing = missing.to_str().unwrap();
    for (args, parts) in [
        (
            &["--kernel", kernel, "--html=/nowhere/page.html"][..],
            &["cannot write /nowhere/page.html", "No such file"][..],
        ),
        (&["--kernel", missing], &[missing]),
        (&["--kernel", kernel, "--initramfs", missing], &[missing]),
        (&["--kernel", kernel, "--vs-kernel", missing], &[missing]),
        (
            &["--kernel", kernel, "--warm"],
            &["a raw machine has no template", "name an image"],
        ),
        (
            &["--kernel", kernel, "--vs-warm"],
            &["a raw machine has no template"],
        ),
        (&["--kernel", kernel, "--memory=1M"], &["memory"]),
    ] {
        let ended = timeline(args);
        ended.assert_refused(&format!("{args:?}"), parts);
        assert_eq!(ended.text(), "", "{args:?}");
    }
    for args in [
        &[][..],
        &["--warm", "--vs-warm", "alpine"],
        &["--initramfs", "x"],
        &["--kernel", kernel, "--initramfs", "x", "alpine"],
        &["--kernel", kernel, "--timeout", "soon"],
    ] {
        assert_eq!(timeline(args).code, Some(2), "{args:?}");
    }
}

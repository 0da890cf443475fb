//! `minivm run` from outside, where no guest gets to run: what it says before the boot, and of a machine that never comes up.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use minivm_tests::kernel_file::Elf;
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, run};
use tempfile::TempDir;

/// minivm's own error.
const ERROR: i32 = 125;
/// Wrong usage.
const USAGE: i32 = 2;

/// A cache, an image, a kernel that halts, and a QEMU that is a shell script.
struct Home(TempDir);

impl Home {
    fn new(qemu: &str) -> Self {
        let home = Home(tempfile::tempdir().unwrap());
        for folder in ["root/bin", "bin", "lab"] {
            fs::create_dir_all(home.path(folder)).unwrap();
        }
        fs::write(home.path("root/bin/true"), "").unwrap();
        // `hlt`, without interrupts.
        let kernel = Elf::of_code(&[&[0xfa, 0xf4]]).bytes();
        fs::write(home.path("vmlinux"), &kernel).unwrap();
        fs::write(home.path("lab/vmlinux"), &kernel).unwrap();
        let program = home.path("bin/qemu-system-x86_64");
        fs::write(&program, format!("#!/bin/sh\n{qemu}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `flags` and the image in the lab that can't start.
    fn run(&self, flags: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("MINIVM_COLD", "1")
            .env("MINIVM_LAB_KERNEL", self.path("lab"))
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.path("bin").display()),
            )
            .args(["run", "--accel", "lab", "--kernel"])
            .arg(self.path("vmlinux"))
            .args(flags)
            .arg(format!("dir:{}", self.path("root").display()))
            .args(["--", "/bin/true"]);
        run(&mut command, PATIENCE)
    }
}

#[test]
fn json_is_printed_for_minivms_own_errors_too() {
    let home = Home::new("echo KVM is on fire; exit 1");
    for (flags, said) in [
        (&["--json", "--quiet"][..], "the lab died: "),
        (
            &["--json", "--memory", "32M"],
            "32 MiB of memory are too little",
        ),
        (
            &["--json", "--copy-in", "/nowhere/at/all:/x"],
            "cannot copy /nowhere/at/all",
        ),
        (
            &["--json", "--env-file", "/nowhere"],
            "cannot read /nowhere",
        ),
    ] {
        let ended = home.run(flags);
        assert_eq!(ended.code, Some(ERROR), "{ended:?}");
        let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(report["exit_code"], ERROR, "{report}");
        let error = report["error"].as_str().unwrap();
        assert!(error.starts_with(said), "{report}");
        assert!(report["command_exit_code"].is_null(), "{report}");
        let told = format!("minivm: {error}");
        assert!(ended.stderr.trim_end().ends_with(&told), "{ended:?}");
    }
}

#[test]
fn wrong_flags_are_wrong_usage() {
    let home = Home::new("exit 1");
    for (flags, said) in [
        (["--ulimit", "nofile=2:1"], "the soft limit is more"),
        (["--copy-in", "a:b"], "DST has to be an absolute path"),
        (["-v", "/src:/dst"], "--copy-in HOST:PATH copies files"),
    ] {
        let ended = home.run(&flags);
        assert_eq!(ended.code, Some(USAGE), "{ended:?}");
        assert!(ended.stderr.contains(said), "{ended:?}");
    }
}

#[test]
fn what_container_users_are_used_to_is_taken() {
    let ended = Home::new("echo KVM is on fire; exit 1").run(&["--rm", "--quiet"]);
    assert_eq!(ended.code, Some(ERROR), "{ended:?}");
    assert!(ended.stderr.contains("KVM is on fire"), "{ended:?}");
}

#[test]
fn a_lab_that_dies_is_told_from_one_that_was_stopped_and_its_console_is_shown() {
    let ended = Home::new(r"printf 'KVM is \033[31mon fire\n'; exit 1").run(&["--quiet"]);
    assert_eq!(ended.code, Some(ERROR), "{ended:?}");
    assert!(
        ended.stderr.starts_with("minivm: the lab died: "),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("KVM is [31mon fire"), "{ended:?}");
}

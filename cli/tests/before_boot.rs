//! `minivm run` from outside, where no guest gets to run: what it says before the boot, and of a machine that never comes up.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
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
        (["-v", "/src"], "expected SRC:DST[:ro|rw]"),
        (["-v", "python:3-alpine"], "--verbose logs to stderr"),
        (["-v", "--cold"], "tip: behind `run`, `--verbose` logs"),
        (["-vv", "--cold"], "--verbose logs to stderr"),
        (
            ["--volume", "/src:/dst:cow"],
            "\"cow\" is not a mode: ro or rw",
        ),
        (["--volume", "/src:/dst/../x"], "absolute DST without `..`"),
        (["--volume", "/src:/proc/x"], "/proc is the guest's own"),
        (["--hide", "*.key"], "--volume <SRC:DST[:ro|rw]>"),
        (["--protect", "*.key"], "--volume <SRC:DST[:ro|rw]>"),
        (["--volume-quota", "1M"], "--volume <SRC:DST[:ro|rw]>"),
        (["--no-protect", "--cold"], "--volume <SRC:DST[:ro|rw]>"),
    ] {
        let ended = home.run(&flags);
        assert_eq!(ended.code, Some(USAGE), "{ended:?}");
        assert!(ended.stderr.contains(said), "{ended:?}");
        assert!(ended.stderr.starts_with("error: "), "{ended:?}");
    }
}

#[test]
fn what_cannot_be_shared_is_named_in_one_line() {
    let home = Home::new("echo it came to a boot; exit 1");
    let path = |name: &str| home.path(name).display().to_string();
    let share = |name: &str| format!("{}:/work", path(name));
    let fifo = path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let _socket = UnixListener::bind(path("socket")).unwrap();
    let (root, none) = (share("root"), share("none"));
    for (flags, said) in [
        (
            &["-v", &none][..],
            format!("cannot share {}: No such file", path("none")),
        ),
        (
            &["-v", &share("fifo")],
            format!("cannot share {fifo}: it is a device, FIFO or socket"),
        ),
        (
            &["-v", &share("socket")],
            "it is a device, FIFO or socket".into(),
        ),
        (
            &["-v", "/dev/null:/work"],
            "it is a device, FIFO or socket".into(),
        ),
        (
            &["-v", &root, "-v", "/:/work/."],
            "-v names /work twice".into(),
        ),
        (&["-v", &root, "--hide", ""], "\"\" is not a pattern".into()),
        (
            &["-v", &root, "--protect", "[z-a]"],
            format!("cannot share {}: ", path("root")),
        ),
    ] {
        let ended = home.run(flags);
        assert_eq!(ended.code, Some(ERROR), "{ended:?}");
        assert!(ended.stderr.contains(&said), "{said}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}

#[test]
fn other_sandboxes_refuse_what_they_cannot_share_by_name() {
    let home = Home::new("exit 1");
    let share = format!("{}:/work", home.path("root").display());
    for (backend, flags, said) in [
        (
            "gvisor",
            &[][..],
            "--backend gvisor can't protect .git/hooks",
        ),
        (
            "gvisor",
            &["--hide", "x"],
            "--hide: the backend gvisor has no way to hide",
        ),
        (
            "gvisor",
            &["--protect", "x"],
            "--protect: the backend gvisor has no way",
        ),
        (
            "gvisor",
            &["--volume-quota", "1G"],
            "--volume-quota: the backend gvisor has",
        ),
        (
            "monty",
            &["--no-protect"],
            "--volume: the backend monty has no shared folders",
        ),
        (
            "deno",
            &[],
            "--volume: the backend deno has no shared folders",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
        command.env("XDG_CACHE_HOME", home.path("cache"));
        command.args(["run", "--backend", backend, "-v", &share]);
        let ended = run(command.args(flags).args(["--code", "pass"]), PATIENCE);
        assert_eq!(ended.code, Some(ERROR), "{ended:?}");
        assert!(ended.stderr.contains(said), "{said}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
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

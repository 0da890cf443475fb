//! The command line from outside: what `minivm` says to input that is wrong, and that it says nothing to input that is right.
//!
//! They need a `/dev/kvm` that can run machine code in ring 0; even a KVM that can't run a whole Linux often can.

// Tests run: on any KVM

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use minivm_tests::code::{LOOP, RESET, show};
use minivm_tests::kernel_file::{BzImage, CODE, Elf, Segment};
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, assert_told, ends_until, run};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// minivm's own error.
const ERROR: i32 = 125;
/// Wrong usage.
const USAGE: i32 = 2;

fn minivm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivm"));
    command.env("RUST_BACKTRACE", "1");
    command
}

/// Files for one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Boots `kernel` with `flags`.
fn boot(kernel: &Path, flags: &[&str]) -> Ended {
    let mut command = minivm();
    command.args(["--accel", "kvm", "--kernel"]).arg(kernel);
    run(command.args(flags), PATIENCE)
}

/// A kernel's file that is refused: what it is, its bytes, and what is said of it.
type Refused = (&'static str, Vec<u8>, &'static [&'static str]);

/// Checks the rows, whose errors name their files too.
fn assert_kernels_refused(rows: &[Refused]) {
    let files = Files::new();
    for (what, bytes, parts) in rows {
        let kernel = files.write("kernel-file", bytes);
        let ended = boot(&kernel, &["--memory", "64M"]);
        assert_refused(what, &ended, parts);
        assert_told(what, &ended.stderr, &[kernel.to_str().unwrap()]);
    }
}

fn code() -> Elf {
    Elf::of_code(&[&show(b'!'), &RESET])
}

fn changed_elf(change: impl FnOnce(&mut Elf)) -> Vec<u8> {
    let mut elf = code();
    change(&mut elf);
    elf.bytes()
}

fn changed_bzimage(change: impl FnOnce(&mut BzImage)) -> Vec<u8> {
    let mut image = BzImage::default();
    change(&mut image);
    image.bytes()
}

/// Checks that it ended with minivm's own error, in one line that has all the `parts` in it.
fn assert_refused(what: &str, ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.text(), "", "{what}");
    ended.assert_refused(what, parts);
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    assert_kernels_refused(&[
        ("empty", vec![], &["the file is empty"]),
        (
            "text",
            b"#!/bin/sh\n".to_vec(),
            &["neither an ELF file (vmlinux) nor a bzImage"],
        ),
        (
            "zeros",
            vec![0; 1 << 20],
            &["neither an ELF file (vmlinux) nor a bzImage"],
        ),
    ]);
}

#[test]
fn a_damaged_elf_file_is_refused() {
    let whole = code().bytes();
    assert_kernels_refused(&[
        (
            "magic only",
            whole[..4].to_vec(),
            &["truncated: the ELF header ends at byte 64, the file has 4"],
        ),
        (
            "half a header",
            whole[..40].to_vec(),
            &["truncated: the ELF header"],
        ),
        (
            "half a table",
            whole[..100].to_vec(),
            &["truncated: the table of program headers ends at byte 120, the file has 100"],
        ),
        (
            "half a segment",
            whole[..whole.len() - 1].to_vec(),
            &["truncated: a segment"],
        ),
        (
            "a segment behind RAM",
            changed_elf(|elf| elf.segments.push(Segment::new(64 << 20, b"x"))),
            &[
                "0x4000000 to 0x4000001",
                "not in guest RAM",
                "more --memory helps up to 1G",
            ],
        ),
        (
            "a segment below 1 MiB",
            changed_elf(|elf| elf.segments.push(Segment::new(0x1000, b"x"))),
            &["0x1000 to 0x1001", "not in guest RAM"],
        ),
        (
            "a segment of all addresses",
            changed_elf(|elf| elf.segments[0].memory_size = u64::MAX),
            &["not in guest RAM"],
        ),
        (
            "overlapping segments",
            changed_elf(|elf| elf.segments.push(Segment::new(CODE + 1, b"x"))),
            &["damaged: its segments overlap at 0x100001"],
        ),
        (
            "more in the file than in memory",
            changed_elf(|elf| elf.segments[0].memory_size = 1),
            &["damaged: a segment has more bytes in the file than in memory"],
        ),
        (
            "an entry outside",
            changed_elf(|elf| elf.entry = CODE - 1),
            &["damaged: its entry point is not in a segment that it loads"],
        ),
        (
            "nothing to load",
            changed_elf(|elf| elf.segments.clear()),
            &["damaged: it has nothing to load"],
        ),
    ]);
}

#[test]
fn a_kernel_for_another_processor_is_refused_by_its_name() {
    let of = |class, data, machine| {
        changed_elf(|elf| (elf.class, elf.data, elf.machine) = (class, data, machine))
    };
    assert_kernels_refused(&[
        (
            "aarch64",
            of(2, 1, 183),
            &["a kernel for aarch64, not for x86-64"],
        ),
        (
            "i386",
            of(1, 1, 3),
            &["a kernel for 32-bit x86, not for x86-64"],
        ),
        (
            "S/390, big endian",
            of(2, 2, 22),
            &["a kernel for S/390, not for x86-64"],
        ),
        ("big endian", of(2, 2, 62), &["not for x86-64"]),
        ("x32", of(1, 1, 62), &["not for x86-64"]),
    ]);
}

#[test]
fn a_bzimage_that_cannot_be_booted_is_refused() {
    let whole = BzImage::default().bytes();
    assert_kernels_refused(&[
        (
            "too old",
            changed_bzimage(|image| image.version = 0x020b),
            &[
                "version 2.11 of the boot protocol",
                "2.12 (Linux 3.8) is the oldest",
            ],
        ),
        (
            "32 bits",
            changed_bzimage(|image| image.xloadflags = 0),
            &["no 64-bit entry point", "CONFIG_X86_64"],
        ),
        (
            "a zImage",
            changed_bzimage(|image| image.loadflags = 0),
            &["no 64-bit entry point"],
        ),
        (
            "half of it",
            whole[..whole.len() / 2].to_vec(),
            &["truncated: the kernel proper ends at byte"],
        ),
        (
            "a header only",
            whole[..0x280].to_vec(),
            &["truncated: the kernel proper"],
        ),
        ("half a header", whole[..0x220].to_vec(), &["not a kernel"]),
        (
            "an Image",
            [&[0; 56][..], b"ARM\x64"].concat(),
            &["it is a kernel for arm64, not for x86-64"],
        ),
        (
            "too large",
            changed_bzimage(|image| image.init_size = 64 << 20),
            &[
                "0x1000000 to 0x5000000",
                "not in guest RAM",
                "more --memory helps up to 1G",
            ],
        ),
        (
            "too high",
            changed_bzimage(|image| image.pref_address = u64::MAX),
            &["not in guest RAM"],
        ),
    ]);
}

#[test]
fn a_kernel_that_is_no_file_is_refused() {
    let files = Files::new();
    let missing = files.path("missing");
    assert_refused(
        "missing",
        &boot(&missing, &[]),
        &[
            "cannot read the kernel",
            missing.to_str().unwrap(),
            "No such file",
        ],
    );
    let folder = files.path("");
    assert_refused(
        "a folder",
        &boot(&folder, &[]),
        &[
            "cannot read the kernel",
            folder.to_str().unwrap(),
            "is a directory",
        ],
    );
    let pipe = files.path("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    for (what, file) in [
        ("a named pipe", pipe.as_path()),
        ("a device", Path::new("/dev/zero")),
    ] {
        let parts = [
            "cannot read the kernel",
            file.to_str().unwrap(),
            "neither a regular file nor a block device",
        ];
        assert_refused(what, &boot(file, &[]), &parts);
    }
}

#[test]
fn an_initramfs_that_cannot_be_loaded_is_refused() {
    let files = Files::new();
    let kernel = files.write("kernel", &code().bytes());
    let large = files.path("large");
    fs::File::create(&large).unwrap().set_len(64 << 20).unwrap();
    let folder = files.path("");
    let rows: [(&str, &Path, &[&str]); 3] = [
        (
            "missing",
            &files.path("missing"),
            &["cannot read the initramfs", "No such file"],
        ),
        (
            "a folder",
            &folder,
            &["cannot read the initramfs", "is a directory"],
        ),
        (
            "too large",
            &large,
            &[
                "of 67108864 bytes does not fit",
                "bytes of guest memory are left",
                "more --memory helps up to 3G",
            ],
        ),
    ];
    for (what, initramfs, parts) in rows {
        let initramfs = initramfs.to_str().unwrap();
        let ended = boot(&kernel, &["--memory", "64M", "--initramfs", initramfs]);
        assert_refused(what, &ended, parts);
        assert_told(what, &ended.stderr, &[initramfs]);
    }
}

#[test]
fn a_file_that_cannot_be_persistent_memory_is_refused() {
    let files = Files::new();
    let kernel = files.write("kernel", &code().bytes());
    let large = files.path("large");
    let made = fs::File::create(&large).unwrap();
    made.set_len((64 << 30) + 1).unwrap();
    let pipe = files.path("pipe");
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, 0o600.into(), 0).unwrap();
    let rows = [
        (files.path("missing"), "No such file"),
        (files.path(""), "is a directory"),
        (pipe, "neither a regular file nor a block device"),
        (files.write("empty", b""), "it is empty"),
        (large, "more than 64 GiB"),
    ];
    for (file, why) in rows {
        let file = file.to_str().unwrap();
        let ended = boot(&kernel, &["--pmem", file]);
        let parts = ["cannot read the persistent memory", file, why];
        assert_refused(why, &ended, &parts);
    }
}

#[test]
fn a_bad_command_line_for_the_kernel_is_refused() {
    let files = Files::new();
    let kernel = files.write("kernel", &code().bytes());
    for (what, cmdline, part) in [
        (
            "too long",
            "x".repeat(2048),
            "has 2048 bytes: the most is 2047",
        ),
        (
            "a newline",
            "quiet\n".into(),
            "has the byte 0x0a at 5: only printable ASCII",
        ),
        (
            "not ASCII",
            "ü".into(),
            "has the byte 0xc3 at 0: only printable ASCII",
        ),
    ] {
        assert_refused(
            what,
            &boot(&kernel, &["--cmdline", &cmdline]),
            &["command line", part],
        );
    }
    let short = files.write("short", &changed_bzimage(|image| image.cmdline_size = 255));
    let ended = boot(&short, &["--cmdline", &"x".repeat(256)]);
    let parts = [
        short.to_str().unwrap(),
        "command line of at most 255 bytes, and 256 were given",
    ];
    assert_refused("too long for this kernel", &ended, &parts);
}

#[test]
fn memory_and_cpus_out_of_bounds_are_refused() {
    let files = Files::new();
    let kernel = files.write("kernel", &code().bytes());
    for (flag, value, parts) in [
        (
            "--memory",
            "0",
            ["0 bytes of guest memory", "the least is 32M"],
        ),
        ("--memory", "31M", ["guest memory", "the least is 32M"]),
        ("--memory", "1025G", ["guest memory", "the most is 1T"]),
        ("--memory", "33554433", ["guest memory", "multiple of 4096"]),
        ("--cpus", "0", ["0 vCPUs", "from 1 to 8"]),
        ("--cpus", "9", ["9 vCPUs", "from 1 to 8"]),
    ] {
        assert_refused(
            &format!("{flag} {value}"),
            &boot(&kernel, &[flag, value]),
            &parts,
        );
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    for (arguments, part) in [
        (
            &["--kernel", "k", "--memory", "abc"][..],
            "\"abc\" is not a size",
        ),
        (&["--kernel", "k", "--memory", "1P"], "\"1P\" is not a size"),
        (
            &["--kernel", "k", "--memory", "99999999999999999999G"],
            "is not a size",
        ),
        (
            &["--kernel", "k", "--cpus", "300"],
            "expected a number from 1 to 8",
        ),
        (&["--kernel", "k", "--cpus", "-1"], "'-1'"),
        (&["--kernel", "k", "--accel", "hvf"], "'hvf'"),
        (&["--kernel", "k", "--no-such-flag"], "'--no-such-flag'"),
        (&["no-such-command"], "'no-such-command'"),
        (&["--initramfs", "i"], "--kernel <FILE>"),
        (&["--kernel", "k", "doctor"], "--kernel is for"),
        (&["--cpus", "2", "prune"], "not before `prune`"),
        (&["-v"], "--kernel <FILE>"),
        (&[], "--kernel <FILE>"),
    ] {
        let ended = run(minivm().args(arguments), PATIENCE);
        assert_eq!(ended.code, Some(USAGE), "{arguments:?}: {ended:?}");
        assert_eq!(ended.text(), "", "{arguments:?}");
        assert!(
            ended.stderr.starts_with("error: "),
            "{arguments:?}: {}",
            ended.stderr
        );
        assert!(
            ended.stderr.contains(part),
            "{arguments:?}: {}",
            ended.stderr
        );
        assert!(
            !ended.stderr.contains("panicked"),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
}

#[test]
fn the_argument_that_is_not_utf_8_is_named() {
    let odd = OsStr::from_bytes;
    for (arguments, named) in [
        (
            &[odd(b"-u"), odd(b"me\xff"), odd(b"img")][..],
            r#""me\xFF""#,
        ),
        (&[odd(b"img:\xff")], r#""img:\xFF""#),
        // A working folder and a command may have any bytes.
        (
            &[
                odd(b"-w\xfd"),
                odd(b"--user=\xff"),
                odd(b"img"),
                odd(b"\xfe"),
            ],
            r#""--user=\xFF""#,
        ),
    ] {
        let ended = run(minivm().arg("run").args(arguments), PATIENCE);
        assert_eq!(ended.code, Some(USAGE), "{arguments:?}: {ended:?}");
        let line = format!("error: the argument {named} is not UTF-8, as it has to be\n");
        assert_eq!(ended.stderr, line);
    }
}

#[test]
fn a_guest_that_kvm_cannot_run_ends_with_the_reason() {
    // mov eax, 0x30000000; jmp rax: where there is no memory, there is nothing to execute.
    let elf = Elf::of_code(&[&show(b'!'), &[0xb8, 0x00, 0x00, 0x00, 0x30, 0xff, 0xe0]]);
    let files = Files::new();
    let ended = boot(&files.write("kernel", &elf.bytes()), &[]);
    assert_eq!(
        (ended.code, ended.text().as_str()),
        // The guest's doing, not minivm's failure.
        (Some(1), "!"),
        "{ended:?}"
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert_told(
        "nowhere",
        &ended.stderr,
        &["vCPU 0 stopped", "instruction pointer 0x30000000"],
    );
    // Another kernel would have had no chance either.
    let blames_kvm = ended.stderr.ends_with(": leave out --accel kvm\n");
    let unusable = matches!(
        minivm_machine::probe(),
        Err(minivm_vmm::Error::KvmUnusable(_))
    );
    assert_eq!(blames_kvm, unusable, "{ended:?}");
}

#[test]
fn a_guest_that_crashes_is_exit_code_1() {
    let files = Files::new();
    let kernel = files.write("kernel", &Elf::of_code(&[&[0x0f, 0x0b]]).bytes()); // ud2
    let ended = boot(&kernel, &[]);
    assert_eq!(
        (ended.code, ended.text().as_str()),
        (Some(1), ""),
        "{ended:?}"
    );
    assert_eq!(
        ended.stderr,
        "minivm: the guest crashed while it was starting (triple fault)\n"
    );
}

#[test]
fn a_guests_output_is_all_that_is_said() {
    let files = Files::new();
    let kernel = files.write("kernel", &code().bytes());
    for flags in [&[][..], &["--cpus", "8", "--memory", "4G"]] {
        let ended = boot(&kernel, flags);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        assert_eq!(ended.stdout, b"!");
    }
}

#[test]
fn output_that_nobody_reads_ends_it_as_it_ends_other_programs() {
    let files = Files::new();
    let kernel = files.write("kernel", &Elf::of_code(&[&show(b'!'), &LOOP]).bytes());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = minivm();
    command.args(["--accel", "kvm", "--kernel"]).arg(&kernel);
    let output = command
        .stdin(std::process::Stdio::null())
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    // 128 and SIGPIPE's number.
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert_eq!(output.stderr, b"");
}

#[test]
fn what_another_sandbox_does_not_know_is_refused() {
    for (arguments, part) in [
        (&["dir:/tmp"][..], "runs no images: leave dir:/tmp out"),
        (
            &["--cold"],
            "--cold: the backend monty has no virtual machine: take another one",
        ),
        (&["--cpus", "2"], "--cpus: the backend monty has no"),
        (&["--copy-out", "/a:b"], "no way to copy files out"),
        (
            &["--copy-in", "/etc/hostname:/a"],
            "no way to copy files in",
        ),
        (
            &["-w", "/tmp"],
            "--workdir: the backend monty has no settings",
        ),
    ] {
        let mut command = minivm();
        command.args(["run", "--backend", "monty", "--code", "print(4)"]);
        let ended = run(command.args(arguments), PATIENCE);
        assert_eq!((ended.code, ended.text().as_str()), (Some(125), ""));
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
}

#[test]
fn one_signal_ends_a_run_whose_report_is_not_read() {
    let mut command = minivm();
    command.args(["run", "--json", "--backend", "monty", "--code"]);
    // More than a pipe holds.
    command.arg("print('x' * 200000)");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // When there is something of it, all has ended but this process.
    let mut first = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ended = ends_until(&child, Instant::now() + PATIENCE);
    child.kill().unwrap();
    assert!(ended, "it hears the first one");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn help_names_every_flag() {
    let ended = run(minivm().arg("--help"), PATIENCE);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    for flag in [
        "--kernel",
        "--initramfs",
        "--cmdline",
        "--memory",
        "--cpus",
        "--accel",
        "--control",
        "snapshot",
        "restore",
        "doctor",
        "lab",
    ] {
        assert!(ended.text().contains(flag), "{flag}: {}", ended.text());
    }
    assert!(!ended.text().contains("lab-init"), "{}", ended.text());
}

#[test]
fn the_doctor_looks_at_the_variable_too() {
    let accel = |value: &str| -> String {
        let mut command = minivm();
        let ended = run(command.arg("doctor").env("MINIVM_ACCEL", value), PATIENCE);
        let text = ended.text();
        let line = text.lines().find(|line| line.contains(" accel "));
        line.unwrap_or_else(|| panic!("{ended:?}")).to_owned()
    };
    assert!(accel("nonsense").contains("MINIVM_ACCEL is \"nonsense\""));
    // What of the two works is this machine's.
    assert!(!accel("kvm").contains("lab: "), "{}", accel("kvm"));
    assert!(!accel("lab").contains("kvm: "), "{}", accel("lab"));
}

#[test]
fn the_doctors_json_is_a_list_of_checks() {
    // Where `-v` stands doesn't matter.
    let ended = run(minivm().args(["-v", "doctor", "--json"]), PATIENCE);
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&ended.stdout).unwrap();
    assert!(!checks.is_empty());
    for check in checks {
        let text = |field: &str| check[field].as_str().map(str::to_owned);
        assert!(
            text("name").is_some() && text("detail").is_some(),
            "{check}"
        );
        let state = text("state").unwrap();
        assert!(["ok", "slow", "no"].contains(&state.as_str()), "{check}");
        assert!(state != "no" || text("remedy").is_some(), "{check}");
    }
}

/// Runs `--accel lab`, which first says where it runs, to its error.
fn lab_error(kernel: &Path, variables: &[(&str, &Path)]) -> String {
    let mut command = minivm();
    command.args(["--accel", "lab", "--kernel"]).arg(kernel);
    command.envs(variables.iter().copied());
    let ended = run(&mut command, PATIENCE);
    assert_eq!(
        (ended.code, ended.text().as_str()),
        (Some(ERROR), ""),
        "{ended:?}"
    );
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{ended:?}");
    assert!(
        lines[0].starts_with("minivm: running in the lab"),
        "{ended:?}"
    );
    lines[1].to_owned()
}

#[test]
fn a_missing_qemu_is_named_with_its_package() {
    let files = Files::new();
    let kernel = files.write("vmlinux", &code().bytes());
    let nowhere = files.path("nowhere");
    let error = lab_error(
        &kernel,
        &[("PATH", &nowhere), ("MINIVM_LAB_KERNEL", files.0.path())],
    );
    assert_told(
        "no QEMU",
        &error,
        &["qemu-system-x86_64", "apt-get install qemu-system-x86"],
    );
}

#[test]
fn a_missing_lab_kernel_is_named_with_what_makes_it() {
    let files = Files::new();
    let kernel = files.write("kernel", &code().bytes());
    let nowhere = files.path("nowhere");
    let error = lab_error(&kernel, &[("MINIVM_LAB_KERNEL", &nowhere)]);
    assert_told(
        "no kernel",
        &error,
        &[nowhere.to_str().unwrap(), "cargo xtask setup"],
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn what_guests_of_another_architecture_lack_is_named_with_what_makes_it() {
    let files = Files::new();
    let root = files.path("root");
    fs::create_dir(&root).unwrap();
    let image = format!("dir:{}", root.display());
    let setup = "cargo xtask setup --arm64";
    let run_for =
        |platform, accel| vec!["run", "--platform", platform, "--accel", accel, &image, "x"];
    for (what, arguments, expected) in [
        (
            "no kernel",
            run_for("linux/arm64", "auto"),
            [setup, "no kernel in"],
        ),
        (
            "KVM alone",
            [
                &run_for("linux/arm64", "kvm")[..5],
                &["--kernel", "/dev/null", &image, "x"],
            ]
            .concat(),
            ["--accel kvm refuses", "linux/arm64"],
        ),
        (
            "no program",
            vec!["lab", "--processor", "arm-max", "--", "x"],
            [setup, "no minivm for a lab with arm-max"],
        ),
    ] {
        let mut command = minivm();
        command
            .args(arguments)
            .env("XDG_CACHE_HOME", files.path("cache"));
        let ended = run(&mut command, PATIENCE);
        assert_ne!(ended.code, Some(0), "{what}: {ended:?}");
        assert_told(what, &ended.stderr, &expected);
    }
}

/// Runs a shell script in a mount namespace of its own, whose `/dev` has what minivm needs but `/dev/kvm`. In the end the
/// script boots a kernel by `exec $minivm`: as root by name, without a right to files that their modes don't give.
fn in_own_dev(files: &Files, script: &str) -> Ended {
    let kernel = files.write("kernel", &code().bytes());
    let old = files.path("dev");
    fs::create_dir(&old).unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let prepare = "set -e
        mount --rbind /dev \"$old\"
        mount -t tmpfs none /dev
        for node in null urandom; do : > /dev/$node; mount --bind \"$old/$node\" /dev/$node; done
        minivm='setpriv --bounding-set=-all --inh-caps=-all '$binary' --accel kvm --kernel '$kernel";
    command
        .args(["--mount", "sh", "-c", &format!("{prepare}\n{script}")])
        .env("old", old)
        .env("kernel", kernel)
        .env("binary", env!("CARGO_BIN_EXE_minivm"));
    run(&mut command, PATIENCE)
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_missing_dev_kvm_is_named_with_what_brings_it() {
    let ended = in_own_dev(&Files::new(), "exec $minivm");
    assert_refused(
        "no /dev/kvm",
        &ended,
        &[
            "there is no /dev/kvm",
            "load the kvm_intel or kvm_amd module",
        ],
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_forbidden_dev_kvm_is_named_with_what_opens_it() {
    let ended = in_own_dev(
        &Files::new(),
        ": > /dev/kvm; chmod 0 /dev/kvm; exec $minivm",
    );
    let parts = ["no permission to open /dev/kvm", "usermod -aG kvm"];
    assert_refused("no permission", &ended, &parts);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn an_unreadable_kernel_is_refused() {
    let files = Files::new();
    let ended = in_own_dev(&files, "chmod 0 \"$kernel\"; exec $minivm");
    let kernel = files.path("kernel");
    let parts = [
        "cannot read the kernel",
        kernel.to_str().unwrap(),
        "Permission denied",
    ];
    assert_refused("unreadable", &ended, &parts);
}

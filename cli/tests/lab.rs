//! The lab from outside: `minivm lab` as a program, with its streams and its exit code.

// Tests run: here and in labs

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use minivm_tests::given;
use minivm_tests::output::text;
use minivm_tests::patience::PATIENCE;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// For what hangs.
const LIMIT: &str = "--timeout=300s";

/// `minivm lab` with the flags and command, all of its streams pipes.
fn lab(arguments: &[&str]) -> Child {
    start(&mut Command::new(env!("CARGO_BIN_EXE_minivm")), arguments)
}

fn start(minivm: &mut Command, arguments: &[&str]) -> Child {
    minivm
        .arg("lab")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Its end, with no input.
fn end_of(arguments: &[&str]) -> Output {
    lab(arguments).wait_with_output().unwrap()
}

fn shell(script: &str) -> Output {
    end_of(&[LIMIT, "--", "sh", "-c", script])
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn the_exit_code_is_the_commands() {
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("exec /etc", 126),
    ] {
        let output = shell(script);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{script}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_command_that_is_not_there_is_127() {
    let output = end_of(&[LIMIT, "--", "no-such-command"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(
        text(&output.stderr).starts_with("minivm: cannot run no-such-command: "),
        "{}",
        text(&output.stderr)
    );
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn stdout_and_stderr_stay_apart() {
    let output = shell("echo out; echo err >&2; echo out again");
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("out\nout again\n", "err\n")
    );
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn ten_megabytes_come_back_as_they_went() {
    // Bytes of every value in no simple order (a linear congruential generator).
    let mut state = 1_u32;
    let sent: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(10_000_001)
    .collect();
    let mut child = lab(&[LIMIT, "--", "tee", "/dev/stderr"]);
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&sent).unwrap();
            drop(stdin);
        });
        child.wait_with_output().unwrap()
    });
    assert_eq!(output.status.code(), Some(0));
    assert!(
        output.stdout == sent,
        "{} bytes of other stdout",
        output.stdout.len()
    );
    assert!(
        output.stderr == sent,
        "{} bytes of other stderr",
        output.stderr.len()
    );
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_reader_that_is_late_gets_all_of_it_and_the_exit_code() {
    let mut lab = lab(&[LIMIT, "--", "sh", "-c", "head -c 300000 /dev/zero; exit 7"]);
    let mut stdout = lab.stdout.take().unwrap();
    let mut bytes = vec![1];
    stdout.read_exact(&mut bytes).unwrap();
    // By then the command has ended, as a rule; where it hasn't, this is not the test that it could be.
    thread::sleep(Duration::from_secs(2));
    stdout.read_to_end(&mut bytes).unwrap();
    let ended = lab.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(7), "{}", text(&ended.stderr));
    assert!(bytes.len() == 300_000 && bytes.iter().all(|byte| *byte == 0));
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_line_is_answered_before_the_input_ends() {
    let mut child = lab(&[
        LIMIT,
        "--",
        "sh",
        "-c",
        "while read line; do echo got $line; done; echo end",
    ]);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for number in 0..3 {
        writeln!(stdin, "{number}").unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, format!("got {number}\n"));
    }
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "end\n");
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn input_that_nobody_reads_holds_nothing_up() {
    let mut child = lab(&[LIMIT, "--", "true"]);
    let mut stdin = child.stdin.take().unwrap();
    // Written until the program is gone.
    let writer = thread::spawn(move || while stdin.write_all(&[0; 65536]).is_ok() {});
    assert!(child.wait().unwrap().success());
    writer.join().unwrap();
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn output_that_nobody_reads_ends_the_command() {
    let mut child = lab(&[LIMIT, "--", "yes"]);
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn what_a_command_leaves_running_ends_with_it() {
    let output = shell("sleep 1000 & echo done");
    assert_eq!(text(&output.stdout), "done\n");
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn the_time_limit_ends_the_lab() {
    let output = end_of(&["--timeout=3s", "--", "sleep", "1000"]);
    assert_eq!(output.status.code(), Some(124));
    assert_eq!(text(&output.stderr), "minivm: time limit of 3s reached\n");
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_host_root_has_kvm_the_hosts_files_and_takes_writes() {
    let marker = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = marker.path().to_str().unwrap();
    fs::write(marker.path().join("here"), "host").unwrap();
    let script = format!(
        "test -c /dev/kvm && test \"$(id -u)\" = 0 && test \"$PWD\" = \"{path}\" && cat here && \
         echo lab > here && echo lab > new && touch /tmp/t /run/r /dev/shm/s && ls /proc/self/fd >/dev/fd/1"
    );
    let output = Command::new(env!("CARGO_BIN_EXE_minivm"))
        .args(["lab", LIMIT, "--", "sh", "-c", &script])
        .current_dir(marker.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).starts_with("host0\n1\n2\n"),
        "{}",
        text(&output.stdout)
    );
    assert_eq!(
        fs::read_to_string(marker.path().join("here")).unwrap(),
        "host"
    );
    assert!(!marker.path().join("new").exists());
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_private_root_has_only_what_it_was_given() {
    let shell = end_of(&[LIMIT, "--private", "--", "/bin/sh", "-c", "true"]);
    assert_eq!(shell.status.code(), Some(127), "{}", text(&shell.stderr));
    let given = format!("--file={}:/given/program", env!("CARGO_BIN_EXE_minivm"));
    let program = end_of(&[
        LIMIT,
        "--private",
        &given,
        "--",
        "/given/program",
        "--version",
    ]);
    assert_eq!(program.status.code(), Some(0), "{}", text(&program.stderr));
    assert!(
        text(&program.stdout).starts_with("minivm "),
        "{}",
        text(&program.stdout)
    );
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_killed_minivm_leaves_no_qemu() {
    let mut child = lab(&[LIMIT, "--", "sh", "-c", "echo up; sleep 1000"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let qemu = Path::new("/proc").join(children.trim());
    assert!(
        fs::read_to_string(qemu.join("cmdline"))
            .unwrap()
            .starts_with("qemu-system")
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ends(&qemu);
}

/// Waits until a process is gone, or dead and not yet waited for by what inherited it.
fn assert_ends(process: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while fs::read_to_string(process.join("cmdline")).is_ok_and(|line| !line.is_empty()) {
        let status = || fs::read_to_string(process.join("status")).unwrap_or_default();
        assert!(
            Instant::now() < deadline,
            "it is still there:\n{}",
            status()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// The process below this one whose program's name ends so.
fn below(process: u32, program: &str) -> Option<PathBuf> {
    let folder = Path::new("/proc").join(process.to_string());
    let line = fs::read_to_string(folder.join("cmdline")).ok()?;
    if line.split('\0').next()?.ends_with(program) {
        return Some(folder);
    }
    let children = fs::read_to_string(folder.join(format!("task/{process}/children"))).ok()?;
    let threads = fs::read_dir(folder.join("task")).ok()?;
    let others =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let all: Vec<String> = others.chain([children]).collect();
    let mut all = all.iter().flat_map(|children| children.split_whitespace());
    all.find_map(|child| below(child.parse().ok()?, program))
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_private_labs_qemu_is_in_a_jail_that_ends_with_minivm() {
    let here = tempfile::tempdir().unwrap();
    let script = "echo up; exec /busybox sleep 1000";
    let mut child = lab(&[
        LIMIT,
        "--private",
        "--file=/bin/busybox:/busybox",
        "--",
        "/busybox",
        "sh",
        "-c",
        script,
    ]);
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let qemu = below(child.id(), "qemu-system-x86_64").unwrap();
    let status = fs::read_to_string(qemu.join("status")).unwrap();
    for held in [
        // By a filter of system calls, and without any power.
        "Seccomp:\t2\n",
        "NoNewPrivs:\t1\n",
        "CapEff:\t0000000000000000\n",
    ] {
        assert!(status.contains(held), "{held}: {status}");
    }
    // And it is no root of this host's.
    let user = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap();
    assert_ne!(user.split_whitespace().next(), Some("0"), "{status}");
    for namespace in ["mnt", "net", "pid", "ipc", "user"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
        assert_ne!(of(&qemu), of(Path::new("/proc/self")), "{namespace}");
    }
    let inside = |path: &Path| qemu.join("root").join(path.strip_prefix("/").unwrap());
    assert!(inside(Path::new("/usr/bin")).exists());
    for hidden in [here.path(), Path::new("/home"), Path::new("/etc/passwd")] {
        assert!(!inside(hidden).exists(), "{}", hidden.display());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ends(&qemu);
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn debians_kernel_and_its_modules_make_a_lab() {
    let kernel = given::path("MINIVM_TEST_DEBIAN_CLOUD");
    let mut minivm = Command::new(env!("CARGO_BIN_EXE_minivm"));
    minivm.env("MINIVM_LAB_KERNEL", kernel.parent().unwrap());
    let doctor = ["--private", "--", "/minivm", "doctor", "--json"];
    let child = start(&mut minivm, &[&[LIMIT][..], &doctor].concat());
    let output = child.wait_with_output().unwrap();
    let checks: Vec<serde_json::Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let usable = checks.iter().find(|check| check["name"] == "kvm usable");
    assert_eq!(usable.unwrap()["state"], "ok", "{checks:#?}");
}

#[test]
fn a_missing_kernel_names_the_command_that_makes_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_minivm"))
        .args(["lab", "--", "true"])
        .env("MINIVM_LAB_KERNEL", folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let expected = format!(
        "minivm: no lab kernel in {}: make it with `cargo xtask setup`, or set MINIVM_LAB_KERNEL to a folder that has one\n",
        folder.path().display()
    );
    assert_eq!(text(&output.stderr), expected);
}

/// A folder with a `qemu-system-x86_64` that gives the kernel no timer in its first starts, as a host does that leaves it
/// standing while it measures it. Each start leaves a line in the file `starts`.
fn qemu_without_a_timer(starts: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "#!/bin/sh
PATH=${{PATH#*:}}
echo >> {folder}/starts
[ $(wc -l < {folder}/starts) -gt {starts} ] && exec qemu-system-x86_64 \"$@\"
for word; do
    shift
    case $word in console=*) word=\"noapictimer $word\";; esac
    set -- \"$@\" \"$word\"
done
exec qemu-system-x86_64 \"$@\"
",
        folder = folder.path().display()
    );
    let path = folder.path().join("qemu-system-x86_64");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs `cat` in a lab of this QEMU, gives it a word, and returns how often QEMU was started.
fn echoed_with(folder: &Path) -> (Output, usize) {
    let path = std::env::var("PATH").unwrap();
    let mut minivm = Command::new(env!("CARGO_BIN_EXE_minivm"));
    minivm.env("PATH", format!("{}:{path}", folder.display()));
    let mut lab = start(&mut minivm, &[LIMIT, "--", "cat"]);
    // It may have ended by then, if it doesn't start.
    let _ = lab.stdin.take().unwrap().write_all(b"word\n");
    let output = lab.wait_with_output().unwrap();
    let starts = fs::read_to_string(folder.join("starts")).unwrap();
    (output, starts.lines().count())
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_lab_without_a_timer_is_started_again() {
    let folder = qemu_without_a_timer(2);
    let (output, starts) = echoed_with(folder.path());
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), "word\n");
    assert_eq!(output.status.code(), Some(0));
    // A busy host takes the third start's timer, too, now and then.
    assert!(starts >= 3, "{starts} starts");
}

#[test]
#[ignore = "needs the lab: cargo xtask test"]
fn a_lab_that_never_has_a_timer_is_given_up() {
    let folder = qemu_without_a_timer(1000);
    let (output, starts) = echoed_with(folder.path());
    assert_eq!(
        text(&output.stderr),
        "minivm: the lab has no reliable timer after 10 starts (processor 0 has no timer): run it again while this host is less busy\n"
    );
    assert_eq!((text(&output.stdout), starts), ("", 10));
    assert_eq!(output.status.code(), Some(125));
}

//! What `minivm` inherits from whatever starts it: put right, or refused by name.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Program, run};
use rustix::process::Signal;

const MINIVM: &str = env!("CARGO_BIN_EXE_minivm");
const ANSWER: [&str; 6] = ["run", "-q", "--backend=monty", "--code", "print(6*7)", "--"];
const ENDLESS: [&str; 5] = [
    "run",
    "-q",
    "--backend=monty",
    "--code",
    "print('up')\nwhile True: pass",
];

/// What a shell does before it becomes minivm.
fn in_shell(before: &str) -> Vec<&str> {
    vec!["sh", "-c", before, "sh"]
}

/// minivm in surroundings that the words before it make.
fn below(words: &[&str], args: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(MINIVM);
    command.args(args.iter().filter(|arg| **arg != "--"));
    command
}

#[track_caller]
#[test]
fn inherited_settings_are_put_right() {
    for words in [
        vec!["env", "--ignore-signal=CHLD"],
        vec!["env", "--ignore-signal"],
        vec!["env", "--block-signal"],
        vec!["env", "--block-signal", "--ignore-signal"],
        vec!["prlimit", "--nofile=20:1024"],
        vec!["prlimit", "--stack=100000:16777216"],
        vec!["prlimit", "--sigpending=0:100"],
        vec!["prlimit", "--core=0", "--memlock=0", "--msgqueue=0"],
        vec!["env", "TMPDIR="],
        vec!["env", "PATH="],
        vec!["env", "-u", "PATH"],
        vec!["env", "RUST_MIN_STACK=1"],
        vec!["env", "RUST_MIN_STACK=99999999999999"],
        in_shell("exec \"$@\" <&-"),
        in_shell("exec \"$@\" 2>&-"),
        in_shell("exec \"$@\" 0>/dev/null"),
        in_shell("exec \"$@\" 2</dev/null"),
        in_shell("umask 0777; exec \"$@\""),
        in_shell("umask 0; exec \"$@\""),
        in_shell("cd \"$(mktemp -d)\"; rmdir \"$PWD\"; exec \"$@\""),
    ] {
        let ended = run(&mut below(&words, &ANSWER), PATIENCE);
        let seen = (ended.code, ended.text(), &*ended.stderr);
        assert_eq!(seen, (Some(0), "42\n".into(), ""), "{words:?}");
    }
    let all_closed = in_shell("exec \"$@\" <&- >&- 2>&-");
    let ended = run(&mut below(&all_closed, &ANSWER), PATIENCE);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn other_inherited_settings_are_refused_by_name() {
    let rows: [(Vec<&str>, &[&str]); 11] = [
        (
            vec!["prlimit", "--nofile=20"],
            &["open files is 20", "ulimit -n"],
        ),
        (
            vec!["prlimit", "--stack=100000"],
            &["stack in bytes is 100000", "ulimit -s"],
        ),
        (
            vec!["prlimit", "--as=100000000"],
            &["address space", "ulimit -v"],
        ),
        (vec!["prlimit", "--data=50000000"], &["data", "ulimit -d"]),
        (
            vec!["prlimit", "--sigpending=0"],
            &["pending signals is 0", "ulimit -i"],
        ),
        (
            vec!["prlimit", "--fsize=100"],
            &["File too large", "size is 100", "ulimit -f"],
        ),
        (
            vec!["env", "TMPDIR=/dev/null"],
            &["TMPDIR is not", ": /dev/null: set"],
        ),
        (
            vec!["env", "TMPDIR=tmp"],
            &["TMPDIR is not an absolute path"],
        ),
        (
            vec!["env", "HOME=home"],
            &["HOME is not an absolute path: home"],
        ),
        (
            vec!["env", "XDG_CACHE_HOME=./cache"],
            &["XDG_CACHE_HOME is not an absolute path: ./cache"],
        ),
        (
            vec!["env", "PATH=/nowhere:."],
            &["unshare is in no folder of PATH", "util-linux"],
        ),
    ];
    for (words, parts) in rows {
        let ended = run(&mut below(&words, &ANSWER), PATIENCE);
        ended.assert_refused(&format!("{words:?}"), parts);
        assert_eq!(ended.text(), "");
    }
    let unwritable = in_shell("exec \"$@\" 1</dev/null");
    let ended = run(&mut below(&unwritable, &ANSWER), PATIENCE);
    ended.assert_refused("stdout", &["stdout is not open for writing"]);
}

#[test]
fn a_cache_that_others_could_change_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let cache = place.path().join("minivm");
    let home = format!("XDG_CACHE_HOME={}", place.path().display());
    let answer = || run(&mut below(&["env", &home], &ANSWER), PATIENCE);
    let mode = |mode| fs::set_permissions(&cache, Permissions::from_mode(mode)).unwrap();
    fs::create_dir(&cache).unwrap();
    for open in [0o777, 0o775] {
        mode(open);
        let named = format!("mode {open:04o}");
        answer().assert_refused(&named, &[&*named, "chmod -R go-w"]);
    }
    mode(0o755);
    assert_eq!(answer().text(), "42\n");
    fs::rename(&cache, place.path().join("real")).unwrap();
    symlink("real", &cache).unwrap();
    answer().assert_refused("a link", &["symbolic link", "XDG_CACHE_HOME"]);
    fs::remove_file(&cache).unwrap();
    // Only root can give it away.
    if std::os::unix::fs::chown(place.path(), Some(1234), None).is_ok() {
        answer().assert_refused("above", &["user 1234's", "sudo -H"]);
    }
}

/// A mask of signals in a process's status.
fn mask(status: &str, name: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    u64::from_str_radix(line.trim_start_matches([':', '\t', ' ']), 16).unwrap()
}

fn bit(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

#[test]
fn blocked_signals_arrive_and_ignored_ones_stay_ignored() {
    let words = ["env", "--block-signal", "--ignore-signal=HUP"];
    let mut running = Program::start(&mut below(&words, &ENDLESS));
    running.wait_for("up", PATIENCE);
    let status = fs::read_to_string(format!("/proc/{}/status", running.id())).unwrap();
    assert_eq!(mask(&status, "SigBlk"), 0);
    assert_eq!(mask(&status, "SigIgn") & bit(Signal::HUP), bit(Signal::HUP));
    running.signal(Signal::TERM);
    assert_eq!(running.end(PATIENCE).code, Some(143));
}

#[test]
fn the_worker_puts_signals_right_too() {
    let worker = Path::new(MINIVM).with_file_name("minivm-worker");
    let worker = worker.to_str().unwrap();
    let mut command = Command::new("env");
    command.args(["--block-signal", "--ignore-signal=CHLD", worker]);
    command.args(["rootless", "/bin/cat", "/proc/self/status"]);
    let ended = run(&mut command, PATIENCE);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(mask(&ended.text(), "SigBlk"), 0);
    assert_eq!(mask(&ended.text(), "SigIgn") & bit(Signal::CHILD), 0);
}

#[test]
fn open_files_are_not_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("inherited");
    let before = format!("exec 9>'{}'; exec \"$@\"", file.display());
    let mut running = Program::start(&mut below(&in_shell(&before), &ENDLESS));
    running.wait_for("up", PATIENCE);
    assert_eq!(who_has(&file), [running.id()]);
}

/// The processes that have the file open.
fn who_has(file: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let number = |name: std::ffi::OsString| name.to_str()?.parse().ok();
    let numbers = processes.filter_map(|entry| number(entry.file_name()));
    let has = |process: &u32| {
        let open = fs::read_dir(format!("/proc/{process}/fd"));
        let mut open = open.into_iter().flatten().flatten();
        open.any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == file))
    };
    numbers.filter(has).collect()
}

#[test]
fn streams_that_others_made_non_blocking_are_waited_for() {
    // More than a pipe holds, both ways.
    const SIZE: usize = 1 << 18;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), [b'x'; SIZE]).unwrap();
    let image = format!("dir:{}", folder.path().display());
    for (image, read) in [(&*image, true), ("-", false)] {
        let (input, mut writer) = std::io::pipe().unwrap();
        let (mut reader, output) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&input, true).unwrap();
        rustix::io::ioctl_fionbio(&output, true).unwrap();
        let building = {
            let mut command = Command::new(MINIVM);
            command.args(["build", "-q", "-o", "/dev/stdout", image]);
            command.stdin(input).stdout(output).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        // Our copies of its ends are closed with the command.
        if !read {
            // A tar without anything in it.
            writer.write_all(&[0; SIZE]).unwrap();
        }
        drop(writer);
        let mut written = Vec::new();
        reader.read_to_end(&mut written).unwrap();
        let ended = building.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.success(), read, "{said}");
        assert_eq!(written.len() > SIZE, read);
        assert_eq!(said.contains("standard input has no index.json"), !read);
    }
}

#[test]
fn a_full_disk_under_the_messages_changes_no_exit_code() {
    let full = in_shell("exec \"$@\" 2>/dev/full");
    let ended = run(&mut below(&full, &["build", "-o", "/", "dir:/"]), PATIENCE);
    assert_eq!(ended.code, Some(125), "{ended:?}");
    let full = in_shell("exec \"$@\" >/dev/full");
    let ended = run(&mut below(&full, &["template", "ls"]), PATIENCE);
    ended.assert_refused("a list", &["stdout", "No space left on device"]);
}

//! Files into the guest and out of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use minivm_tests::patience::with_limits_from;
use minivm_tests::program::Program;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use crate::guest::{PATIENCE, assert_well, end_of, noise, scratch, shell};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Some time in 2001.
const OLD: i64 = 1_000_000_000;

fn set_time(path: &Path, seconds: i64) {
    let time = UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A new folder.
fn folder(name: &str) -> std::path::PathBuf {
    let folder = scratch(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn files_and_folders_go_in_and_come_out_with_their_modes_and_times() {
    let here = folder("copies");
    let input = here.join("in");
    fs::create_dir_all(input.join("deep/er")).unwrap();
    let big = noise(3_000_001);
    fs::write(input.join("big"), &big).unwrap();
    fs::write(
        input.join("deep/er/script"),
        "#!/bin/sh\necho it runs as $(id -u)\n",
    )
    .unwrap();
    chmod(&input.join("deep/er/script"), 0o750);
    chmod(&input.join("deep"), 0o700);
    symlink("deep/er", input.join("link")).unwrap();
    set_time(&input.join("deep/er"), OLD + 1);
    set_time(&input.join("deep"), OLD);
    set_time(&input.join("big"), OLD + 2);
    let one = here.join("one");
    fs::write(&one, "one").unwrap();
    chmod(&one, 0o640);

    let at = |path: &Path, to: &str| format!("{}:{to}", path.display());
    let copies = [
        at(&input, "/srv/all"),
        at(&one, "/srv/new/"),
        at(&one, "/etc/one"),
    ];
    let out = here.join("out");
    let script = "stat -c '%a %u %n' /srv/all/deep /srv/all/deep/er/script /srv/new/one /etc/one; \
                  /srv/all/link/script; cat /etc/one; echo; stat -c %Y /srv/all/deep /srv/all/deep/er /srv/all/big; mkdir /tmp/result; cp -a /srv/all /tmp/result/again; \
                  mkdir /tmp/result/closed; echo x > /tmp/result/closed/x; chmod 4555 /tmp/result/closed/x; chmod 500 /tmp/result/closed; \
                  ln -s again/big /tmp/result/inside; exit 7";
    let there = folder("copies-out");
    let outs = [
        format!("/tmp/result:{}", out.display()),
        format!("/etc/one:{}", there.display()),
    ];
    let mut flags = vec!["-u", "app"];
    copies
        .iter()
        .for_each(|copy| flags.extend(["--copy-in", copy]));
    outs.iter()
        .for_each(|copy| flags.extend(["--copy-out", copy]));
    let ended = end_of(shell(&flags, script));
    assert_eq!(
        ended.text(),
        "700 1000 /srv/all/deep\n750 1000 /srv/all/deep/er/script\n640 1000 /srv/new/one\n640 1000 /etc/one\n\
         it runs as 1000\none\n1000000000\n1000000001\n1000000002\n",
        "{}",
        ended.stderr
    );
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(7), ""));
    assert!(fs::read(out.join("again/big")).unwrap() == big);
    for (name, time) in [("deep", OLD), ("deep/er", OLD + 1), ("big", OLD + 2)] {
        let path = out.join("again").join(name);
        assert_eq!(fs::metadata(path).unwrap().mtime(), time, "{name}");
    }
    assert_eq!(mode(&out.join("again/deep")), 0o700);
    assert_eq!(mode(&out.join("again/deep/er/script")), 0o750);
    assert_eq!(
        mode(&out.join("closed")),
        0o700,
        "the owner can always clean up"
    );
    assert_eq!(mode(&out.join("closed/x")), 0o555, "no set-user-ID");
    assert_eq!(
        fs::read_link(out.join("inside")).unwrap(),
        Path::new("again/big")
    );
    assert_eq!(fs::read(there.join("one")).unwrap(), b"one");
}

#[test]
fn what_cannot_be_copied_out_is_125_and_said_and_the_rest_is_copied() {
    let here = folder("partly");
    let to = |name: &str| here.join(name).display().to_string();
    let outs = [
        format!("/nowhere:{}", to("a")),
        format!("/tmp/there:{}", to("b")),
        format!("/tmp/special:{}", to("c")),
        format!("/etc/passwd:{}", to("passwd/below")),
    ];
    fs::write(here.join("passwd"), "a file").unwrap();
    let flags: Vec<&str> = outs
        .iter()
        .flat_map(|out| ["--copy-out", out.as_str()])
        .collect();
    let script = "echo fine > /tmp/there; mkdir /tmp/special; mknod /tmp/special/pipe p; ln -s /etc/passwd /tmp/special/out";
    let ended = end_of(shell(&flags, script));
    assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(
        lines[0],
        "minivm: cannot copy /nowhere out: No such file or directory (os error 2)"
    );
    assert!(
        lines.iter().any(|line| line
            .ends_with("special/pipe: neither a file, a folder nor a link")
            || line.ends_with("c/pipe: neither a file, a folder nor a link")),
        "{}",
        ended.stderr
    );
    assert!(
        lines
            .iter()
            .any(|line| line.ends_with("c/out: a link that may lead elsewhere")),
        "{}",
        ended.stderr
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("minivm: cannot copy /etc/passwd out: to ")),
        "{}",
        ended.stderr
    );
    assert_eq!(fs::read(here.join("b")).unwrap(), b"fine\n");
}

#[test]
fn files_are_copied_out_of_a_command_that_was_killed() {
    let here = folder("killed");
    let out = format!("/tmp/there:{}", here.join("b").display());
    let ended = end_of(shell(
        &["--copy-out", &out],
        "echo fine > /tmp/there; kill -9 $$",
    ));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(137), ""));
    assert_eq!(fs::read(here.join("b")).unwrap(), b"fine\n");
}

#[test]
fn a_cache_and_temporary_folder_are_left_as_they_were() {
    let temporary = folder("tmp");
    let mut command = shell(&[], "true");
    command.env("TMPDIR", &temporary);
    assert_well(&end_of(command));
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let made = ["initramfs", "erofs"].map(|name| scratch("cache").join("minivm").join(name));
    let all = || made.each_ref().map(|folder| names(folder)).concat();
    let before = all();
    let mut command = shell(&[], "true");
    command.env("TMPDIR", &temporary);
    assert_well(&end_of(command));
    assert_eq!(all(), before);
    assert_eq!(names(&temporary), Vec::<std::ffi::OsString>::new());
    let is_whole = |name: &str| name.ends_with(".cpio") || name.ends_with(".erofs");
    let mut names = before.iter().map(|name| name.to_str().unwrap());
    assert!(!before.is_empty() && names.all(is_whole), "{before:?}");
}

#[test]
fn existing_folders_keep_their_mode_and_links_and_pipes_are_left_out() {
    let here = folder("careful");
    let tree = here.join("tree");
    fs::create_dir(&tree).unwrap();
    chmod(&tree, 0o700);
    fs::write(tree.join("first"), "the same").unwrap();
    fs::hard_link(tree.join("first"), tree.join("second")).unwrap();
    let pipe = tree.join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let copies = format!("{}:/tmp", tree.display());
    let out = here.join("out");
    let (linked, names) = (out.join("linked"), out.join("names"));
    fs::create_dir(&out).unwrap();
    let outs = [
        format!("/tmp/link:{}", linked.display()),
        format!("/tmp/pair:{}", names.display()),
    ];
    let script = "stat -c '%a %u' /tmp; cat /tmp/first /tmp/second; echo; \
                  mkdir /tmp/pair; echo pair > /tmp/pair/a; ln /tmp/pair/a /tmp/pair/b; \
                  ln -s ../.. /tmp/pair/out; ln -s pair/a /tmp/link";
    let ended = end_of(shell(
        &[
            "--copy-in",
            &copies,
            "--copy-out",
            &outs[0],
            "--copy-out",
            &outs[1],
        ],
        script,
    ));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.text(), "1777 0\nthe samethe same\n");
    assert_eq!(fs::read_to_string(&linked).unwrap(), "pair\n");
    assert_eq!(fs::read_to_string(names.join("a")).unwrap(), "pair\n");
    assert_eq!(fs::read_to_string(names.join("b")).unwrap(), "pair\n");
    assert!(
        ended.stderr.contains("names/out: a link"),
        "{}",
        ended.stderr
    );
    let left_out = format!("minivm: left out {}: a pipe\n", pipe.display());
    assert!(ended.stderr.starts_with(&left_out), "{}", ended.stderr);
}

#[test]
fn a_command_that_reaches_its_limit_leaves_its_files_where_they_are_wanted() {
    let here = folder("limit");
    let out = format!("/tmp/log:{}", here.join("log").display());
    let script = "echo so far > /tmp/log; exec sleep 1000";
    let ended = with_limits_from(Duration::from_secs(3), |limit| {
        let limit = format!("{}s", limit.as_secs());
        let flags = ["--copy-out-on-timeout", "--copy-out", &out];
        let ended = end_of(shell(
            &[&["--timeout", &limit], &flags[..]].concat(),
            script,
        ));
        assert_eq!(ended.code, Some(124), "{}", ended.stderr);
        let log = fs::read(here.join("log")).unwrap_or_default();
        (log == b"so far\n").then_some(ended)
    });
    let told: Vec<_> = ended.stderr.lines().collect();
    assert!(
        told.len() == 1 && told[0].starts_with("minivm: time limit of "),
        "{told:?}"
    );
}

#[test]
fn one_signal_ends_a_copy_once_the_command_has_ended() {
    let here = folder("cut");
    let out = format!("/tmp/out:{}", here.join("out").display());
    // Much that is nothing in the guest, and takes its time to come.
    let script = "mkdir /tmp/out; echo whole > /tmp/out/a; truncate -s 200M /tmp/out/b";
    let program = Program::start(&mut shell(&["--copy-out", &out], script));
    let began = Instant::now();
    while !here.join("out/a").exists() {
        assert!(began.elapsed() < PATIENCE, "the first file comes");
        std::thread::sleep(Duration::from_millis(1));
    }
    program.signal(Signal::TERM);
    let ended = program.end(PATIENCE);
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("/tmp/out was not copied out as a whole"),
        "{}",
        ended.stderr
    );
    let names: Vec<_> = fs::read_dir(here.join("out")).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

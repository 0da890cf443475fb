//! Each system call of a start fails once, by strace's fault injection (strace(1), "Tampering").
//!
//! `cargo xtask test` lets all calls of a boot fail with one error, and the first ones of each kind of other commands; `cargo xtask soak` all
//! calls with several errors.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use minivm_machine::SnapshotFolder;
use minivm_tests::patience::PATIENCE;
use minivm_tests::processes;
use minivm_tests::program::{Ended, Program, run};
use minivm_tests::stress;
use minivm_vmm::{Builder, Config, Kernel};
use rustix::process::{Pid, Signal, kill_process};

use crate::Scene;
use crate::calls::{Seen, of_trace};

/// minivm's own error.
const ERROR: i32 = 125;

/// Errors that calls fail with.
const FEW: &[&str] = &["ENOMEM"];
const MANY: &[&str] = &[
    "ENOMEM", "EAGAIN", "EINTR", "EIO", "EMFILE", "ENOSPC", "ENOSYS", "EPERM",
];

/// Calls that failed, and what was wrong then.
#[derive(Default)]
struct Failures {
    wrong: Vec<String>,
    /// How many faults minivm refused to go on after.
    refused: usize,
    all: usize,
}

impl Failures {
    /// Judges a run in which a call failed: it went well all the same, with this output and at most a warning, or ended with one line.
    fn judge(&mut self, fault: &str, ended: &Ended, output: &str) {
        self.all += 1;
        let lines: Vec<_> = ended.stderr.lines().collect();
        let is_clear = lines.len() <= 1
            && lines
                .iter()
                .all(|line| line.starts_with("minivm: ") && !line.contains("panicked"));
        let is_right = match ended.code {
            Some(0) => ended.text() == output,
            // The line itself may be what could not be written.
            Some(ERROR) => lines.len() == 1 || fault.starts_with("write "),
            _ => false,
        };
        self.refused += usize::from(ended.code == Some(ERROR));
        if !(is_clear && is_right) {
            self.wrong.push(format!("{fault}: {ended:?}"));
        }
    }

    #[track_caller]
    fn assert_none(self, least: usize) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        // strace does let calls fail.
        assert!(self.refused >= least, "{} of {}", self.refused, self.all);
    }
}

/// The words that trace a program into this scene, and let a call fail.
fn strace(scene: &Scene, fault: Option<(&Seen, &str)>) -> Vec<String> {
    let trace = scene.path("trace").to_str().unwrap().to_owned();
    let mut words: Vec<String> = ["strace", "-f", "-qq", "-o", &trace].map(Into::into).into();
    if let Some((Seen { call, .. }, error)) = fault {
        let inject = format!("inject={}:error={error}:when={}", call.name, call.number);
        words.extend(["-e".into(), inject]);
    }
    words
}

fn traced(
    scene: &Scene,
    fault: Option<(&Seen, &str)>,
    command: impl Fn(&[&str]) -> Command,
) -> Command {
    let words = strace(scene, fault);
    command(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The calls of a run that goes well.
fn calls(scene: &Scene, command: impl Fn(&[&str]) -> Command, output: &str) -> Vec<Seen> {
    let ended = run(&mut traced(scene, None, command), PATIENCE);
    assert_eq!((ended.code, &*ended.text()), (Some(0), output), "{ended:?}");
    of_trace(&fs::read_to_string(scene.path("trace")).unwrap())
}

/// Lets each of these calls fail, with each of the errors; looks at what is there `after` each run.
fn sweep(
    scene: &Scene,
    calls: &[Seen],
    command: impl Fn(&[&str]) -> Command,
    output: &str,
    after: impl Fn(&str, &Ended),
) -> Failures {
    let mut failures = Failures::default();
    for error in stress::count(FEW, MANY) {
        for seen in calls {
            let fault = format!("{} {} with {error}", seen.call.name, seen.call.number);
            let ended = run(&mut traced(scene, Some((seen, error)), &command), PATIENCE);
            scene.assert_nothing_stays(&fault);
            after(&fault, &ended);
            failures.judge(&format!("{fault}, {}", seen.line), &ended, output);
        }
    }
    failures
}

/// The first calls of each kind; in a soak, all.
fn some(calls: Vec<Seen>) -> Vec<Seen> {
    let mut kinds = BTreeSet::new();
    let is_new = |seen: &Seen| kinds.insert(seen.kind().to_owned());
    match stress::count(true, false) {
        true => calls.into_iter().filter(is_new).collect(),
        false => calls,
    }
}

#[test]
fn each_call_of_a_boot_fails_once() {
    let scene = Scene::new();
    let boot = |before: &[&str]| scene.boot(before, "short");
    let calls = calls(&scene, boot, ".");
    let kvm = calls.iter().filter(|seen| seen.kind().starts_with("KVM_"));
    assert!(kvm.count() > 15, "{calls:?}");
    sweep(&scene, &calls, boot, ".", |_, _| {}).assert_none(40);
}

#[test]
fn the_calls_of_a_build_fail_once_and_the_old_archive_stays_or_a_whole_one_comes() {
    a_build_is_whole("initramfs", stress::count(3, 1));
}

#[test]
fn the_calls_of_a_build_of_erofs_fail_once_and_the_old_image_stays_or_a_whole_one_comes() {
    a_build_is_whole("erofs", stress::count(5, 1));
}

/// Fails every call of a build of this format, or some of them.
fn a_build_is_whole(format: &str, step: usize) {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("root/folder")).unwrap();
    fs::write(scene.path("root/folder/file"), [b'x'; 100_000]).unwrap();
    symlink("folder", scene.path("root/link")).unwrap();
    fs::create_dir(scene.path("out")).unwrap();
    let archive = scene.path("out/archive");
    let build = |before: &[&str]| {
        fs::write(&archive, "old").unwrap();
        let mut command = scene.minivm(before);
        command.args(["build", "--quiet", "--format", format, "-o"]);
        command.arg(&archive);
        command.arg(format!("dir:{}", scene.path("root").display()));
        command
    };
    let calls = calls(&scene, build, "").into_iter();
    let calls: Vec<_> = calls.step_by(step).collect();
    let whole = fs::read(&archive).unwrap();
    assert!(whole.len() > 100_000);
    let after = |fault: &str, ended: &Ended| {
        let expected = if ended.code == Some(0) {
            &whole[..]
        } else {
            b"old"
        };
        assert!(
            fs::read(&archive).unwrap() == expected,
            "{fault}: {ended:?}"
        );
        assert_eq!(
            fs::read_dir(scene.path("out")).unwrap().count(),
            1,
            "{fault}"
        );
    };
    sweep(&scene, &calls, build, "", after).assert_none(10);
}

/// Saves a machine that has not run yet.
fn save(scene: &Scene, guest: &str, name: &str) {
    let mut config = Config::new(Kernel::File(scene.path(guest)));
    config.memory = 32 << 20;
    let machine = Builder::new(config).build().unwrap();
    SnapshotFolder::save(scene.path(name), |files| machine.snapshot_into(files)).unwrap();
}

#[test]
fn the_calls_of_a_restore_fail_once() {
    let scene = Scene::new();
    save(&scene, "short", "saved");
    let restore = |before: &[&str]| {
        let mut command = scene.minivm(before);
        command.args(["restore", "--accel", "kvm"]);
        command.arg(scene.path("saved"));
        command
    };
    let calls = some(calls(&scene, restore, "."));
    sweep(&scene, &calls, restore, ".", |_, _| {}).assert_none(20);
}

/// Some calls of those by which a machine is saved, every one in a soak: what fails is the client's error, or the machine's, and the folder has
/// a whole snapshot, the old one or the new.
#[test]
fn calls_fail_while_a_machine_is_saved() {
    let scene = Scene::new();
    let boot = |before: &[&str]| {
        let mut command = scene.boot(before, "waiting");
        command.args(["--memory", "32M", "--control"]);
        command.arg(scene.path("socket"));
        command
    };
    saved_and_stopped(&scene, &mut traced(&scene, None, boot), "no fault");
    let calls = of_trace(&fs::read_to_string(scene.path("trace")).unwrap());
    let of_server = |seen: &Seen| seen.call.name.starts_with("accept");
    let saving: Vec<_> = calls
        .into_iter()
        .skip_while(|seen| !of_server(seen))
        .collect();
    assert!(saving.len() > 20, "{saving:?}");
    let mut saving = some(saving);
    // By it a signal's handler wakes the thread that ends the machine: the signal would be lost.
    saving.retain(|seen| seen.call.name != "sendto");
    for error in stress::count(FEW, MANY) {
        for seen in &saving {
            let fault = format!("{} {} with {error}", seen.call.name, seen.call.number);
            let mut machine = traced(&scene, Some((seen, error)), boot);
            saved_and_stopped(&scene, &mut machine, &format!("{fault}, {}", seen.line));
        }
    }
}

/// Saves a running machine over an older snapshot, and ends it, by a signal where it goes on.
fn saved_and_stopped(scene: &Scene, machine: &mut Command, fault: &str) {
    save(scene, "waiting", "saved");
    let mut machine = Program::start(machine);
    machine.stdin = None;
    // It may have ended by the fault.
    if machine.has_written(".", PATIENCE) {
        let mut client = scene.minivm(&[]);
        client.args(["snapshot", "--stop"]);
        client.arg(scene.path("socket")).arg(scene.path("saved"));
        let client = run(&mut client, PATIENCE);
        let mut judged = Failures::default();
        if client.code != Some(0) {
            judged.judge(fault, &client, "");
            let below = processes::below(machine.id()).into_iter();
            for process in below.filter(|process| process.parent == machine.id()) {
                let pid = Pid::from_raw(i32::try_from(process.id).unwrap()).unwrap();
                // It may have ended.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        assert!(judged.wrong.is_empty(), "{}", judged.wrong.join("\n"));
    }
    let ended = machine.end(PATIENCE);
    let by_signal = ended.signal == Some(Signal::TERM.as_raw());
    assert!(
        by_signal || matches!(ended.code, Some(0 | ERROR)),
        "{fault}: {ended:?}"
    );
    assert!(!ended.stderr.contains("panicked"), "{fault}: {ended:?}");
    scene.assert_nothing_stays(fault);
    // Removing it may be what failed.
    let may_stay = fault.starts_with("unlink");
    assert!(may_stay || !scene.path("socket").exists(), "{fault}");
    let mut restore = scene.minivm(&[]);
    restore
        .args(["restore", "--accel", "kvm"])
        .arg(scene.path("saved"));
    let mut restored = Program::start(&mut restore);
    restored.write(b"x").unwrap();
    let ended = restored.end(PATIENCE);
    assert_eq!(ended.code, Some(0), "{fault}: {ended:?}");
    assert!(ended.text().ends_with('!'), "{fault}: {ended:?}");
}

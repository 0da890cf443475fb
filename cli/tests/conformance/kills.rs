//! That nothing is left when `minivm` is killed, at its code's start and at any other time.

use minivm_tests::patience::PATIENCE;
use minivm_tests::processes::{self, Process};
use minivm_tests::stress::{self, Random};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivm_sandbox::Sandbox;

use crate::host;

/// When it is killed, in milliseconds from its start.
const MOMENTS: [u64; 6] = [1, 4, 15, 60, 250, 1000];

/// The last of the moments that a soak adds.
const MOMENT_MAX: u64 = 3000;

pub(crate) fn leaves_nothing_when_minivm_is_killed(sandbox: &dyn Sandbox) {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::default();
    let at_random = (0..stress::count(0, 30)).map(|_| random.number() % MOMENT_MAX);
    for moment in MOMENTS.into_iter().chain(at_random) {
        let mut minivm = start(sandbox, folder.path());
        let mut family = BTreeMap::new();
        let until = Instant::now() + Duration::from_millis(moment);
        while Instant::now() < until {
            family.extend(descendants(minivm.id()));
            thread::sleep(Duration::from_millis(1));
        }
        family.extend(descendants(minivm.id()));
        minivm.kill().unwrap();
        assert_eq!(
            minivm.wait().unwrap().signal(),
            Some(9),
            "it had to be killed"
        );
        gone(&family, moment);
        let left: Vec<PathBuf> = files(folder.path());
        assert!(left.is_empty(), "after {moment} ms: {left:?}");
    }
}

/// `minivm` with a loop that never ends, and a folder for temporary files of its own.
fn start(sandbox: &dyn Sandbox, folder: &Path) -> Child {
    let mut command = Command::new(host::minivm());
    command.args(["run", "-q", "--backend", sandbox.backend().name()]);
    command.args(["--code", "print('begun')\nwhile True:\n    pass"]);
    command.env("TMPDIR", folder);
    command.env(
        "MINIVM_IMAGE",
        format!("dir:{}", minivm_tests::given::python_root().display()),
    );
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Each process below one that is alive, with what names it.
pub(crate) fn descendants(of: u32) -> BTreeMap<u32, Process> {
    let alive = processes::below(of).into_iter().filter(|one| one.is_alive);
    alive.map(|one| (one.id, one)).collect()
}

fn gone(family: &BTreeMap<u32, Process>, moment: u64) {
    let began = Instant::now();
    loop {
        let left = family.values().filter(|process| process.still_runs());
        let left: Vec<u32> = left.map(|process| process.id).collect();
        if left.is_empty() {
            return;
        }
        let name =
            |process: &u32| fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        let names: Vec<String> = left.iter().map(name).collect();
        assert!(
            began.elapsed() < PATIENCE,
            "after {moment} ms: {left:?} {names:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

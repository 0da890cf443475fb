//! That sandboxes leave nothing behind in the process that runs them, and nothing on the host: no process, no thread, no file,
//! no open file, no control group. One sandbox after the other, alone in a process, so that all can be counted.

// Tests run: with the tools, alone

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[allow(dead_code, reason = "the conformance suite needs more of it")]
#[path = "conformance/host.rs"]
mod host;

use minivm_tests::patience::PATIENCE;
use minivm_tests::{processes, stress};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use minivm_sandbox::{Backend, End, Sandbox};

use host::{code, run};

/// What has not changed for so long is at rest.
const REST: Duration = Duration::from_millis(500);

/// All that could be left behind.
#[derive(Debug, PartialEq, Eq)]
struct State {
    children: usize,
    threads: usize,
    open_files: BTreeSet<String>,
    groups: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl State {
    fn now() -> State {
        State {
            children: processes::below(std::process::id()).len(),
            threads: entries("/proc/self/task").count(),
            open_files: open_files(),
            groups: groups(),
            files: entries(temporary_files()).collect(),
        }
    }

    /// As soon as it stays the same for a while: what a thread is about to close is still there at first.
    fn at_rest() -> State {
        let mut last = State::now();
        loop {
            thread::sleep(REST);
            let now = State::now();
            if now == last {
                return now;
            }
            last = now;
        }
    }

    /// As soon as it is the same, or as it is after a while: what a thread was about to close is no leak.
    fn settled(before: &State) -> State {
        let began = Instant::now();
        loop {
            let now = State::now();
            if now == *before || began.elapsed() > PATIENCE {
                return now;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A folder for temporary files that no other process uses.
fn temporary_files() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        tempfile::env::override_temp_dir(folder.path()).expect("it is the first one");
        folder
    });
    made.path()
}

fn entries(folder: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// The open files, without the folder that is read to list them.
fn open_files() -> BTreeSet<String> {
    let files = entries("/proc/self/fd").filter_map(|path| {
        let target = fs::read_link(&path).ok()?;
        let own = target.starts_with("/proc");
        (!own).then(|| format!("{} {}", path.display(), target.display()))
    });
    files.collect()
}

fn groups() -> BTreeSet<PathBuf> {
    fn below(folder: &Path, own: &str, found: &mut BTreeSet<PathBuf>) {
        for path in entries(folder).filter(|path| path.is_dir() && !path.is_symlink()) {
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(own))
            {
                found.insert(path.clone());
            }
            below(&path, own, found);
        }
    }
    let own = format!("minivm-{}-", std::process::id());
    let mut found = BTreeSet::new();
    below(Path::new("/sys/fs/cgroup"), &own, &mut found);
    found
}

fn leaves_nothing_after_some_in_a_row_and_four_at_once(backend: Backend) {
    let sandbox: &dyn Sandbox = &*host::open(backend);
    let check = |number: usize| {
        let ran = run(sandbox, code(&format!("print({number})")));
        assert_eq!(
            ran.finished.end,
            End::Exited(0),
            "{backend}, {number}: {ran:?}"
        );
        assert_eq!(ran.stdout, format!("{number}\n"));
    };
    // The first one opens what stays open for good.
    check(0);
    let before = State::at_rest();
    thread::scope(|scope| {
        for number in 1..=4 {
            scope.spawn(move || check(number));
        }
    });
    (5..stress::count(10, 105)).for_each(check);
    let mut endless = code("while True:\n    pass");
    endless.limits.time = Some(Duration::from_secs(2));
    assert_eq!(
        run(sandbox, endless).finished.end,
        End::TimedOut,
        "{backend}"
    );
    assert_eq!(State::settled(&before), before, "{backend}");
}

/// One test for all of them: with another one beside it, the threads of both would be counted.
#[test]
fn no_sandbox_leaves_anything() {
    temporary_files();
    for backend in Backend::ALL {
        eprintln!("{backend} …");
        leaves_nothing_after_some_in_a_row_and_four_at_once(backend);
    }
}

//! What stays of the sandboxes with Pyodide: nothing. It has a program of its own, in which nothing else runs at a time.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use minivm::assets::npm;
use minivm::backend::{Backend, End, Host, Task};
use minivm::machine::Place;

/// Control groups of this process, and those below the folder.
fn groups(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let own = format!("minivm-{}-", std::process::id());
            if entry.file_name().to_string_lossy().starts_with(&own) {
                found.insert(entry.path());
            }
            groups(&entry.path(), found);
        }
    }
}

/// Processes whose parent is this one, by their names.
fn children() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let own = format!(" {} ", std::process::id());
    let is_child = |stat: &String| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest[1..].starts_with(&own))
    };
    stats.filter(is_child).collect()
}

/// What can be seen of files that were to be temporary.
fn files(cache: &Path) -> BTreeSet<String> {
    let folders = [
        std::env::temp_dir(),
        PathBuf::from("/dev/shm"),
        cache.join("assets"),
    ];
    let entries = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok());
    let names = entries.flatten().flatten().map(|entry| entry.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names
        .filter(|name| {
            ["chromium", "deno", "minivm", "npm", "python"]
                .iter()
                .any(|word| name.contains(word))
        })
        .collect()
}

#[test]
fn nothing_stays() {
    let cache = minivm::cache::folder().unwrap();
    npm::install(&cache, &mut |_| {}).unwrap();
    let host = Host {
        worker: env!("CARGO_BIN_EXE_minivm-worker").into(),
        cache: cache.clone(),
        image: None,
        kernel: None,
        place: Place::Here,
    };
    for backend in [Backend::Deno, Backend::Chromium] {
        let sandbox = host.open(backend).unwrap();
        let before = files(&cache);
        for (code, end) in [
            ("print(2+2)", End::Exited(0)),
            ("while True: pass", End::TimedOut),
        ] {
            let mut task = Task::code(code);
            let limit = if end == End::TimedOut { 5 } else { 90 };
            task.limits.time = Some(Duration::from_secs(limit));
            assert_eq!(sandbox.run(task).unwrap().end, end, "{backend}: {code}");
            let mut left = BTreeSet::new();
            groups(Path::new("/sys/fs/cgroup"), &mut left);
            assert_eq!(left, BTreeSet::new(), "{backend}: {code}");
            assert_eq!(children(), Vec::<String>::new(), "{backend}: {code}");
            assert_eq!(files(&cache), before, "{backend}: {code}");
        }
    }
}

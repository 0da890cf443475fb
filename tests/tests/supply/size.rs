//! The monitor's size, in lines without its tests: a person can read all of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::page::sources;
use crate::root;

/// The monitor's sources, and the part of one architecture, which has a limit of its own.
const MONITOR: &str = "vmm/src/";
const ARM64: &str = "vmm/src/arch/aarch64/";
/// The limits: they are not reached.
const MONITOR_LINES: usize = 8000;
const ARM64_LINES: usize = 1500;

/// The attributes of an item that is compiled for tests alone.
const FOR_TESTS: [&str; 2] = ["#[cfg(test)]", "#[cfg(any(test, fuzzing))]"];

/// A source file without its items for tests, as rustfmt lays it out.
struct Source<'a> {
    lines: usize,
    /// The modules for tests that have files of their own.
    test_files: Vec<&'a str>,
}

impl<'a> Source<'a> {
    fn of(text: &'a str) -> Self {
        let mut source = Source {
            lines: 0,
            test_files: Vec::new(),
        };
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if !FOR_TESTS.contains(&line.trim_start()) {
                source.lines += 1;
                continue;
            }
            let indent = line.len() - line.trim_start().len();
            // It ends on the first line that is indented as it is, and ends like an item.
            let ends = |line: &&str| {
                line.get(..=indent)
                    .is_some_and(|start| !start.ends_with(' '))
                    && line.ends_with([';', '}'])
            };
            let last = lines.find(ends).unwrap_or_default();
            let module = last.split_once("mod ").map(|(_, name)| name);
            source
                .test_files
                .extend(module.and_then(|name| name.strip_suffix(';')));
        }
        source
    }
}

/// Returns the beginning of the paths of a module's submodules.
fn folder(file: &str) -> String {
    let folder = ["/mod.rs", "/lib.rs"]
        .iter()
        .find_map(|end| file.strip_suffix(end));
    let folder = folder.or_else(|| file.strip_suffix(".rs"));
    format!("{}/", folder.unwrap_or(file))
}

/// Returns the lines of each of the monitor's files that isn't for tests alone.
fn sizes() -> BTreeMap<String, usize> {
    let mut files = BTreeMap::new();
    sources(&root().join(MONITOR), &mut files);
    let mut sizes = BTreeMap::new();
    let mut for_tests = BTreeSet::new();
    for (file, text) in &files {
        let source = Source::of(text);
        let modules = source.test_files.iter();
        for_tests.extend(modules.map(|module| folder(file) + module));
        sizes.insert(file.clone(), source.lines);
    }
    sizes.retain(|file, _| {
        let module = folder(file);
        !for_tests
            .iter()
            .any(|name| module.starts_with(&format!("{name}/")))
    });
    sizes
}

#[track_caller]
fn assert_fewer_lines(limit: usize, sizes: &BTreeMap<&str, usize>) {
    let sum: usize = sizes.values().sum();
    let mut largest: Vec<_> = sizes.iter().map(|(file, lines)| (lines, file)).collect();
    largest.sort_unstable();
    let list: String = largest
        .iter()
        .rev()
        .map(|(lines, file)| format!("\n{lines:5} {file}"))
        .collect();
    assert!(
        sum < limit,
        "{sum} lines are {} too many: fewer than {limit} are the limit, tests left out{list}",
        (sum + 1).saturating_sub(limit),
    );
}

#[test]
fn the_monitor_stays_small() {
    let sizes = sizes();
    let (arm64, others) = sizes
        .iter()
        .map(|(file, lines)| (file.as_str(), *lines))
        .partition(|(file, _)| file.starts_with(ARM64));
    assert_fewer_lines(MONITOR_LINES, &others);
    assert_fewer_lines(ARM64_LINES, &arm64);
}

#[test]
fn tests_do_not_count() {
    let source = Source::of(
        "use a;\n\n#[cfg(any(test, fuzzing))]\n#[doc(hidden)]\npub mod fuzzing;\n\nimpl A {\n    #[cfg(test)]\n    fn a() {\n        b();\n    }\n}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn a() {}\n}\n",
    );
    assert_eq!((source.lines, source.test_files), (6, vec!["fuzzing"]));
}

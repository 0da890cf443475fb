//! docs/unsafe.md against the tree and the lock file: its tables are what these tests compute.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::graph::{Graph, shipped};
use crate::root;

/// The programs that are shipped, and their packages.
const PROGRAMS: [(&str, &str); 3] = [
    ("minivm", "minivm"),
    ("minivm-worker", "minivm-sandbox"),
    ("minivm-init", "minivm-guest"),
];

/// The targets for which C is looked for: it is compiled for all of them alike.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// The rows of the table below a heading, without its head.
fn rows(heading: &str) -> Vec<String> {
    let page = fs::read_to_string(root().join("docs/unsafe.md")).unwrap();
    let mut lines = page.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "docs/unsafe.md has no {heading:?}");
    let section = lines.take_while(|line| !line.starts_with("## "));
    let table = section.filter(|line| line.starts_with('|'));
    table.skip(2).map(str::to_owned).collect()
}

/// Asserts that a table's rows begin with what was computed.
#[track_caller]
fn assert_rows(heading: &str, expected: &[String]) {
    let rows = rows(heading);
    let same = rows.len() == expected.len()
        && rows
            .iter()
            .zip(expected)
            .all(|(row, start)| row.starts_with(start.as_str()));
    assert!(
        same,
        "docs/unsafe.md, {heading:?}, has\n{}\nand should have\n{}",
        rows.join("\n"),
        expected.join("\n")
    );
}

/// The Rust files below a folder, but for what is built.
pub(crate) fn sources(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_symlink() || name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            let shown = path.strip_prefix(root()).unwrap().to_str().unwrap();
            found.insert(shown.to_owned(), fs::read_to_string(&path).unwrap());
        }
    }
}

/// The name of the lint that `allow` switches off, in two parts, so that this file doesn't have it.
const LINT: &str = concat!("unsafe_", "code");

/// The reasons for which a file allows `unsafe`.
fn reasons(file: &str, text: &str) -> Vec<String> {
    let mut reasons: Vec<String> = Vec::new();
    for (at, _) in text.match_indices(LINT) {
        let (before, after) = text.split_at(at);
        assert!(
            before.trim_end().ends_with("allow("),
            "{file} has {LINT} other than in `allow(…)`"
        );
        let reason = after[LINT.len()..].trim_start_matches([',', ' ', '\n']);
        let reason = reason.strip_prefix("reason = \"");
        let reason = reason.and_then(|rest| rest.split_once('"'));
        let (reason, _) = reason.unwrap_or_else(|| panic!("{file} gives no reason"));
        if !reasons.iter().any(|known| known == reason) {
            reasons.push(reason.to_owned());
        }
    }
    reasons
}

#[test]
fn every_file_with_unsafe_is_listed_with_its_reason() {
    let mut files = BTreeMap::new();
    sources(&root(), &mut files);
    assert!(files.len() > 100, "{files:?}");
    let rows = files.iter().filter_map(|(file, text)| {
        let reasons = reasons(file, text);
        let row = || format!("| [`{file}`](../{file}) | {} |", reasons.join("; "));
        (!reasons.is_empty()).then(row)
    });
    assert_rows("## Files", &rows.collect::<Vec<_>>());
}

#[test]
fn every_package_with_c_or_assembly_is_listed() {
    let graph = Graph::of(&TARGETS.map(str::to_owned));
    let shipped = PROGRAMS.map(|(program, package)| (program, shipped(package)));
    let rows = graph.compile_c.iter().map(|name| {
        let has = |packages: &std::collections::BTreeSet<String>| {
            let start = format!("{name} v");
            packages.iter().any(|package| package.starts_with(&start))
        };
        let programs = shipped.iter().filter(|(_, packages)| has(packages));
        let programs: Vec<_> = programs
            .map(|(program, _)| format!("`{program}`"))
            .collect();
        let programs = match programs.is_empty() {
            true => "nothing that is shipped".to_owned(),
            false => programs.join(", "),
        };
        format!("| `{name}` | {programs} | ")
    });
    assert_rows("## C and assembly", &rows.collect::<Vec<_>>());
}

#[test]
fn the_number_of_packages_of_each_program_is_listed() {
    let rows = PROGRAMS.map(|(program, package)| {
        let packages = shipped(package).len();
        format!("| `{program}` | {packages} |")
    });
    assert_rows("## Packages", &rows);
}

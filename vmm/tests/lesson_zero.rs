//! The examples `raw_kvm` and `what_if`, as built, print what the pages of docs/learn show.

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, run};

/// The beginning of a command on a page, up to the example's name.
const CARGO_RUN: &str = "$ cargo run -q -p minivm-vmm --example ";

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the path of an example, which must be as new as its source.
fn example(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap().join("examples").join(name);
    let modified = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
    // `what_if` includes the other one.
    let sources = ["raw_kvm", name].map(|name| package().join(format!("examples/{name}.rs")));
    let newest = sources.iter().map(|source| modified(source).unwrap()).max();
    assert!(
        modified(&built).is_ok_and(|built| newest.is_some_and(|newest| newest <= built)),
        "{} is missing or old: cargo build -p minivm-vmm --examples",
        built.display()
    );
    built
}

/// Runs an example; `words` are its name and its arguments.
fn run_example(words: &str) -> Ended {
    let mut words = words.split(' ');
    let name = words.next().unwrap();
    let arguments = words.filter(|word| *word != "--");
    run(Command::new(example(name)).args(arguments), PATIENCE)
}

/// The examples' commands on the pages, each with the outputs that are shown for it: several, where they depend on the KVM.
fn shown() -> BTreeMap<String, Vec<String>> {
    let mut shown = BTreeMap::<String, Vec<String>>::new();
    for page in fs::read_dir(package().join("../docs/learn")).unwrap() {
        let text = fs::read_to_string(page.unwrap().path()).unwrap_or_default();
        for part in text.split(CARGO_RUN).skip(1) {
            let (command, rest) = part.split_once('\n').unwrap();
            let output = rest
                .lines()
                .take_while(|line| !line.starts_with(['$', '`']));
            let output = output.map(|line| format!("{line}\n")).collect();
            shown.entry(command.to_owned()).or_default().push(output);
        }
    }
    shown
}

#[test]
fn the_examples_print_what_the_pages_show() {
    let shown = shown();
    for (command, outputs) in &shown {
        let ended = run_example(command);
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{command}");
        assert!(
            outputs.contains(&ended.text()),
            "`{command}` printed:\n{}and not:\n{}",
            ended.text(),
            outputs.join("nor:\n")
        );
    }
    assert!(shown.contains_key("raw_kvm"), "{shown:?}");
}

#[test]
fn the_pages_show_every_change() {
    let list = run_example("what_if -- --list").text();
    let listed = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    let shown = shown();
    let changes = shown
        .keys()
        .filter_map(|command| command.strip_prefix("what_if -- "));
    let changes: BTreeSet<_> = changes.filter(|change| !change.starts_with('-')).collect();
    assert_eq!(listed.collect::<BTreeSet<_>>(), changes);
    assert!(changes.len() >= 6, "{changes:?}");
}

#[test]
fn a_wrong_change_is_refused_in_one_line() {
    for (arguments, told) in [
        ("no-such-thing", "there is no change \"no-such-thing\""),
        ("no-cs-l no-memory", "one change at a time"),
        ("\u{1b}[2J", "there is no change \"\\u{1b}[2J\""),
    ] {
        let ended = run_example(&format!("what_if -- {arguments}"));
        assert_eq!((ended.code, &*ended.text()), (Some(2), ""), "{arguments:?}");
        let line = ended.stderr.strip_suffix('\n').unwrap();
        assert!(line.starts_with(&format!("what_if: {told}; ")), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

//! Where a test program runs. Its source says so: the comments at the head of the file have a line such as
//! `// Tests run: on real KVM`.
//!
//! Every file of a `tests/` folder needs that line. Unit tests without one run here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::process::short;

/// The beginning of the line.
const LINE: &str = "// Tests run: ";
/// The end of the line of a program that looks at the whole host.
const ALONE: &str = ", alone";

/// Where a test program runs, and beside what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    /// Whether no other program may run on this host meanwhile, except for those in the lab.
    pub(crate) alone: bool,
}

/// Where a test program runs; what takes longest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Where KVM runs kernels, with its ignored tests: in the lab, or on this host if it can.
    RealKvm,
    /// On this host, with minivm and the tools that make images and sandboxes. `--fast` leaves all of it out.
    WithTools,
    /// On this host; its ignored tests start labs, or mount file systems. `--fast` leaves those out.
    HereAndInLabs,
    /// Where there is a `/dev/kvm` of any kind: its guests are a few instructions long. In the lab, if this host has none.
    /// With its ignored tests, which need a mount namespace.
    AnyKvm,
    /// On this host, without its ignored tests.
    Here,
}

/// All kinds, as sources name them.
const KINDS: [(&str, Kind); 5] = [
    ("here", Kind::Here),
    ("here and in labs", Kind::HereAndInLabs),
    ("on any KVM", Kind::AnyKvm),
    ("on real KVM", Kind::RealKvm),
    ("with the tools", Kind::WithTools),
];

impl Place {
    /// Reads the place of a test program from its source file.
    ///
    /// # Errors
    ///
    /// If the file can't be read, or its line names no kind, or there is no line and `must_say` is set.
    pub(crate) fn of(source: &Path, must_say: bool) -> Result<Self> {
        let file = short(&source.to_string_lossy());
        let text = fs::read_to_string(source).with_context(|| format!("cannot read {file}"))?;
        match declared(&text) {
            Some(words) => Self::named(words)
                .ok_or_else(|| anyhow!("{file}: {LINE}{words} is not known; {}", remedy())),
            None if must_say => Err(anyhow!(
                "{file} does not say where its tests run; {}",
                remedy()
            )),
            None => Ok(Place {
                kind: Kind::Here,
                alone: false,
            }),
        }
    }

    fn named(words: &str) -> Option<Self> {
        let (name, alone) = match words.strip_suffix(ALONE) {
            Some(name) => (name, true),
            None => (words, false),
        };
        let (_, kind) = KINDS.into_iter().find(|(known, _)| *known == name)?;
        Some(Place { kind, alone })
    }
}

/// What the comments at the head of a source file say.
fn declared(text: &str) -> Option<&str> {
    let head = text.lines().take_while(|line| {
        let line = line.trim_start();
        line.is_empty() || line.starts_with("//") || line.starts_with("#![")
    });
    head.filter_map(|line| line.strip_prefix(LINE))
        .next()
        .map(str::trim_end)
}

fn remedy() -> String {
    let names: Vec<String> = KINDS.iter().map(|(name, _)| format!("`{name}`")).collect();
    format!(
        "its head needs the line `{LINE}…` with one of {}, and `{ALONE}` behind it if it looks at the whole host",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sources of all test programs in the workspace's `tests/` folders.
    fn test_programs() -> Vec<std::path::PathBuf> {
        let entries = |folder: &Path| {
            let entries = fs::read_dir(folder).into_iter().flatten();
            entries
                .map(|entry| entry.unwrap().path())
                .collect::<Vec<_>>()
        };
        let mut programs = Vec::new();
        for package in entries(crate::cargo::root()) {
            for path in entries(&package.join("tests")) {
                if path.extension().is_some_and(|ending| ending == "rs") {
                    programs.push(path);
                } else if path.join("main.rs").exists() {
                    programs.push(path.join("main.rs"));
                }
            }
        }
        programs
    }

    #[test]
    fn every_test_program_says_where_it_runs() {
        let programs = test_programs();
        assert!(programs.len() > 10, "{programs:?}");
        for program in programs {
            Place::of(&program, true).unwrap();
        }
    }

    #[test]
    fn known_programs_run_where_they_can() {
        for (source, kind, alone) in [
            ("vmm/src/lib.rs", Kind::AnyKvm, false),
            ("guest/src/lib.rs", Kind::Here, false),
            ("cli/tests/lab.rs", Kind::HereAndInLabs, false),
            ("cli/tests/leaks.rs", Kind::WithTools, true),
            ("tests/tests/boot/main.rs", Kind::RealKvm, false),
        ] {
            let place = Place::of(&crate::cargo::root().join(source), false).unwrap();
            assert_eq!(place, Place { kind, alone }, "{source}");
        }
    }

    #[test]
    fn only_the_head_of_a_file_counts() {
        let head = "//! Tests.\n\n// Tests run: on real KVM\n#![allow(x)]\n\nuse a;\n";
        assert_eq!(declared(head), Some("on real KVM"));
        assert_eq!(declared("//! Tests.\n\nuse a;\n// Tests run: here\n"), None);
        assert_eq!(declared(""), None);
    }

    #[test]
    fn a_program_without_a_known_place_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = |text: &str| {
            let file = folder.path().join("new.rs");
            fs::write(&file, text).unwrap();
            Place::of(&file, true).unwrap_err().to_string()
        };
        let silent = error("//! Tests.\n\nuse a;\n");
        assert!(
            silent.contains("new.rs does not say where its tests run"),
            "{silent}"
        );
        assert!(silent.contains("`on real KVM`"), "{silent}");
        let unknown = error("// Tests run: elsewhere\n");
        assert!(
            unknown.contains("// Tests run: elsewhere is not known"),
            "{unknown}"
        );
        assert_eq!(Place::named("here, alone and more"), None);
    }
}

//! The tests that the command line names: test programs by their names, other tests by a part of theirs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::cargo::Target;

/// What is to be run: everything, where nothing is named.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    /// Names of test programs.
    programs: Vec<String>,
    /// Parts of tests' names.
    parts: Vec<String>,
}

impl Choice {
    /// Tells the names of test programs from those of tests. `targets` are all test programs.
    pub(crate) fn new(names: &[String], targets: &[Target]) -> Self {
        let is_program = |name: &&String| targets.iter().any(|target| target.is_called(name));
        let (programs, parts) = names.iter().partition(is_program);
        let owned = |names: Vec<&String>| names.into_iter().cloned().collect();
        Choice {
            programs: owned(programs),
            parts: owned(parts),
        }
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.programs.is_empty() && self.parts.is_empty()
    }

    /// The test programs that have to be built: those that are named, and those whose sources have the words of a test's name.
    ///
    /// # Errors
    ///
    /// If no source has what is named.
    pub(crate) fn candidates(&self, targets: Vec<Target>) -> Result<Vec<Target>> {
        if self.is_everything() {
            return Ok(targets);
        }
        let mut found = vec![false; self.parts.len()];
        let mut candidates = Vec::new();
        for target in targets {
            let files = sources(&target.source);
            let mut is_wanted = self.names(&target);
            for (part, found) in self.parts.iter().zip(&mut found) {
                if words(part).all(|word| files.iter().any(|text| text.contains(word))) {
                    *found = true;
                    is_wanted = true;
                }
            }
            if is_wanted {
                candidates.push(target);
            }
        }
        match self.parts.iter().zip(found).find(|(_, found)| !found) {
            Some((part, _)) => Err(nothing(part)),
            None => Ok(candidates),
        }
    }

    /// Whether a test program is named, so that all of it runs.
    pub(crate) fn names(&self, target: &Target) -> bool {
        self.programs.iter().any(|name| target.is_called(name))
    }

    /// The filters for a program that isn't named: parts of its tests' names.
    pub(crate) fn parts(&self) -> &[String] {
        &self.parts
    }

    /// Checks that each part is in the name of a test that runs.
    ///
    /// # Errors
    ///
    /// If one is in none.
    pub(crate) fn check<'a>(
        &self,
        mut tests: impl Iterator<Item = &'a String> + Clone,
    ) -> Result<()> {
        for part in &self.parts {
            if !tests.clone().any(|test| test.contains(part.as_str())) {
                return Err(nothing(part));
            }
        }
        if !self.is_everything() && self.parts.is_empty() && tests.next().is_none() {
            bail!(
                "{} has no tests for this machine",
                self.programs.join(" and ")
            );
        }
        Ok(())
    }
}

fn nothing(part: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "there is no test program {part}, and no test with that in its name; a program is called like its file in tests/, or \
         like its crate, as in minivm_vmm"
    )
}

/// The names in a test's path, such as `boot` and `kernels` of `boot::kernels`: each stands somewhere in the sources.
fn words(part: &str) -> impl Iterator<Item = &str> {
    part.split("::")
}

/// The texts of a test program's sources: of the whole folder, if its first file is that of a folder.
pub(crate) fn sources(first: &Path) -> Vec<String> {
    let is_folders = first
        .file_name()
        .is_some_and(|name| name == "main.rs" || name == "lib.rs");
    let mut files = Vec::new();
    match first.parent() {
        Some(folder) if is_folders => below(folder, &mut files),
        _ => files.push(first.to_owned()),
    }
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect()
}

fn below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            below(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo;

    fn chosen(names: &[&str]) -> (Choice, Result<Vec<Target>>) {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let targets = cargo::test_targets().unwrap();
        let choice = Choice::new(&names, &targets);
        let candidates = choice.candidates(targets);
        (choice, candidates)
    }

    fn names(names: &[&str]) -> Vec<String> {
        let (_, candidates) = chosen(names);
        let mut names: Vec<String> = candidates
            .unwrap()
            .into_iter()
            .map(|target| target.name)
            .collect();
        names.sort();
        names
    }

    #[test]
    fn programs_are_chosen_by_their_whole_names() {
        assert_eq!(names(&["boot", "minivm_vmm"]), ["boot", "minivm_vmm"]);
        assert_eq!(names(&["minivm-vmm"]), ["minivm_vmm"]);
        assert!(names(&[]).len() > 20);
    }

    #[test]
    fn tests_are_looked_for_where_their_names_are_written() {
        let own = "tests_are_looked_for_where_their_names_are_written";
        assert_eq!(names(&[&format!("choice::tests::{own}")]), ["xtask"]);
        let (choice, _) = chosen(&["boot", own]);
        assert_eq!(
            (&choice.programs[..], choice.parts()),
            (&["boot".into()][..], &[own.to_owned()][..])
        );
    }

    #[test]
    fn a_name_of_nothing_is_an_error() {
        // Not written in one piece, or it would stand in a source.
        let name = format!("no_such{}", "_test_at_all");
        let (choice, candidates) = chosen(&["boot", &name]);
        let error = candidates.unwrap_err().to_string();
        assert!(
            error.contains(&format!("no test program {name},")),
            "{error}"
        );
        let tests = ["a::b".to_owned()];
        assert!(choice.check(tests.iter()).is_err());
        let (choice, _) = chosen(&["a::b"]);
        choice.check(tests.iter()).unwrap();
    }
}

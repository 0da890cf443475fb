//! Files that pages name are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::{pages, root};

/// How names of the project's own files end.
const ENDINGS: [&str; 3] = [".rs", ".sh", ".toml"];
/// What git doesn't keep.
const NOT_KEPT: [&str; 2] = ["target", ".git"];

/// The words of a text that name files of the project's, without folders above. Addresses name others' files.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let words = text.split(move |c| !in_name(c));
    let ends = |word: &str| {
        ENDINGS
            .iter()
            .any(|ending| word.ends_with(ending) && word != *ending)
    };
    words
        .filter(|word| !word.starts_with("//"))
        .map(|word| word.trim_start_matches("../").trim_end_matches('.'))
        .filter(move |word| ends(word))
}

/// All files below a folder, by their paths from the project's.
fn files(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !path.is_symlink() {
            if !NOT_KEPT.contains(&&*name) {
                files(&path, found);
            }
        } else if let Ok(path) = path.strip_prefix(root()) {
            found.insert(path.to_string_lossy().into_owned());
        }
    }
}

/// Whether the name is that of a file from the project's folder or the page's, or, without a folder, of any file.
fn is_there(name: &str, folder: &str, files: &BTreeSet<String>) -> bool {
    files.contains(name)
        || files.contains(&format!("{folder}/{name}"))
        || !name.contains('/') && files.iter().any(|file| file.ends_with(&format!("/{name}")))
}

#[test]
fn every_file_that_is_named_is_there() {
    let mut all = BTreeSet::new();
    files(&root(), &mut all);
    let mut seen = 0;
    for (page, text) in pages() {
        let folder = page.parent().unwrap().strip_prefix(root()).unwrap();
        for name in named(&text) {
            seen += 1;
            let there = is_there(name, &folder.to_string_lossy(), &all);
            assert!(there, "{} names {name}", page.display());
        }
    }
    assert!(seen > 100, "{seen} names");
}

#[test]
fn a_file_that_is_not_there_is_seen() {
    let files = BTreeSet::from(["a/src/b.rs", "docs/c.sh"].map(str::to_owned));
    let text = "[`src/b.rs`](../a/src/b.rs), b.rs. c.sh d.rs /src/b.rs; .rs";
    let there: Vec<_> = named(text)
        .map(|name| (name, is_there(name, "docs", &files)))
        .collect();
    assert_eq!(
        there,
        [
            ("src/b.rs", false),
            ("a/src/b.rs", true),
            ("b.rs", true),
            ("c.sh", true),
            ("d.rs", false),
            ("/src/b.rs", false)
        ]
    );
}

//! The spines of ARCHITECTURE.md: a path's files in the order in which they are entered, each with the function that is.

use std::collections::BTreeSet;
use std::fs;

use crate::root;

/// The path's headings, and the most files of their spines.
const SPINES: [(&str, usize); 2] = [("### A raw boot", 12), ("### A command in a machine", 25)];

/// The files and functions of the table below a heading.
fn spine(page: &str, heading: &str) -> Vec<(String, String)> {
    let section = page
        .split_once(heading)
        .unwrap_or_else(|| panic!("there is no {heading}"))
        .1;
    let section = section.split("\n### ").next().unwrap_or(section);
    section.lines().filter_map(row).collect()
}

/// The file and function of a row: `| 1 | [`FILE`](FILE) | `FUNCTION` | … |`.
fn row(line: &str) -> Option<(String, String)> {
    let mut cells = line.strip_prefix("| ")?.split(" | ");
    cells.next()?.parse::<usize>().ok()?;
    let file = cells.next()?.split('`').nth(1)?;
    let function = cells.next()?.split('`').nth(1)?;
    Some((file.to_owned(), function.to_owned()))
}

#[test]
fn a_strangers_path_is_short_and_names_what_is_there() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (heading, most) in SPINES {
        let spine = spine(&page, heading);
        assert!(!spine.is_empty(), "{heading} has a table");
        assert!(spine.len() <= most, "{heading}: {} files", spine.len());
        let files: BTreeSet<_> = spine.iter().map(|(file, _)| file).collect();
        assert_eq!(files.len(), spine.len(), "{heading} enters a file once");
        for (file, function) in &spine {
            let text = fs::read_to_string(root().join(file))
                .unwrap_or_else(|error| panic!("{heading}: {file}: {error}"));
            let is_there = text.contains(&format!("fn {function}("))
                || text.contains(&format!("fn {function}<"));
            assert!(is_there, "{heading}: {file} has no function {function}");
        }
    }
}

#[test]
fn rows_are_read_and_other_lines_are_not() {
    let line = "| 2 | [`a/b.rs`](a/b.rs) | `run` | leaves |";
    assert_eq!(row(line), Some(("a/b.rs".into(), "run".into())));
    for other in [
        "| file | function |",
        "| --- | --- |",
        "text",
        "| x | `a` | `b` |",
    ] {
        assert_eq!(row(other), None, "{other}");
    }
}

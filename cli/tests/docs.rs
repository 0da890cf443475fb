//! The project's pages: what they link to is there, and the commands that they show are understood.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap().to_owned()
}

/// The pages, by their paths, with their texts.
fn pages() -> BTreeMap<PathBuf, String> {
    let folders = [".", "docs", "kernel-config", ".github"].map(|folder| root().join(folder));
    let files = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap());
    let pages = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages
        .map(|path| {
            (
                path.canonicalize().unwrap(),
                fs::read_to_string(&path).unwrap(),
            )
        })
        .collect()
}

/// A page's lines, each with whether it is in a block of code.
fn lines(text: &str) -> impl Iterator<Item = (bool, &str)> {
    let mut code = false;
    text.lines().map(move |line| {
        let fence = line.starts_with("```");
        code ^= fence;
        (code || fence, line)
    })
}

/// What a heading is called in an address, as GitHub does it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    lines(text)
        .filter(|(code, line)| !code && line.starts_with('#'))
        .map(|(_, heading)| anchor(heading))
        .collect()
}

/// What a line links to.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_link_leads_to_a_file_or_heading_that_is_there() {
    let pages = pages();
    let mut found = 0;
    for (page, text) in &pages {
        let links = lines(text)
            .filter(|(code, _)| !code)
            .flat_map(|(_, line)| targets(line));
        for link in links.filter(|link| !link.starts_with("https://")) {
            found += 1;
            let about = format!("{} links to {link}", page.display());
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            let target = target.canonicalize();
            let target = target.unwrap_or_else(|error| panic!("{about}: {error}"));
            assert!(target.starts_with(root()), "{about}, outside the project");
            if !heading.is_empty() {
                let text = pages.get(&target);
                let text = text.unwrap_or_else(|| panic!("{about}, which is no page"));
                assert!(anchors(text).contains(heading), "{about}: no such heading");
            }
        }
    }
    assert!(found > 100, "{found} links");
}

/// Whether a word ends a command of a shell's.
fn ends(word: &str) -> bool {
    word == "--" || word.starts_with(['|', '>', '<', '#', '&', ';', '(', '…'])
}

/// The subcommand and the flags of each call of minivm's in a line of a shell.
fn calls(line: &str) -> Vec<(Vec<&str>, Vec<&str>)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let starts = words
        .iter()
        .enumerate()
        .filter(|(_, word)| **word == "minivm" || word.ends_with("/release/minivm"));
    starts
        .map(|(at, _)| {
            let rest: Vec<_> = words[at + 1..]
                .iter()
                .take_while(|word| !ends(word))
                .collect();
            let plain = |word: &&&&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
            let commands = rest
                .iter()
                .take_while(plain)
                .take(2)
                .map(|word| **word)
                .collect();
            let flags = rest.iter().filter(|word| word.starts_with("--"));
            let names = flags.map(|flag| flag.split('=').next().unwrap());
            (commands, names.collect())
        })
        .collect()
}

/// What minivm says of itself, or of a subcommand.
fn help(commands: &[&str]) -> Option<String> {
    let mut minivm = Command::new(env!("CARGO_BIN_EXE_minivm"));
    let output = minivm.args(commands).arg("--help").output().unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_command_that_is_shown_is_understood() {
    let mut seen = 0;
    for (page, text) in pages() {
        let shown = lines(&text).filter(|(code, line)| *code && line.starts_with("$ "));
        for (commands, flags) in shown.flat_map(|(_, line)| calls(line)) {
            // The second word may be an argument: `minivm snapshot vm.sock`, `minivm restore warm`.
            let help = (0..=commands.len())
                .rev()
                .find_map(|count| help(&commands[..count]))
                .unwrap();
            if let Some(command) = commands.first() {
                assert!(
                    help.contains(&format!("minivm {command}")),
                    "{}: {command}",
                    page.display()
                );
            }
            for flag in flags {
                seen += 1;
                assert!(
                    help.contains(flag),
                    "{}: {commands:?} {flag}",
                    page.display()
                );
            }
        }
    }
    assert!(seen > 30, "{seen} flags");
}

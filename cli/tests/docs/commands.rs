//! Commands and flags of pages are those of the program.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::{all_blocks, root};

/// Whether a word ends a command of a shell's.
fn ends(word: &str) -> bool {
    word == "--" || word.starts_with(['|', '>', '<', '#', '&', ';', '(', '…'])
}

/// The subcommand and the flags of each call of minivm's in a command.
fn calls(command: &str) -> Vec<(Vec<&str>, Vec<&str>)> {
    let words: Vec<_> = command.split_whitespace().collect();
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

/// The long flags in a text.
fn flags(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let flag = |word: &&str| {
        let name = word.strip_prefix("--").unwrap_or_default();
        name.starts_with(|c: char| c.is_ascii_lowercase())
    };
    words.filter(flag).collect()
}

#[test]
fn every_command_that_is_shown_is_understood() {
    let mut seen = 0;
    for block in all_blocks() {
        let commands = block.steps.iter().map(|step| &*step.command);
        for (commands, flags) in commands.flat_map(calls) {
            // The second word may be an argument: `minivm snapshot vm.sock`, `minivm restore warm`.
            let help = (0..=commands.len())
                .rev()
                .find_map(|count| help(&commands[..count]))
                .unwrap();
            if let Some(command) = commands.first() {
                assert!(
                    help.contains(&format!("minivm {command}")),
                    "{}: {command}",
                    block.page
                );
            }
            for flag in flags {
                seen += 1;
                assert!(help.contains(flag), "{}: {commands:?} {flag}", block.page);
            }
        }
    }
    assert!(seen > 30, "{seen} flags");
}

#[test]
fn tables_of_flags_have_those_that_there_are() {
    for (page, commands) in [
        ("docs/run.md", &["run"][..]),
        ("docs/timeline.md", &["timeline"]),
        ("docs/boot.md", &[]),
    ] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let table = text
            .lines()
            .skip_while(|line| !line.starts_with("| flag |"))
            .take_while(|line| line.starts_with('|'));
        // What a row says of its flag may name others.
        let names: Vec<_> = table.filter_map(|row| row.split(" | ").next()).collect();
        let names = names.join(" ");
        let help = help(commands).unwrap();
        let mut of_help = flags(&help);
        for every in ["--help", "--version"] {
            of_help.remove(every);
        }
        assert_eq!(flags(&names), of_help, "{page}");
    }
}

//! The project's pages: what they link to and name is there, the commands that they show are understood, and the blocks that
//! are marked as runnable print what they show.

// Tests run: here and in labs

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod blocks;
mod commands;
mod links;
mod names;
mod runs;
mod shown;
mod spines;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use blocks::Block;

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap().to_owned()
}

/// The pages, by their paths, with their texts.
fn pages() -> BTreeMap<PathBuf, String> {
    let folders =
        [".", "docs", "docs/learn", "kernel-config", ".github"].map(|folder| root().join(folder));
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

/// The blocks of a console's in all pages.
fn all_blocks() -> Vec<Block> {
    let of_page = |(page, text): (PathBuf, String)| {
        let name = page
            .strip_prefix(root())
            .unwrap_or(&page)
            .display()
            .to_string();
        blocks::of_page(&name, &text).unwrap_or_else(|why| panic!("{why}"))
    };
    pages().into_iter().flat_map(of_page).collect()
}

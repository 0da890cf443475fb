//! The pages that clones are given before they run: what they save, and what a bad list of them does.

use std::fs;

use minivm_machine::templates::Template;
use minivm_vmm::WorkingSet;
use serde_json::Value;

use crate::guest::{
    Made, answer, code, folder, python, python_image, request, run_from, small, templates, text_of,
};

const PAGE: u64 = 4096;

/// The first byte of a part of memory, and the first behind it.
type Part = (u64, u64);

/// The pages that are written to.
fn written(set: &WorkingSet) -> Vec<u64> {
    let set = serde_json::to_value(set).unwrap();
    let bound = |part: &Value, name: &str| part[name].as_u64().unwrap();
    let parts = set["written"].as_array().unwrap().iter();
    parts
        .flat_map(|part| (bound(part, "start")..bound(part, "end")).step_by(4096))
        .collect()
}

/// How many pages a clone has to copy while it serves a request, out of how many that it writes to.
fn left(template: &Template, words: &[&str]) -> (usize, usize) {
    let saved = template.saved.as_ref().unwrap();
    let touched = written(&saved.watch(request(words), None).unwrap());
    let given: std::collections::HashSet<_> = written(saved.pages()).into_iter().collect();
    let left = touched.iter().filter(|page| !given.contains(page)).count();
    (left, touched.len())
}

#[test]
fn a_clone_has_few_pages_left_to_copy_when_it_runs() {
    let python = templates().open_named(python()).unwrap();
    for (name, template, words) in [
        ("Python", python, &["python3", "-u", "-c", "print(6*7)"][..]),
        ("none", small(), &["echo", "hello"][..]),
    ] {
        let (left, all) = left(&template, words);
        println!("{name}: {left} of {all} pages are still to be copied");
        assert!(all > 100, "a clone that writes to {all} pages has not run");
        assert!(left < all / 2, "{name}: {left} of {all} pages");
    }
}

/// A set as its file has it.
fn bytes_of(pages: &WorkingSet) -> Vec<u8> {
    let pages = serde_json::to_value(pages).unwrap();
    let parts = |name: &str| -> Vec<Part> {
        let parts = pages[name].as_array().unwrap().iter();
        let bound = |part: &Value, name: &str| part[name].as_u64().unwrap();
        parts
            .map(|part| (bound(part, "start"), bound(part, "end")))
            .collect()
    };
    set(&parts("written"), &parts("read"))
}

/// The same of any ranges: the number of them and each one's ends, as variable-length numbers, of what is written to and of
/// what is read.
fn set(written: &[Part], read: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut number = |mut number: u64| {
        while number > 0x7f {
            bytes.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        bytes.push(number.to_le_bytes()[0]);
    };
    for parts in [written, read] {
        number(parts.len() as u64);
        for part in parts {
            number(part.0);
            number(part.1);
        }
    }
    bytes
}

#[test]
fn a_bad_list_of_pages_breaks_nothing() {
    let name = "pages";
    let made = Made::new(name, &python_image(), &["--warm", "python3"]);
    let file = folder(name).join("pages");
    let whole = fs::read(&file).unwrap();
    let works = |what: &str| {
        assert_eq!(answer(&made.open(), code("print(6*7)")), "42\n", "{what}");
    };
    let template = made.open();
    assert_eq!(whole, bytes_of(template.saved.as_ref().unwrap().pages()));
    let memory = template.recipe.machine.memory;
    let sets = [
        ("none", set(&[], &[])),
        ("all of memory", set(&[(0, memory)], &[(0, memory)])),
        (
            "beyond memory",
            set(
                &[(memory, memory + PAGE)],
                &[(memory - PAGE, memory + PAGE)],
            ),
        ),
        (
            "the hole for devices",
            set(&[(0xfec0_0000, 0xfed0_0000)], &[(0xfec0_0000, 0xfed0_0000)]),
        ),
        (
            "huge",
            set(&[(0, u64::MAX), (0, u64::MAX)], &[(PAGE, u64::MAX)]),
        ),
        (
            "backwards",
            set(&[(PAGE, 0), (u64::MAX, 0)], &[(u64::MAX, PAGE)]),
        ),
        (
            "parts of pages",
            set(&[(1, 2), (PAGE + 1, PAGE + 9)], &[(5, PAGE - 1)]),
        ),
        (
            "many",
            set(&vec![(0, PAGE); 10_000], &vec![(PAGE, 2 * PAGE); 10_000]),
        ),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("garbage", b"no list of pages at all".repeat(1000)),
        ("zeros", vec![0; 100]),
        ("nothing", Vec::new()),
        ("a count without an end", vec![0xff; 100]),
        (
            "more ranges than there can be",
            vec![0xff, 0xff, 0xff, 0xff, 0x7f, 0, 1],
        ),
    ];
    for (what, bytes) in sets {
        fs::write(&file, bytes).unwrap();
        works(what);
    }
    fs::remove_file(&file).unwrap();
    works("no file");
    // What isn't a file.
    fs::create_dir(&file).unwrap();
    works("a folder");
    assert_eq!(
        text_of(run_from(name, &[], &["--code", "print(6*7)"])),
        "42\n"
    );
    fs::remove_dir(&file).unwrap();
    // Of another machine.
    small();
    fs::copy(folder("small").join("pages"), &file).unwrap();
    works("another template's");
}

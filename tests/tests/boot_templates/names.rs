//! `minivm template`: names, what it shows of a template, and what becomes of a damaged one.

use std::fs::{self, File};
use std::path::PathBuf;

use minivm_tests::program::{self, Program};

use crate::guest::{
    Made, PATIENCE, create, end_of, folder, minivm, python_image, run_from, scratch, small,
    small_image, text_of,
};

fn template(words: &[&str]) -> program::Ended {
    let mut command = minivm();
    command.arg("template").args(words);
    end_of(command)
}

/// The command fails with this error, and has made nothing.
fn assert_refused(ended: &program::Ended, error: &str) {
    assert_eq!(ended.stderr, format!("minivm: {error}\n"));
    assert_eq!((ended.code, ended.text().as_str()), (Some(125), ""));
}

#[test]
fn only_names_can_be_names() {
    small();
    let hex = "0123456789abcdef0123456789abcdef";
    for name in [
        "",
        ".",
        "..",
        "a.b",
        "a/b",
        "/a",
        "ä",
        "a b",
        &"a".repeat(65),
        hex,
    ] {
        let no_name = format!(
            "{name:?} is not a valid template name: use 1 to 64 letters, digits, `-` and `_`, but not 32 hexadecimal digits"
        );
        assert_refused(&end_of(create(name, &small_image(), &[])), &no_name);
        if name != hex {
            assert_refused(&end_of(run_from(name, &[], &["--", "true"])), &no_name);
        }
    }
    let longest = "a".repeat(64);
    let missing =
        format!("there is no template {longest}: `minivm template ls` shows those that are there");
    assert_refused(&end_of(run_from(&longest, &[], &["--", "true"])), &missing);
    assert_refused(&template(&["rm", &longest]), &missing);
    assert_refused(&template(&["inspect", &longest]), &missing);
    assert_refused(
        &end_of(create("small", &small_image(), &[])),
        "there is a template small already: `minivm template rm small` removes it",
    );
}

#[test]
fn templates_are_listed_inspected_and_removed() {
    let _made = Made::new("listed", &small_image(), &["-m", "100M"]);
    let mut ls = minivm();
    ls.args(["template", "ls"]);
    let table = text_of(ls);
    let line = table
        .lines()
        .find(|line| line.contains(" listed "))
        .unwrap();
    assert!(
        line.contains(&small_image()) && line.contains("100.00 MiB"),
        "{line}"
    );

    let inspected = template(&["inspect", "listed"]);
    assert_eq!((inspected.code, inspected.stderr.as_str()), (Some(0), ""));
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["name"], "listed");
    assert_eq!(inspected["lab"], false);
    // A machine that maps its image has a MiB more than its command.
    let memory = inspected["recipe"]["machine"]["memory"].as_u64().unwrap();
    assert!((100 << 20..=101 << 20).contains(&memory), "{memory} bytes");
    let size = inspected["size"].as_u64().unwrap();
    assert!((1 << 20..100 << 20).contains(&size), "{size} bytes");

    let mut ls = minivm();
    ls.args(["template", "ls", "--json"]);
    let all: serde_json::Value = serde_json::from_str(&text_of(ls)).unwrap();
    let all = all.as_array().unwrap();
    assert!(
        all.iter().any(|listed| listed["name"] == "listed"),
        "{all:?}"
    );

    let removed = template(&["rm", "listed"]);
    assert!(
        removed.text().starts_with("removed listed: "),
        "{removed:?}"
    );
    assert!(!folder("listed").exists());
    assert_eq!(template(&["rm", "listed"]).code, Some(125));
}

#[test]
fn what_cannot_be_made_is_told_and_leaves_nothing() {
    let text = |name: &str, image: &str, flags: &[&str]| {
        let ended = end_of(create(name, image, flags));
        assert_eq!(ended.code, Some(125), "{name}: {ended:?}");
        for extension in ["", "partial"] {
            assert!(!folder(name).with_extension(extension).exists(), "{name}");
        }
        ended.stderr
    };
    let nowhere = scratch("nowhere");
    let missing = text("no-image", &format!("dir:{}", nowhere.display()), &[]);
    assert!(missing.contains(nowhere.to_str().unwrap()), "{missing}");
    let little = text("little", &small_image(), &["-m", "32M"]);
    assert!(
        little.contains("32 MiB of memory are too little"),
        "{little}"
    );
    let python = text("no-python", &small_image(), &["--warm", "python3"]);
    assert!(python.contains("python3"), "{python}");
    for (name, code, error) in [
        ("fails", "1/0", "ZeroDivisionError: division by zero"),
        (
            "no-module",
            "import nothing_at_all",
            "ModuleNotFoundError: No module named 'nothing_at_all'",
        ),
        ("no-code", "if", "SyntaxError: invalid syntax"),
        ("exits", "raise SystemExit(3)", "SystemExit: 3"),
        (
            "own",
            "class Own(Exception): pass\nraise Own('ä' * 10_000)",
            "Own: ä",
        ),
    ] {
        let told = text(name, &python_image(), &["--warm", code]);
        assert!(told.contains(error), "{name}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.len() < 1500, "{} bytes", told.len());
    }
    let mut without_kernel = minivm();
    without_kernel.args(["template", "create", "no-kernel", &small_image()]);
    without_kernel.args(["--accel", "kvm", "--kernel", nowhere.to_str().unwrap()]);
    let ended = end_of(without_kernel);
    assert_eq!(ended.code, Some(125));
    assert!(ended.stderr.contains("nowhere"), "{}", ended.stderr);
    // It ends without a word.
    let silent = text(
        "silent",
        &python_image(),
        &["--warm", "import os; os._exit(0)"],
    );
    assert!(silent.contains("interpreter"), "{silent}");
}

#[test]
fn what_warms_a_template_is_not_seen_but_its_names_are() {
    let warm = "import json\nprint('printed when it was made')\nimport sys\nprint('so was this', file=sys.stderr)\ndef double(x): return 2 * x";
    let _made = Made::new("named", &python_image(), &["--warm", warm]);
    let asked = "print(json.dumps([double(21), sorted(name for name in globals() if not name.startswith('__'))]))";
    let text = text_of(run_from("named", &[], &["--code", asked]));
    assert_eq!(text, "[42, [\"double\", \"json\", \"sys\"]]\n");
    // Another program than the Python that waits has nothing of it.
    let text = text_of(run_from("named", &[], &["--", "sh", "-c", "echo $0"]));
    assert_eq!(text, "sh\n");
}

/// What runs say that can't go on from a template.
fn error_of(name: &str) -> String {
    let ended = end_of(run_from(name, &[], &["--", "echo", "never"]));
    assert_eq!(
        (ended.code, ended.text().as_str()),
        (Some(125), ""),
        "{ended:?}"
    );
    ended.stderr
}

#[test]
fn a_damaged_template_is_refused_by_its_name() {
    let name = "damaged";
    let _made = Made::new(name, &small_image(), &["-m", "80M"]);
    let works = || text_of(run_from(name, &[], &["--", "echo", "well"])) == "well\n";
    let (state, record) = (
        folder(name).join("state"),
        folder(name).join("template.json"),
    );
    let good = fs::read(&state).unwrap();
    let mut version = good.clone();
    // After eight bytes that say what it is.
    version[8] ^= 0x40;
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (bytes, error) in [
        (&good[..good.len() - 1], "truncated"),
        (&good[..0], "truncated"),
        (b"garbage", "is not a minivm snapshot's"),
        (&version, "format"),
        (&flipped, "checksum"),
    ] {
        fs::write(&state, bytes).unwrap();
        let told = error_of(name);
        assert!(
            told.contains(error) && told.contains(name),
            "{error}: {told}"
        );
    }
    fs::write(&state, &good).unwrap();
    assert!(works(), "as it was before");

    let written = fs::read(&record).unwrap();
    for bytes in [&written[..written.len() / 2], b"", b"{}", b"[1]"] {
        fs::write(&record, bytes).unwrap();
        let damaged =
            "minivm: the template damaged is damaged: `minivm template rm damaged` removes it\n";
        assert_eq!(error_of(name), damaged);
        assert_eq!(template(&["inspect", name]).code, Some(125));
    }
    let mut ls = minivm();
    ls.args(["template", "ls"]);
    assert!(text_of(ls).contains("damaged"), "it can still be found");
    fs::write(&record, &written).unwrap();

    // A memory file that was written to is read through, and found out.
    let is_memory = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"memory-")
    };
    let files = fs::read_dir(folder(name)).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    let memory = files.find(is_memory).unwrap();
    let copy = scratch("memory-copy");
    fs::copy(&memory, &copy).unwrap();
    // A copy is good, though it is another file.
    fs::remove_file(&memory).unwrap();
    fs::copy(&copy, &memory).unwrap();
    assert!(works(), "with a copy of its memory");
    let whole = fs::read(&copy).unwrap();
    let mut flipped = whole.clone();
    let at = flipped.iter().rposition(|&byte| byte != 0).unwrap();
    flipped[at] ^= 1;
    for (bytes, error) in [
        (&flipped[..], "checksum"),
        (&whole[..whole.len() - 4096], "bytes instead of"),
        (&[], "bytes instead of"),
    ] {
        fs::remove_file(&memory).unwrap();
        fs::write(&memory, bytes).unwrap();
        let told = error_of(name);
        assert!(told.contains(error), "{error}: {told}");
    }
    fs::remove_file(&memory).unwrap();
    assert!(
        error_of(name).contains("No such file"),
        "{}",
        error_of(name)
    );
    let removed = template(&["rm", name]);
    assert_eq!((removed.code, removed.stderr.as_str()), (Some(0), ""));
    text_of(create(name, &small_image(), &["-m", "80M"]));
    assert!(works(), "made again");
    fs::remove_file(&copy).unwrap();
}

#[test]
fn removing_a_template_does_its_machines_no_harm() {
    let name = "removed";
    let _made = Made::new(name, &python_image(), &["--warm", "python3"]);
    // Touches all over its memory once the template has gone.
    let code = "import sys\nprint('up')\nsys.stdin.readline()\nimport json, decimal, asyncio\nprint(len(bytes(50_000_000)))";
    let mut running = Program::start(&mut run_from(name, &["-i"], &["--code", code]));
    running.wait_for("up\n", PATIENCE);
    assert_eq!(template(&["rm", name]).code, Some(0));
    text_of(create(name, &small_image(), &[]));
    running.write(b"go on\n").unwrap();
    running.stdin = None;
    let ended = running.end(PATIENCE);
    assert_eq!(
        (ended.code, ended.text().as_str()),
        (Some(0), "up\n50000000\n"),
        "{ended:?}"
    );
}

#[test]
fn a_folder_that_is_no_template_is_damaged_and_can_be_removed() {
    let strange = folder("strange");
    fs::create_dir_all(&strange).unwrap();
    assert!(error_of("strange").contains("is damaged"));
    assert_eq!(template(&["rm", "strange"]).code, Some(0));
    let file = folder("file");
    File::create(&file).unwrap();
    assert_eq!(
        end_of(run_from("file", &[], &["--", "true"])).code,
        Some(125)
    );
    assert_eq!(template(&["ls"]).code, Some(0));
    fs::remove_file(&file).unwrap();
}

//! A run of the example `coding_agent` in a microVM.

// Tests run: with the tools

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "../examples/coding_agent.rs"]
mod coding_agent;

use minivm_tests::given;
use minivm_tests::output::Shared;

#[test]
fn the_coding_agent_mends_the_repository_and_hands_the_diff_out() {
    let folder = tempfile::tempdir().unwrap();
    let printed = Shared::default();
    let image = format!("dir:{}", given::path("MINIVM_TEST_CODING_ROOT").display());
    let minivm = given::path("MINIVM_TEST_BINARY");
    let diff =
        coding_agent::run(&image, &minivm, folder.path(), Box::new(printed.clone())).unwrap();
    let text = printed.text();
    let (before, after) = text.split_once("--- the tests, after").unwrap();
    assert!(
        before.contains("1 failed") && before.contains("assert add(2, 2) == 4"),
        "{text}"
    );
    assert!(after.contains("1 passed"), "{text}");
    let diff = std::fs::read_to_string(diff).unwrap();
    assert!(
        diff.contains("-    return a - b\n+    return a + b\n"),
        "{diff}"
    );
    let own = std::fs::read_to_string(folder.path().join("repo/calculator.py")).unwrap();
    assert!(
        own.contains("a - b"),
        "the host's own repository is as it was"
    );
}

//! `minivm compare`, its JSON and its page, which is looked at by a real browser.

// Tests run: with the tools

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::process::Command;

use minivm_tests::browser::{Theme, look};
use minivm_tests::given;
use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{self, Ended};
use serde_json::Value;

/// What a reader sees of the page: how wide bars are, what tables say, whether anything sticks out.
const LOOK: &str = r##"{
    code: page.querySelector("#code").textContent,
    bars: all("#time .bar").map((bar) => bar.getBoundingClientRect().width),
    rows: all("#time .bar").map((bar) => [bar.getBoundingClientRect().top, bar.getBoundingClientRect().bottom]),
    tracks: all("#time .track").map((track) => track.getBoundingClientRect().width),
    figures: all("#time .figure").map((figure) => figure.textContent),
    answers: all("#answers td code").map((code) => code.textContent),
    reach: all("#reach tbody td").map((cell) => cell.className),
    scripts: all("script").length,
    loaded: loaded,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
}"##;

fn compare(args: &[&str]) -> Ended {
    let release = given::path("MINIVM_TEST_BINARY");
    program::run(Command::new(release).arg("compare").args(args), PATIENCE)
}

#[test]
fn the_page_shows_a_chart_and_tables_and_nothing_runs_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let code = "print('<script>alert(1)</script> & 2+2')";
    let html = format!("--html={}", page.display());
    let ended = compare(&[
        "--backends=monty,gvisor",
        "--runs=1",
        "--code",
        code,
        &html,
        "-q",
    ]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let text = fs::read_to_string(&page).unwrap();
    assert!(
        !text.contains("http://") && !text.contains("https://"),
        "it loads nothing"
    );

    let seen = look(folder.path(), LOOK, Theme::Light);
    let seen: Value = serde_json::from_str(&seen).unwrap();
    let list = |name: &str| seen[name].as_array().unwrap().clone();
    assert_eq!(seen["code"], code);
    assert_eq!(list("answers"), ["<script>alert(1)</script> & 2+2"; 2]);
    assert_eq!((&seen["scripts"], &seen["loaded"]), (&0.into(), &0.into()));
    // Two bars a sandbox, each within its track, and wide enough to be seen.
    let (bars, tracks) = (list("bars"), list("tracks"));
    assert_eq!((bars.len(), tracks.len()), (4, 2));
    let width = |value: &Value| value.as_f64().unwrap();
    assert!(
        bars.iter()
            .all(|bar| width(bar) > 2.0 && width(bar) < width(&tracks[0])),
        "{bars:?}"
    );
    assert!(
        width(&bars[2]) > width(&bars[0]),
        "gVisor takes longer than Monty: {bars:?}"
    );
    // Beside each other: one behind the other, the rest of the longer one would look like a part of the time.
    for rows in list("rows").chunks(2) {
        let edge = |bar: usize, edge: usize| rows[bar][edge].as_f64().unwrap();
        let apart = edge(0, 0) >= edge(1, 1) || edge(1, 0) >= edge(0, 1);
        assert!(apart, "{rows:?}");
    }
    assert!(
        list("figures")
            .iter()
            .all(|figure| figure.as_str().unwrap().contains('s'))
    );
    assert_eq!(list("reach").len(), 10);
    assert!(
        list("reach")
            .iter()
            .all(|class| class != "host" && class != "")
    );
    assert_eq!(seen["overflow"], 0, "nothing sticks out");
}

#[test]
fn the_json_is_an_array_of_an_object_a_sandbox() {
    let ended = compare(&[
        "--backends=monty,gvisor",
        "--runs=2",
        "--no-reach",
        "--json",
        "-q",
    ]);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    let rows: Vec<Value> = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(rows.len(), 2);
    for (row, backend) in rows.iter().zip(["monty", "gvisor"]) {
        assert_eq!(
            (&row["backend"], &row["stdout"]),
            (&backend.into(), &"4\n".into())
        );
        assert_eq!((&row["stderr"], &row["exit_code"]), (&"".into(), &0.into()));
        let (start, total) = (row["start_up"].as_f64(), row["total"].as_f64());
        assert!(start.unwrap() > 0.0 && total.unwrap() > 0.0, "{row}");
        assert!(row["peak_memory"].as_u64().unwrap() > 100_000, "{row}");
        assert_eq!(row["totals"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn what_cannot_be_done_is_said_before_anything_runs() {
    let ended = compare(&["--backends=monty", "--html=/nowhere/page.html"]);
    assert_eq!((ended.code, ended.text()), (Some(125), String::new()));
    assert!(
        ended.stderr.contains("cannot write /nowhere/page.html"),
        "{}",
        ended.stderr
    );
    let ended = compare(&["--backends=monty,other"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    let ended = compare(&[
        "--backends=monty",
        "--runs=1",
        "--no-reach",
        "-q",
        "--code",
        "1/0",
    ]);
    assert_eq!(ended.code, Some(0), "the code's own failure is an answer");
    assert!(
        ended.text().contains("ZeroDivisionError"),
        "{}",
        ended.text()
    );
}

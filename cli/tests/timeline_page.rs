//! `minivm timeline` of a command in a machine that boots, and in one that is resumed: its JSON, and its page in a real browser.

// Tests run: with the tools

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs;
use std::process::Command;

use minivm_tests::browser::{Theme, look};
use minivm_tests::patience::PATIENCE;
use minivm_tests::{busybox, given, program};
use serde_json::Value;

/// How often a boot and a resumed machine are measured until the clocks could be compared well.
const ATTEMPTS: usize = 10;

/// What a reader sees of the page.
const LOOK: &str = r##"{
    tracks: all("#phases .track").map((track) => [track.getBoundingClientRect().left, track.getBoundingClientRect().right]),
    bars: all("#phases .phase .bar").map((bar) => [bar.getBoundingClientRect().left, bar.getBoundingClientRect().right]),
    phases: all("#phases .phase th").map((name) => name.textContent),
    charts: all("svg").map((chart) => [chart.getBoundingClientRect().left, chart.getBoundingClientRect().right]),
    exits: all("svg rect").map((bar) => bar.getBoundingClientRect().height),
    paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(page.body).color,
    scripts: all("script").length,
    loaded: loaded,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
}"##;

/// The phases of a boot, and those of a resumed machine.
const COLD: [&str; 8] = [
    "process start",
    "machine",
    "first entry",
    "kernel",
    "init",
    "command",
    "log for this timeline",
    "end",
];
const WARM: [&str; 7] = [
    "process start",
    "machine",
    "first entry",
    "init",
    "command",
    "log for this timeline",
    "end",
];

/// The colours of paper and ink in the two themes.
const LIGHT: [&str; 2] = ["rgb(255, 255, 255)", "rgb(29, 35, 48)"];
const DARK: [&str; 2] = ["rgb(20, 24, 31)", "rgb(231, 234, 241)"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn start(phase: &Value) -> f64 {
    number(&phase["start"])
}

fn end(phase: &Value) -> f64 {
    start(phase) + number(&phase["duration"])
}

fn names(phases: &Value) -> Vec<&str> {
    let phases = phases.as_array().unwrap().iter();
    phases
        .map(|phase| phase["name"].as_str().unwrap())
        .collect()
}

/// Checks that phases are those, follow each other and add up, and that none is negative.
fn check(one: &Value, expected: &[&str]) {
    assert_eq!(names(&one["phases"]), expected);
    let phases = one["phases"].as_array().unwrap();
    let mut at = 0.0;
    for phase in phases {
        assert!((start(phase) - at).abs() < 1e-8, "{phase}");
        assert!(number(&phase["duration"]) >= 0.0, "{phase}");
        at = end(phase);
        for part in phase["parts"].as_array().into_iter().flatten() {
            let within = start(part) >= start(phase) - 1e-8 && end(part) <= end(phase) + 1e-8;
            assert!(within && number(&part["duration"]) >= 0.0, "{phase}");
        }
    }
    let total = number(&one["total"]);
    assert!((at - total).abs() < 1e-8 && total > 0.0, "{at} of {total}");
    let command = &phases[expected.iter().position(|name| *name == "command").unwrap()];
    assert_eq!(command["clock"], "guest");
    for exits in one["exits"].as_array().unwrap() {
        let times = exits["times"].as_array().unwrap();
        assert_eq!(exits["count"], times.len(), "{}", exits["kind"]);
        let within = |time: &Value| (0.0..=total).contains(&number(time));
        assert!(times.iter().all(within), "{exits}");
    }
}

/// Returns whether the clocks' errors are small beside what is measured.
fn is_exact(one: &Value) -> bool {
    let most = number(&one["total"]) / 50.0;
    let log = one["log_error"].as_f64();
    number(&one["guest_error"]) < most && log.is_none_or(|error| error < most)
}

#[test]
#[ignore = "needs a kernel and the lab: cargo xtask test"]
fn a_boot_and_a_resumed_machine_have_their_phases_and_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    busybox::make_root(&root, "sh true");
    let page = folder.path().join("page.html");
    let mut minivm = Command::new(given::minivm(env!("CARGO_BIN_EXE_minivm")));
    minivm.args(["timeline", "--quiet", "--vs-warm", "--json", "--html"]);
    minivm
        .arg(&page)
        .arg("--kernel")
        .arg(given::path("MINIVM_TEST_KERNEL"));
    minivm
        .arg(format!("dir:{}", root.display()))
        .args(["--", "true"]);
    let mut measure = || {
        let ended = program::run(&mut minivm, PATIENCE);
        assert_eq!(
            (ended.code, &*ended.stderr),
            (Some(0), ""),
            "{}",
            ended.text()
        );
        serde_json::from_slice::<Value>(&ended.stdout).unwrap()
    };
    // Where the lab loses its processor while clocks are compared, the error is large, and says so: then it is measured again.
    let exact = (0..ATTEMPTS)
        .map(|_| measure())
        .find(|all| is_exact(&all[0]) && is_exact(&all[1]));
    let all = exact.expect("the clocks can be compared");
    let (cold, warm) = (&all[0], &all[1]);
    check(cold, &COLD);
    check(warm, &WARM);
    for one in [cold, warm] {
        assert_eq!(one["end"], "the command ended with exit code 0");
    }
    let kernel = &cold["phases"][3];
    assert_eq!(
        names(&kernel["parts"]),
        [
            "before its first message",
            "architecture",
            "memory, scheduler, interrupts",
            "other vCPUs",
            "drivers",
            "unpacking",
            "start of init"
        ]
    );
    assert!(cold["log_error"].is_number(), "{cold}");
    let name = cold["kernel"].as_str().unwrap();
    assert!(name.starts_with("Linux version "), "{name}");
    assert!(cold["log"].as_array().unwrap().len() > 50);
    assert_eq!(warm["log"], Value::Array(Vec::new()));

    let text = fs::read_to_string(&page).unwrap();
    let loads = ["http://", "https://", "src=", "url(", "@import"];
    assert!(
        !loads.iter().any(|load| text.contains(load)),
        "it loads nothing"
    );
    let seen =
        |theme| -> Value { serde_json::from_str(&look(folder.path(), LOOK, theme)).unwrap() };
    let (light, dark) = (seen(Theme::Light), seen(Theme::Dark));
    for seen in [&light, &dark] {
        let list = |name: &str| seen[name].as_array().unwrap().clone();
        assert_eq!(list("phases"), COLD.map(Value::from));
        assert_eq!(list("bars").len(), COLD.len() + WARM.len());
        let (left, right) = (&list("tracks")[0][0], &list("tracks")[0][1]);
        let (left, right) = (number(left), number(right));
        for bar in list("bars") {
            let (from, to) = (number(&bar[0]), number(&bar[1]));
            // Two pixels at least are seen of each, within its track or at its edge.
            assert!(
                from >= left - 0.5 && to <= right + 2.5 && to - from > 1.5,
                "{bar}"
            );
        }
        // Exits stand below the phases in which they came.
        for chart in list("charts") {
            assert!(
                (number(&chart[0]) - left).abs() < 1.0 && (number(&chart[1]) - right).abs() < 1.0
            );
        }
        assert!(list("exits").len() > 20 && list("exits").iter().all(|bar| number(bar) > 0.5));
        assert_eq!((&seen["scripts"], &seen["loaded"]), (&0.into(), &0.into()));
        assert_eq!(seen["overflow"], 0, "nothing sticks out");
    }
    let colours = |seen: &Value| [seen["paper"].clone(), seen["ink"].clone()];
    assert_eq!(colours(&light), LIGHT.map(Value::from));
    assert_eq!(colours(&dark), DARK.map(Value::from));
}

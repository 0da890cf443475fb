//! What `--json` says.

use std::time::Duration;

use minivm_tests::patience::with_limits_from;
use minivm_tests::program::Ended;
use serde_json::Value;

use crate::guest::{end_of, run, shell};

/// Every field that a report always has, in the order in which they are printed.
const FIELDS: [&str; 18] = [
    "exit_code",
    "command_exit_code",
    "signal",
    "timed_out",
    "truncated",
    "oom",
    "error",
    "exception",
    "host_memory",
    "missing_walls",
    "warnings",
    "wall_time",
    "user_time",
    "system_time",
    "peak_memory",
    "accel",
    "warm",
    "phases",
];
const PHASES: [&str; 8] = [
    "image", "build", "boot", "init", "setup", "run", "end", "total",
];

/// The one line on stdout.
fn report(ended: &Ended) -> Value {
    assert_eq!(ended.text().lines().count(), 1, "{}", ended.text());
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    // A line beside the object says that output was lost.
    let told = match report["truncated"] == true {
        true => "minivm: output was cut at --max-output\n",
        false => "",
    };
    assert_eq!(ended.stderr, told);
    assert_eq!(
        report["exit_code"].as_i64(),
        ended.code.map(Into::into),
        "{report}"
    );
    report
}

#[test]
fn json_has_the_outputs_and_everything_about_the_end() {
    let script =
        r"echo 4; printf '\377\000' >&2; n=0; while [ $n -lt 30000 ]; do n=$((n+1)); done; exit 42";
    let report = report(&end_of(shell(&["--json"], script)));
    let mut fields: Vec<&str> = report
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    fields.retain(|field| !field.starts_with("std"));
    let mut expected = FIELDS;
    fields.sort_unstable();
    expected.sort_unstable();
    assert_eq!(fields, expected);
    assert_eq!(
        (&report["exit_code"], &report["command_exit_code"]),
        (&42.into(), &42.into())
    );
    assert_eq!(
        (&report["stdout"], &report["stderr_base64"]),
        (&"4\n".into(), &"/wA=".into())
    );
    assert!(report.get("stdout_base64").is_none() && report.get("stderr").is_none());
    for no in ["timed_out", "truncated", "oom"] {
        assert_eq!(report[no], false, "{no}");
    }
    assert!(
        report["signal"].is_null() && report["error"].is_null(),
        "{report}"
    );
    assert_eq!(report["warnings"], Value::Array(vec![]));
    let seconds = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{report}"));
    let phases: Vec<f64> = PHASES
        .iter()
        .map(|phase| seconds(&report["phases"][phase]))
        .collect();
    assert_eq!(report["phases"].as_object().unwrap().len(), PHASES.len());
    let (total, parts) = phases.split_last().unwrap();
    assert!(phases.iter().all(|phase| *phase > 0.0), "{report}");
    assert!(
        (parts.iter().sum::<f64>() - *total).abs() < 1e-6,
        "{report}"
    );
    assert_eq!(report["wall_time"], report["phases"]["run"]);
    let used = seconds(&report["user_time"]) + seconds(&report["system_time"]);
    // The guest's kernel counts in ticks where it has no better.
    assert!(
        used > 0.0 && used < seconds(&report["wall_time"]) + 0.02,
        "{report}"
    );
    let peak = report["peak_memory"].as_u64().unwrap();
    assert!((100 << 10..64 << 20).contains(&peak), "{peak}");
    // The lab's kernel has what each wall needs. Another host may lack some of it.
    let kernel = rustix::system::uname();
    if kernel.release().to_bytes().ends_with(b"-minivm-lab") {
        assert_eq!(report["missing_walls"], Value::Array(vec![]), "{report}");
    }
}

#[test]
fn json_tells_signals_limits_and_refusals() {
    let killed = report(&end_of(shell(&["--json"], "kill -9 $$")));
    assert_eq!(
        (&killed["exit_code"], &killed["signal"], &killed["oom"]),
        (&137.into(), &9.into(), &false.into())
    );
    let late = with_limits_from(Duration::from_secs(2), |limit| {
        let limit = format!("{}s", limit.as_secs());
        let flags = ["--json", "--timeout", &limit, "--max-output", "10"];
        let script = r"printf '1\n2\n3\n4\n5\n6\n'; sleep 1000";
        let late = report(&end_of(shell(&flags, script)));
        assert_eq!(
            (&late["exit_code"], &late["timed_out"]),
            (&124.into(), &true.into())
        );
        (late["truncated"] == true).then_some(late)
    });
    assert_eq!(late["stdout"], "1\n2\n3\n4\n5\n");
    assert_eq!(late["error"], "the time limit was reached");
    let missing = report(&end_of(run(&["--json"], &["nobody"])));
    assert_eq!(missing["exit_code"], 127);
    assert!(
        missing["error"]
            .as_str()
            .unwrap()
            .starts_with("no such command: nobody"),
        "{missing}"
    );
}

#[test]
fn what_came_before_the_guests_end_is_reported() {
    let script = "echo out; echo err >&2; sleep 1; echo c > /proc/sysrq-trigger";
    let ended = end_of(shell(&["--json"], script));
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let outputs = (&report["stdout"], &report["stderr"]);
    assert_eq!(outputs, (&"out\n".into(), &"err\n".into()), "{report}");
    assert_eq!((ended.code, &report["exit_code"]), (Some(125), &125.into()));
    assert_eq!(
        (&report["accel"], &report["warm"]),
        (&"kvm".into(), &false.into())
    );
    let why = "the machine ended before its command did: the guest's kernel panicked";
    assert!(
        report["error"].as_str().unwrap().starts_with(why),
        "{report}"
    );
    assert!(
        ended.stderr.starts_with(&format!("minivm: {why}")),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_report_of_output_that_was_cut_is_of_a_failure() {
    let ended = end_of(shell(&["--json", "--max-output", "10"], "seq 100"));
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let codes = (
        ended.code,
        &report["exit_code"],
        &report["command_exit_code"],
    );
    assert_eq!(codes, (Some(125), &125.into(), &0.into()));
    let told = "output was cut at --max-output";
    assert_eq!(report["error"], told);
    assert_eq!(ended.stderr, format!("minivm: {told}\n"));
}

#[test]
fn out_of_memory_is_137_and_told() {
    let hungry = "BEGIN { s = \"0123456789\"; while (1) s = s s }";
    let flags = ["--json", "--memory", "96M"];
    let report = report(&end_of(run(&flags, &["awk", hungry])));
    assert_eq!(
        (&report["exit_code"], &report["oom"]),
        (&137.into(), &true.into()),
        "{report}"
    );
    let peak = report["peak_memory"].as_u64().unwrap();
    assert!((16 << 20..96 << 20).contains(&peak), "{peak}");
    let plain = end_of(run(&flags[1..], &["awk", hungry]));
    assert_eq!(plain.code, Some(137));
    assert_eq!(
        plain.stderr,
        "minivm: the guest ran out of memory; more -m/--memory helps\n"
    );
}

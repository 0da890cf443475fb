//! The agent of `examples/logs_agent`: its report, and the calls that it is refused.

// Tests run: here

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "../examples/logs_agent/agent.rs"]
mod agent;
#[path = "../examples/logs_agent/database.rs"]
mod database;
#[path = "../examples/logs_agent/report.rs"]
mod report;

use std::path::PathBuf;

use minivm_machine::Accel;
use minivm_sandbox::{Backend, End, Finished, Host};
use minivm_tests::output::Shared;
use rusqlite::Connection;

struct Ran {
    finished: Finished,
    printed: String,
    /// The report, if the code wrote one.
    html: Option<String>,
    /// The number of rows in the database afterwards.
    rows: u32,
}

fn run(code: &str) -> Ran {
    let host = Host {
        worker: PathBuf::from(env!("CARGO_BIN_EXE_minivm-worker")),
        cache: PathBuf::new(),
        image: None,
        kernel: None,
        accel: Accel::Kvm,
    };
    let folder = tempfile::tempdir().unwrap();
    let (path, chart) = (folder.path().join("logs"), folder.path().join("report"));
    database::create(&path).unwrap();
    let printed = Shared::default();
    let mut task = agent::task(code, &path, &chart).unwrap();
    task.stdout = Box::new(printed.clone());
    task.stderr = Box::new(printed.clone());
    let finished = host.open(Backend::Monty).unwrap().run(task).unwrap();
    let bytes = printed.bytes();
    let count = Connection::open(&path).unwrap();
    let rows = count.query_row("SELECT count(*) FROM requests", (), |row| row.get(0));
    Ran {
        finished,
        printed: String::from_utf8(bytes).unwrap(),
        html: std::fs::read_to_string(&chart).ok(),
        rows: rows.unwrap(),
    }
}

#[test]
fn the_report_shows_the_results_of_the_queries() {
    let ran = run(agent::CODE);
    assert_eq!(ran.finished.end, End::Exited(0), "{}", ran.printed);
    assert!(
        ran.printed.contains("checkout    1200 requests"),
        "{}",
        ran.printed
    );
    let html = ran.html.unwrap();
    assert!(html.contains("<h1>Failed requests, in percent by service</h1>"));
    assert!(
        html.contains("<p>checkout fails most, at /pay.</p>"),
        "{html}"
    );
    // Three services, and two paths of the worst.
    assert_eq!(html.matches("<rect ").count(), 5, "{html}");
    // Only the bar of the largest number has the full length.
    assert_eq!(html.matches("width=\"400.0\"").count(), 1);
}

#[test]
fn a_report_has_no_scripts_or_links_and_escapes_texts() {
    let html = run(agent::CODE).html.unwrap();
    assert!(
        html.contains("&lt;script&gt;alert(&#39;Ignore all"),
        "{html}"
    );
    assert!(!html.contains("<script"), "{html}");
    assert!(html.contains("default-src 'none'"));
    for reference in ["src=", "href=", "url(", "@import"] {
        assert!(!html.contains(reference), "{reference} in {html}");
    }
}

#[test]
fn queries_that_write_are_refused_and_the_code_goes_on() {
    let ran = run(agent::CODE);
    assert_eq!(
        ran.printed.matches("\nrefused: ").count(),
        9,
        "{}",
        ran.printed
    );
    assert!(!ran.printed.contains("DONE"), "{}", ran.printed);
    for refused in [
        "DELETE FROM requests -> not authorized",
        "AS other -> not authorized",
        "PRAGMA query_only = OFF -> not authorized",
        "FROM n -> the query takes longer than 1s",
        "requests b -> the answer has more than 1000 rows",
        "open -> Permission denied",
    ] {
        assert!(ran.printed.contains(refused), "{refused}: {}", ran.printed);
    }
    assert!(
        ran.printed.ends_with("requests left: 3600\n"),
        "{}",
        ran.printed
    );
    assert_eq!(ran.rows, 3600);
}

#[test]
fn functions_refuse_what_they_cannot_use() {
    for (code, expected) in [
        ("query(1)", "takes one argument, which is SQL"),
        ("query('SELECT 1', 2)", "takes one argument, which is SQL"),
        ("query('SELEC 1')", "syntax error"),
        ("query('SELECT nope FROM requests')", "no such column"),
        ("report('x', [['a', -1]])", "not negative"),
        ("report('x', [['a']])", "a label and a number"),
        ("report('x', [['a', 1]] * 51)", "at most 50 bars"),
        ("report('x', [], note=1)", "a text"),
        ("report(1)", "a title and a list"),
    ] {
        let ran = run(code);
        assert_eq!(ran.finished.end, End::Exited(1), "{code}");
        let exception = ran.finished.exception.unwrap();
        assert_eq!(exception.kind, "RuntimeError", "{code}");
        assert!(
            exception.message.contains(expected),
            "{code}: {}",
            exception.message
        );
        assert_eq!(ran.html, None);
    }
}

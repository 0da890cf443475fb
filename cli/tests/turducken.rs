//! The turducken from outside: `minivm turducken` as a program, here or in the lab.

// Tests run: with the tools

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

use minivm_machine::cache;
use minivm_sandbox::tools;
use minivm_tests::given;
use minivm_tests::output::text;
use serde_json::Value;

/// What a run may take, under emulation on a busy machine.
const LIMIT: &str = "600";

/// Runs it, with what it is made of in its place.
fn turducken(arguments: &[&str]) -> Output {
    let cache = cache::folder().unwrap();
    let mut tell = |line: &str| eprintln!("{line}");
    tools::npm::install(&cache, &mut tell).unwrap();
    tools::install_runsc(&cache, &mut tell).unwrap();
    Command::new("timeout")
        .args(["--kill-after=10", LIMIT])
        .arg(given::minivm(env!("CARGO_BIN_EXE_minivm")))
        .args(["turducken", "--quiet"])
        .args(arguments)
        .arg("--kernel")
        .arg(given::path("MINIVM_TEST_KERNEL"))
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs a kernel, Deno, Pyodide and runsc: cargo xtask test"]
fn python_is_pyodides_and_files_are_forbidden_by_deno() {
    let code = "import sys, js\nprint(2+2, sys.platform, 'ä')\n\
                try: js.Deno.readTextFileSync('/etc/hostname')\n\
                except Exception as e: print('NotCapable' in str(e))\n\
                raise ValueError('done')";
    let output = turducken(&["--code", code]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(text(&output.stdout), "4 emscripten ä\nTrue\n", "{stderr}");
    assert!(stderr.starts_with("Traceback"), "{stderr}");
    assert!(stderr.ends_with("ValueError: done\n"), "{stderr}");
}

#[test]
#[ignore = "needs a kernel, Deno, Pyodide and runsc: cargo xtask test"]
fn the_time_limit_ends_them_all() {
    let code = "while True: pass";
    let output = turducken(&["--json", "--timeout", "3s", "--code", code]);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["timed_out"], true, "{report}");
}

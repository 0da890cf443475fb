//! What code can reach: every probe's outcome for every sandbox, and the table of them in docs/sandboxes.md.
//!
//! With `MINIVM_UPDATE_DOCS=1` the table's rows are written anew; else they have to say what was found.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use minivm_sandbox::reach::{Probe, Reach, Secret, reach};
use minivm_sandbox::{Backend, Sandbox};

use crate::host;

/// A variable that Cargo sets for tests, and whose value no code could guess from within.
const SECRET: &str = "CARGO_MANIFEST_DIR";
/// Where the page has the table.
const MARK: &str = "<!-- what code reaches: kept by cli/tests/conformance/escape.rs -->";

/// What is the sandbox's own. Everything else is refused.
fn own(backend: Backend) -> &'static [Probe] {
    match backend {
        // Systems of their own, with their own processes and their own environment in /proc.
        Backend::Microvm | Backend::Gvisor => &[Probe::Environment, Probe::Process],
        Backend::Monty | Backend::Deno | Backend::Chromium => &[],
    }
}

pub(crate) fn reaches_nothing_of_the_host(sandbox: &dyn Sandbox) {
    let value = std::env::var(SECRET).expect("cargo sets it");
    let secret = Secret {
        name: SECRET,
        value: &value,
    };
    let mut row = format!("| {} |", sandbox.backend());
    for probe in Probe::ALL {
        let reached = reach(sandbox, probe, secret).unwrap();
        match (&reached, own(sandbox.backend()).contains(&probe)) {
            (Reach::Own, true) | (Reach::Nothing(_), false) => {}
            _ => panic!("{}, {}: {reached:?}", sandbox.backend(), probe.name()),
        }
        row = format!("{row} {} |", cell(&reached));
    }
    check_page(sandbox.backend(), &row);
}

/// The page's row has to say the same.
fn check_page(backend: Backend, row: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs/sandboxes.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (_, table) = text.split_once(MARK).expect("the page has the table");
    let name = format!("| {backend} |");
    let told = table.lines().find(|line| line.starts_with(&name));
    let told = told.unwrap_or_else(|| panic!("the table has no row {name}"));
    if std::env::var_os("MINIVM_UPDATE_DOCS").is_some() {
        std::fs::write(&page, text.replace(told, row)).unwrap();
    } else {
        assert_eq!(told, row, "the table's row and what was found");
    }
}

fn cell(reached: &Reach) -> String {
    match reached {
        Reach::Nothing(how) => format!("no: {how}"),
        Reach::Own => "its own".into(),
        Reach::Host => "YES".into(),
    }
}

/// A probe that can't succeed would prove nothing: where there is no sandbox, all of them do.
#[test]
fn without_a_sandbox_everything_is_reached() {
    let value = std::env::var(SECRET).expect("cargo sets it");
    let secret = Secret {
        name: SECRET,
        value: &value,
    };
    for probe in Probe::ALL {
        let reached = reach(&host::NoSandbox, probe, secret).unwrap();
        assert_eq!(reached, Reach::Host, "{}", probe.name());
    }
}

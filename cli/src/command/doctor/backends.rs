//! Checks of the sandboxes that are not virtual machines.

use std::path::Path;

use minivm_machine::{cache, jail};
use minivm_sandbox::{self, Backend, Error};

use super::super::worker;
use super::Check;

/// The backends beside the microVM, whose checks are the machine's.
pub(super) const OTHERS: [Backend; 4] = [
    Backend::Gvisor,
    Backend::Monty,
    Backend::Deno,
    Backend::Chromium,
];

pub(super) fn checks() -> Vec<Check> {
    let cache = cache::folder().unwrap_or_default();
    let mut checks = vec![jail()];
    checks.extend(weaknesses(&cache));
    checks.extend(OTHERS.map(|backend| check(backend, &cache)));
    checks.push(Check::program(
        "python",
        "python3",
        "sudo apt-get install python3",
    ));
    checks
}

fn jail() -> Check {
    match minivm_sandbox::check_jail(Backend::Gvisor) {
        Ok(()) => Check::ok("jail", "bubblewrap makes namespaces"),
        Err(error) => refused("jail", &error),
    }
}

/// The checks of what weakens jails on this host.
fn weaknesses(cache: &Path) -> Vec<Check> {
    let weaker = |(detail, remedy): (String, String)| Check::slow("jail: walls", detail, remedy);
    let found = jail::weaknesses(cache);
    match found.is_empty() {
        true => vec![Check::ok(
            "jail: walls",
            "no root outside, few system calls, limits by control groups",
        )],
        false => found.into_iter().map(weaker).collect(),
    }
}

fn check(backend: Backend, cache: &Path) -> Check {
    match minivm_sandbox::find_parts(backend, cache, &worker().unwrap_or_default()) {
        Ok(parts) => Check::ok(backend.name(), parts),
        Err(error) => refused(backend.name(), &error),
    }
}

fn refused(name: &'static str, error: &Error) -> Check {
    let (why, hint) = why_and_hint(error);
    Check::no(name, why, hint)
}

/// The reason of an error, and its remedy.
pub(super) fn why_and_hint(error: &Error) -> (String, String) {
    match error {
        Error::Unavailable { why, hint, .. }
        | Error::Jail(jail::Error::Unavailable { why, hint }) => (why.clone(), hint.clone()),
        error => (
            error.to_string(),
            "`minivm doctor --fix` may mend it".into(),
        ),
    }
}

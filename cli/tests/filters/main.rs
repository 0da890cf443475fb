//! The system calls that the filters of monitors and of folder servers let pass, and those that they answer with an error, against what strace sees of these: each
//! call in the lists is made by some machine here, or has a reason of its own. (That no other call is made follows from the machines' good
//! ends: a filter ends the process.)

// Tests run: on any KVM

#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers here are small"
)]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "../../../machine/tests/folders/client.rs"]
#[allow(dead_code, reason = "other programs use the rest of it")]
mod client;
mod folders;
mod lists;
mod machines;
mod trace;
#[path = "../../../machine/tests/folders/wire.rs"]
#[allow(dead_code, reason = "other programs use the rest of it")]
mod wire;

use std::collections::BTreeSet;

use lists::{Row, rows};
use machines::Machines;
use trace::{By, Seen};

/// The lists of calls that a vCPU's thread may make.
const OF_VCPUS: [&str; 3] = ["THREAD", "THREAD_CHECKED", "VCPU_REQUESTS"];

/// Whether a call is that of the row, by a thread that needs the row.
fn is_for(row: &Row, seen: &Seen) -> bool {
    let is_by = seen.by == By::Vcpu || !OF_VCPUS.contains(&&*row.list);
    is_by && row.is_of(&seen.name, |word| seen.words.contains(word))
}

#[test]
fn each_call_in_the_lists_is_made_or_has_a_reason() {
    let seen = Machines::new().run_all();
    let rows = rows();
    assert!(rows.len() > 90, "{rows:#?}");
    check(&rows, &seen);
}

/// Checks that each row is made, or has a reason of its own, and that each has a reason.
fn check(rows: &[Row], seen: &BTreeSet<Seen>) {
    let unused = rows.iter().filter(|row| !row.is_for_others());
    let unused: Vec<_> = unused
        .filter(|row| !seen.iter().any(|seen| is_for(row, seen)))
        .map(|row| format!("{}: {} {:?}: {}", row.list, row.call, row.words, row.reason))
        .collect();
    assert!(
        unused.is_empty(),
        "no process here makes these calls: take them out of machine/src/confine/calls*, or let their reasons begin with \"also: \"\n{}",
        unused.join("\n")
    );
    let unexplained: Vec<_> = rows.iter().filter(|row| row.reason.is_empty()).collect();
    assert!(unexplained.is_empty(), "no reason: {unexplained:#?}");
}

//! `cargo xtask soak`: the tests again and again, beside threads that keep the processors busy. A test that depends on time, or on
//! which thread is first, fails here before it fails on a slower machine.

use std::hint;
use std::thread;

use anyhow::{Result, ensure};
use clap::Args;

use crate::suite::Environment;
use crate::test::Run;

/// What is run, and how often.
#[derive(Args)]
pub(crate) struct Soak {
    /// How often all of it is run
    #[arg(long, default_value = "3")]
    rounds: u32,
    /// How many threads do nothing but keep a processor busy meanwhile
    #[arg(long, default_value = "4")]
    busy: u32,
    /// Test programs by their names, as in `boot`; all of them, if none is named
    names: Vec<String>,
}

/// Runs the tests, all rounds of them, and tells all failures at the end.
pub(crate) fn run(wanted: &Soak) -> Result<()> {
    let mut run = Run::new();
    let made = run.set_up(false)?;
    let minivm = run.minivm();
    let environment = Environment::new(&made, minivm.as_deref());
    let mut tests = run.tests();
    let names = &wanted.names;
    if let Some(missing) = names
        .iter()
        .find(|name| tests.iter().all(|test| test.name != **name))
    {
        let there: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
        ensure!(
            tests.is_empty(),
            "there is no test program {missing}; there are: {}",
            there.join(" ")
        );
    }
    tests.retain(|test| names.is_empty() || names.contains(&test.name));
    for _ in 0..wanted.busy {
        // They end with this process.
        thread::spawn(|| {
            loop {
                hint::spin_loop();
            }
        });
    }
    for round in 1..=wanted.rounds {
        println!("round {round} of {}", wanted.rounds);
        run.test(&tests, &environment, minivm.as_deref(), false);
    }
    run.close(false)
}

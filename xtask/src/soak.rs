//! `cargo xtask soak`: the tests again and again, with the large counts of stress tests, beside threads that keep the processors
//! busy. A test that depends on time, or on which thread is first, fails here before it fails on a slower machine.

use std::hint;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use clap::Args;

use crate::cargo;
use crate::choice::Choice;
use crate::suite::{Built, Environment};
use crate::test::{Run, WORKERS, ways};

/// What is run, and how often.
#[derive(Args)]
pub(crate) struct Soak {
    /// How often all of it is run; 3 times, if there are no --minutes
    #[arg(long)]
    rounds: Option<u32>,
    /// Begin no round after so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// The first round's seed, for what tests choose at random; each further round has the next one
    #[arg(long)]
    seed: Option<u64>,
    /// How many threads do nothing but keep a processor busy meanwhile
    #[arg(long, default_value = "4")]
    busy: u32,
    /// Run stress tests with the small counts of `cargo xtask test`: a round is what that command runs
    #[arg(long)]
    small: bool,
    /// How many test programs run at once, as far as they may; beside many busy threads more of them get more of the processors
    #[arg(long, default_value_t = WORKERS)]
    workers: usize,
    /// Test programs by their names, as in `boot`, and all other tests with such a part in their names; without, all tests
    names: Vec<String>,
}

impl Soak {
    /// Whether another round begins, after so many and so much time.
    fn goes_on(&self, rounds: u32, time: Duration) -> bool {
        let most = match (self.rounds, self.minutes) {
            (Some(rounds), _) => rounds,
            (None, None) => 3,
            (None, Some(_)) => u32::MAX,
        };
        let has_time = |minutes: u64| time < Duration::from_secs(minutes.saturating_mul(60));
        rounds < most && self.minutes.is_none_or(has_time)
    }
}

/// Runs the tests, all rounds of them, with the large counts of the stress tests, and shows all failures at the end.
pub(crate) fn run(wanted: &Soak) -> Result<()> {
    let mut run = Run::new();
    let targets = cargo::test_targets()?;
    let choice = Choice::new(&wanted.names, &targets);
    let candidates = choice.candidates(targets)?;
    let made = run.set_up(false)?;
    let Built { programs, minivm } = run.build(&choice, &candidates, true);
    let environment = Environment::new(&made, minivm.as_deref());
    for _ in 0..wanted.busy {
        // They end with this process.
        thread::spawn(|| {
            loop {
                hint::spin_loop();
            }
        });
    }
    let started = Instant::now();
    let first_seed = wanted.seed.unwrap_or_else(seed_of_the_day);
    let mut rounds = 0;
    while wanted.goes_on(rounds, started.elapsed()) {
        let seed = first_seed.wrapping_add(rounds.into());
        rounds += 1;
        println!("round {rounds}, with --seed {seed}");
        let environment = if wanted.small {
            environment.for_small_soak()
        } else {
            environment.for_soak(seed)
        };
        let jobs = ways(&programs, minivm.as_deref(), false);
        run.test(jobs.collect(), &environment, wanted.workers);
    }
    run.close(false)
}

/// A seed that no earlier soak had.
fn seed_of_the_day() -> u64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(rounds: Option<u32>, minutes: Option<u64>) -> Soak {
        Soak {
            rounds,
            minutes,
            seed: None,
            busy: 0,
            small: false,
            workers: WORKERS,
            names: Vec::new(),
        }
    }

    #[test]
    fn rounds_end_with_their_number_or_with_the_time() {
        let minute = Duration::from_secs(60);
        let by_default = soak(None, None);
        assert!(by_default.goes_on(2, 99 * minute) && !by_default.goes_on(3, minute));
        let by_time = soak(None, Some(2));
        assert!(by_time.goes_on(1000, minute) && !by_time.goes_on(0, 2 * minute));
        let by_both = soak(Some(5), Some(2));
        assert!(by_both.goes_on(4, minute));
        assert!(!by_both.goes_on(5, minute) && !by_both.goes_on(1, 3 * minute));
    }
}

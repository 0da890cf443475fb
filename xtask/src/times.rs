//! How long each test took, as the output of its program says.
//!
//! Stable libtest doesn't say it. But it starts its tests in the order in which it lists them, the next one as soon as a thread
//! is free, and prints a line when one ends: so each test's start is the line of the test that it followed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The tests of one run of a program.
pub(crate) struct Times {
    threads: usize,
    waiting: VecDeque<String>,
    running: Vec<(String, Instant)>,
    /// The test whose line has begun, with other output where its result should be.
    begun: Option<String>,
    ended: Vec<(String, Duration)>,
}

impl Times {
    /// For a program that runs these tests, in this order, on so many threads.
    pub(crate) fn new(threads: usize, tests: &[String]) -> Self {
        Times {
            threads,
            waiting: tests.iter().cloned().collect(),
            running: Vec::new(),
            begun: None,
            ended: Vec::new(),
        }
    }

    /// Takes a line of the program's output, which was printed now.
    pub(crate) fn read(&mut self, line: &str, now: Instant) {
        let line = line.trim();
        if line.starts_with("running ") && self.running.is_empty() {
            for _ in 0..self.threads {
                self.start_next(now);
            }
        } else if let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ..."))
        {
            let name = name.trim_end_matches(" - should panic");
            match result.trim() {
                "ok" | "FAILED" => self.end(name, true, now),
                result if result.starts_with("ignored") => self.end(name, false, now),
                // A program that the test runs has written into the line.
                _ => self.begun = Some(name.to_owned()),
            }
        } else if matches!(line, "ok" | "FAILED")
            && let Some(name) = self.begun.take()
        {
            self.end(&name, true, now);
        }
    }

    /// The tests that have ended and how long each took, in the order of their ends.
    pub(crate) fn ended(self) -> Vec<(String, Duration)> {
        self.ended
    }

    fn start_next(&mut self, now: Instant) {
        self.running
            .extend(self.waiting.pop_front().map(|name| (name, now)));
    }

    fn end(&mut self, name: &str, ran: bool, now: Instant) {
        let Some(at) = self.running.iter().position(|(running, _)| running == name) else {
            return;
        };
        let (name, started) = self.running.swap_remove(at);
        if ran {
            self.ended.push((name, now.duration_since(started)));
        }
        self.start_next(now);
    }
}

/// The lines of the slowest of these tests, the slowest first.
pub(crate) fn slowest(mut tests: Vec<(String, Duration)>, most: usize) -> Vec<String> {
    tests.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    let lines = tests.into_iter().take(most);
    lines
        .map(|(name, took)| format!("{:>7.2} s  {name}", took.as_secs_f64()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tests took by an output whose lines have the seconds in which they came.
    fn seconds(threads: usize, tests: &[&str], lines: &[(u64, &str)]) -> Vec<(String, u64)> {
        let tests: Vec<String> = tests.iter().map(|&name| name.into()).collect();
        let mut times = Times::new(threads, &tests);
        let start = Instant::now();
        for (second, line) in lines {
            times.read(line, start + Duration::from_secs(*second));
        }
        let ended = times.ended().into_iter();
        ended.map(|(name, took)| (name, took.as_secs())).collect()
    }

    #[test]
    fn a_test_begins_where_a_thread_was_free() {
        let lines = [
            (1, "running 4 tests"),
            (3, "test b ... ok"),
            (6, "test a ... FAILED"),
            (7, "test c - should panic ... ok"),
            (11, "test d ... ok"),
        ];
        let of = |name: &str, took| (name.to_owned(), took);
        assert_eq!(
            seconds(2, &["a", "b", "c", "d"], &lines),
            [of("b", 2), of("a", 5), of("c", 4), of("d", 5)]
        );
    }

    #[test]
    fn what_was_ignored_took_no_time_and_is_not_listed() {
        let lines = [
            (0, "running 3 tests"),
            (0, "test a ... ignored, needs the lab"),
            (2, "test b ... ok"),
            (5, "test c ... ok"),
        ];
        let of = |name: &str, took| (name.to_owned(), took);
        assert_eq!(
            seconds(1, &["a", "b", "c"], &lines),
            [of("b", 2), of("c", 3)]
        );
    }

    #[test]
    fn other_output_does_not_end_a_test() {
        let lines = [
            (0, "running 2 tests"),
            (1, "test a ... minivm: told to stop"),
            (2, "test x ... ok"),
            (4, "ok"),
            (5, "ok"),
            (7, "test b ... ok\r"),
        ];
        let of = |name: &str, took| (name.to_owned(), took);
        assert_eq!(seconds(1, &["a", "b"], &lines), [of("a", 4), of("b", 3)]);
    }

    #[test]
    fn the_slowest_come_first() {
        let tests = ["a", "b", "c"].iter().zip([2, 30, 4]);
        let tests = tests.map(|(name, took)| ((*name).to_owned(), Duration::from_secs(took)));
        assert_eq!(
            slowest(tests.collect(), 2),
            ["  30.00 s  b", "   4.00 s  c"]
        );
    }
}

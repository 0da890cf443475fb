//! How many tests passed, failed and were skipped: the sum of the `test result:` lines of all runs.

use std::fmt;
use std::ops::AddAssign;

/// The counts of one run, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// Reads a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s`.
    /// What is filtered out is not counted: the filter's owner runs it elsewhere.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let (_, counts) = line
            .trim()
            .strip_prefix("test result: ")?
            .split_once(". ")?;
        let count = |name: &str| {
            counts
                .split("; ")
                .find_map(|count| count.strip_suffix(name)?.trim_end().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }

    /// One failure that is no test's: of a step, or of a test program that didn't come to its end.
    pub(crate) fn failure() -> Self {
        Self {
            failed: 1,
            ..Self::default()
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_read_and_summed() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.00s";
        let mut tally = Tally::read(line).unwrap();
        assert_eq!(
            tally,
            Tally {
                passed: 5,
                failed: 2,
                skipped: 1
            }
        );
        tally += Tally::read(
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\r",
        )
        .unwrap();
        assert_eq!(tally.to_string(), "8 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in [
            "test result_is_read ... ok",
            "test result: ok",
            "running 3 tests",
            "",
        ] {
            assert_eq!(Tally::read(line), None, "{line}");
        }
    }
}

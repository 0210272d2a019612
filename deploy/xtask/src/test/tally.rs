//! Counting what cargo's test harness says.

use std::fmt;
use std::ops::AddAssign;

/// Tests that passed and failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
}

impl Tally {
    pub const ONE_PASSED: Self = Self { passed: 1, failed: 0 };
    pub const ONE_FAILED: Self = Self { passed: 0, failed: 1 };

    /// The counts in a line such as `test result: ok. 12 passed; 0 failed; 0 ignored; …`; `None` for any other line.
    pub fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.split_once("test result: ")?;
        Some(Self { passed: count_before(counts, " passed")?, failed: count_before(counts, " failed")? })
    }
}

/// The number that stands right before `word`.
fn count_before(text: &str, word: &str) -> Option<u64> {
    let (before, _) = text.split_once(word)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let good = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(Tally::of_line(good), Some(Tally { passed: 12, failed: 0 }));
        let bad = "\x1b[0mtest result: \x1b[31mFAILED\x1b[m. 107 passed; 2 failed; 0 ignored; 0 measured";
        assert_eq!(Tally::of_line(bad), Some(Tally { passed: 107, failed: 2 }));
    }

    #[test]
    fn other_lines_are_not() {
        for line in ["", "running 3 tests", "test a::b ... ok", "test result: ok.", "test result: x passed; y failed"] {
            assert_eq!(Tally::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn the_sum_is_what_is_printed_last() {
        let mut total = Tally::ONE_PASSED;
        total += Tally { passed: 40, failed: 2 };
        total += Tally::ONE_FAILED;
        assert_eq!(total.to_string(), "41 passed, 3 failed");
    }
}

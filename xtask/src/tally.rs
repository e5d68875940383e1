//! Counts the tests that passed, from the lines that libtest prints.

use std::{fmt, ops::AddAssign};

/// How many passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Checks and tests that passed.
    pub passed: usize,
    /// Checks and tests that failed, or did not run to their end.
    pub failed: usize,
    /// Checks and tests that did not run.
    pub skipped: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Reads the output of `cargo test`, line by line.
#[derive(Debug, Default)]
pub struct Reader {
    tally: Tally,
    /// Test binaries that began and have not printed their result.
    unfinished: usize,
    failures: Vec<String>,
}

impl Reader {
    /// Takes the next line.
    pub fn line(&mut self, line: &str) {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.unfinished += 1;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.unfinished = self.unfinished.saturating_sub(1);
            self.tally += Tally {
                passed: count(counts, "passed"),
                failed: count(counts, "failed"),
                skipped: count(counts, "ignored"),
            };
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|l| l.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }

    /// The counts and the names of the failed tests. A binary without a result counts as one failure.
    /// A `problem` (an error of the harness) counts as one failure if no test failed.
    pub fn finish(mut self, problem: Option<&str>) -> (Tally, Vec<String>) {
        if self.unfinished > 0 {
            self.tally.failed += self.unfinished;
            self.failures.push("a test binary died".into());
        } else if let Some(problem) = problem
            && self.tally.failed == 0
        {
            self.tally.failed += 1;
            self.failures.push(problem.into());
        }
        (self.tally, self.failures)
    }
}

fn count(counts: &str, what: &str) -> usize {
    counts
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str], problem: Option<&str>) -> (Tally, Vec<String>) {
        let mut reader = Reader::default();
        lines.iter().for_each(|line| reader.line(line));
        reader.finish(problem)
    }

    #[test]
    fn the_results_of_several_binaries_are_summed() {
        let (tally, failures) = read(
            &[
                "running 3 tests",
                "test a ... ok",
                "test deep::b ... FAILED",
                "test c ... ignored",
                "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.00s",
                "running 1 test",
                "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            ],
            Some("cargo failed"),
        );
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 1 skipped");
        assert_eq!(failures, ["deep::b"]);
    }

    #[test]
    fn a_binary_that_dies_is_a_failure() {
        let (tally, failures) = read(&["running 3 tests", "test a ... ok"], Some("it died"));
        assert_eq!((tally.failed, failures.len()), (1, 1));
    }

    #[test]
    fn a_build_that_fails_is_a_failure() {
        let (tally, failures) = read(&[], Some("cargo failed"));
        assert_eq!((tally.failed, failures), (1, vec!["cargo failed".into()]));
        assert_eq!(read(&[], None).0, Tally::default());
    }
}

//! Reads a machine's serial console: whether it booted, and the results of its tests.

use crate::tally::{Reader, Tally};
use std::collections::BTreeMap;

/// Begins the lines that `init.sh` writes for this program.
const MARK: &str = "ipip: ";
/// The exit code of libtest when a test failed; the printed results name the test.
const TESTS_FAILED: i32 = 101;

/// The state of a machine, from the lines that it has printed.
#[derive(Debug, Default)]
pub struct Console {
    reader: Reader,
    /// Release and version of the kernel.
    kernel: Option<String>,
    /// Exit code of each test binary.
    exits: BTreeMap<String, i32>,
    /// Lines before the tests, which explain a machine that runs none.
    before: Vec<String>,
}

impl Console {
    /// Takes the next line; returns the text to print for it.
    pub fn line(&mut self, line: &str) -> Option<String> {
        // The serial console also writes a carriage return.
        let line = line.trim_end_matches('\r');
        if let Some(mark) = line.strip_prefix(MARK) {
            return self.mark(mark);
        }
        if self.kernel.is_none() {
            self.before.push(line.to_owned());
            return None;
        }
        self.reader.line(line);
        Some(line.to_owned())
    }

    fn mark(&mut self, mark: &str) -> Option<String> {
        if let Some(kernel) = mark.strip_prefix("began ") {
            self.kernel = Some(kernel.to_owned());
            return Some(format!("Linux {kernel}"));
        }
        let (test, code) = mark.split_once(" exited ")?;
        self.exits.insert(test.to_owned(), code.parse().ok()?);
        None
    }

    /// The output of a machine that did not begin its tests; otherwise nothing.
    pub fn before(&self) -> &[String] {
        match self.kernel {
            Some(_) => &[],
            None => &self.before,
        }
    }

    /// The counts and the names of failures; each of `tests` must have run.
    pub fn finish(self, tests: &[&str]) -> (Tally, Vec<String>) {
        let problem = match self.kernel {
            None => Some("the machine did not boot".into()),
            Some(_) => tests.iter().find_map(|test| match self.exits.get(*test) {
                Some(0 | &TESTS_FAILED) => None,
                Some(code) => Some(format!("{test} exited with {code}")),
                None => Some(format!("{test} did not finish")),
            }),
        };
        self.reader.finish(problem.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> (Tally, Vec<String>) {
        let mut console = Console::default();
        for line in lines {
            console.line(line);
        }
        console.finish(&["attached"])
    }

    const BEGAN: &str = "ipip: began 6.1.0-56-cloud-amd64 #1 SMP\r";
    const RUNNING: &str = "running 2 tests\r";
    const RESULT: &str = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\r";

    #[test]
    fn the_results_of_the_tests_are_counted() {
        let (tally, failures) = read(&[BEGAN, RUNNING, RESULT, "ipip: attached exited 0\r"]);
        assert_eq!(tally.to_string(), "2 passed, 0 failed, 0 skipped");
        assert_eq!(failures, [""; 0]);
    }

    #[test]
    fn a_machine_that_does_not_boot_is_a_failure() {
        let (tally, failures) = read(&["Kernel panic - not syncing\r"]);
        assert_eq!(tally.to_string(), "0 passed, 1 failed, 0 skipped");
        assert_eq!(failures, ["the machine did not boot"]);
    }

    #[test]
    fn a_test_binary_that_does_not_start_is_a_failure() {
        let (tally, failures) = read(&[BEGAN, "ipip: attached exited 126\r"]);
        assert_eq!(tally.failed, 1);
        assert_eq!(failures, ["attached exited with 126"]);
    }

    #[test]
    fn a_machine_that_dies_under_its_tests_is_a_failure() {
        assert_eq!(read(&[BEGAN, RUNNING]).0.failed, 1);
        assert_eq!(read(&[BEGAN]).0.failed, 1);
    }

    #[test]
    fn the_output_before_the_tests_is_kept_for_a_machine_that_runs_none() {
        let mut console = Console::default();
        assert_eq!(console.line("Kernel panic\r"), None);
        assert_eq!(console.before(), ["Kernel panic"]);
        assert!(console.line(BEGAN).is_some());
        assert_eq!(console.before(), [""; 0]);
    }
}

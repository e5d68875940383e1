//! The report at the end of a run of the tests.

use super::areas::Area;
use crate::tally::Tally;
use std::time::Duration;

/// How an area ended.
#[derive(Debug)]
pub struct Outcome {
    tally: Tally,
    failures: Vec<String>,
}

impl Outcome {
    /// One check, which passed.
    pub fn passed() -> Self {
        let tally = Tally {
            passed: 1,
            ..Tally::default()
        };
        (tally, Vec::new()).into()
    }

    /// One check, which failed.
    pub fn failed(why: String) -> Self {
        let tally = Tally {
            failed: 1,
            ..Tally::default()
        };
        (tally, vec![why]).into()
    }
}

impl From<(Tally, Vec<String>)> for Outcome {
    fn from((tally, failures): (Tally, Vec<String>)) -> Self {
        Self { tally, failures }
    }
}

/// Collects the outcomes of a run.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<String>,
    failures: Vec<String>,
    over_budget: Vec<String>,
    passed: Vec<&'static Area>,
    not_run: Vec<&'static str>,
    sum: Tally,
}

impl Report {
    /// Adds preparation and build; an `error` counts as one failure.
    pub fn preparation(&mut self, took: Duration, budget: u32, error: Option<&anyhow::Error>) {
        const NAME: &str = "build";
        self.line(NAME, took, budget, "");
        if let Some(error) = error {
            println!("the build failed, so no test can run: {error:#}");
            self.failures.push(format!("{NAME}: {error:#}"));
            self.sum.failed += 1;
        }
    }

    /// Adds an area that ran.
    pub fn add(&mut self, area: &'static Area, outcome: Outcome, took: Duration) {
        let Outcome { tally, failures } = outcome;
        self.line(area.name, took, area.budget, &tally.to_string());
        if tally.failed == 0 && tally.passed > 0 {
            self.passed.push(area);
        }
        let named = failures
            .into_iter()
            .map(|what| format!("{}: {what}", area.name));
        self.failures.extend(named);
        self.sum += tally;
    }

    /// Adds an area that did not run.
    pub fn not_run(&mut self, area: &'static Area) {
        self.not_run.push(area.name);
    }

    /// The areas that ran without a failure.
    pub fn passed(&self) -> &[&'static Area] {
        &self.passed
    }

    /// The counts of all areas.
    pub fn sum(&self) -> Tally {
        self.sum
    }

    /// Prints all of it; the counts are the last line.
    pub fn print(&self) {
        println!("\n== areas that ran ==");
        self.lines.iter().for_each(|line| println!("{line}"));
        if !self.not_run.is_empty() {
            println!(
                "did not run: {} (see cargo xtask test --help)",
                self.not_run.join(", ")
            );
        }
        for name in &self.over_budget {
            println!("over budget (not a failure): {name}");
        }
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!("{}", self.sum);
    }

    fn line(&mut self, name: &'static str, took: Duration, budget: u32, counts: &str) {
        let seconds = took.as_secs_f64();
        let line = format!("{name:<10} {seconds:7.1} s of {budget:2} min   {counts}");
        println!("{line}");
        self.lines.push(line);
        if seconds > f64::from(budget * 60) {
            self.over_budget
                .push(format!("{name} took {:.1} min of {budget}", seconds / 60.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::areas::AREAS, *};

    #[test]
    fn a_run_over_budget_is_reported_and_is_no_failure() {
        let mut report = Report::default();
        let area = &AREAS[0];
        let minutes = u64::from(area.budget);
        report.add(area, Outcome::passed(), Duration::from_secs(minutes * 60));
        assert_eq!(report.over_budget, [""; 0]);
        report.add(
            area,
            Outcome::passed(),
            Duration::from_secs(minutes * 60 + 1),
        );
        assert_eq!(report.over_budget.len(), 1);
        assert_eq!(report.sum().to_string(), "2 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn a_failure_names_its_area() {
        let mut report = Report::default();
        report.add(&AREAS[0], Outcome::failed("fmt".into()), Duration::ZERO);
        assert_eq!(report.failures, ["lint: fmt"]);
        assert!(report.passed().is_empty());
    }
}

//! Pod to pod over two nodes and a router: this project's datapath, plain routing, kernel VXLAN and, if the
//! kernel has it, kernel ipip, measured in turns in one run. On one node: this project's datapath and a
//! bridge.

mod catalogue;
mod chart;
mod cpu_time;
pub mod endpoint;
mod load;
mod metrics;
mod report;
mod setup;
mod uplink_profile;

use crate::output;
use anyhow::{Result, ensure};
use catalogue::METRICS;
use clap::Args;
use ipip_testkit::trash::empty_all_on_interrupt;
use metrics::Metric;
use report::MetricResult;
use setup::OtherBuild;
use std::{fs, path::PathBuf, time::Duration};
use uplink_profile::{Schedule, UPLINK_PROFILES};

/// Arguments of the default benchmark.
#[derive(Debug, Args)]
pub struct CompareOptions {
    /// Measure fewer and shorter rounds (under 3 minutes): a smoke test, too short for conclusions
    #[arg(long)]
    quick: bool,
    /// Rounds; each round measures every metric once [default: 7, with --quick 3]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of one measurement in milliseconds [default: 500, with --quick 110]
    #[arg(long, value_name = "MS")]
    duration: Option<u64>,
    /// Measure only metrics whose name contains this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Leave out the metrics on an underlay of MTU 9000
    #[arg(long)]
    no_jumbo: bool,
    /// Also measure `other`: ipip with the agent and the plugin in this folder, for example those of
    /// another commit
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Also measure `other`: ipip after this bash script has changed its setup. The script gets names of
    /// network namespaces in NODES, ROUTER and PODS, the host sides of the pods' veths in VETHS, and the
    /// nodes of these veths in POD_NODES
    #[arg(long, value_name = "FILE")]
    set_up: Option<PathBuf>,
    /// Write the rows to this file: metric, unit, ours, plain, vxlan, ratio_plain, ratio_vxlan, spread
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl CompareOptions {
    /// Measures, prints the table and writes the files.
    pub fn run(&self) -> Result<()> {
        empty_all_on_interrupt()?;
        let schedule = self.schedule()?;
        let results = self.measure(&schedule)?;
        ensure!(
            !results.is_empty(),
            "--only {:?} matches no metric; the metrics are {:?}",
            self.only(),
            METRICS.map(|metric| metric.name)
        );
        println!("{}", report::table(&results));
        let note = note(&schedule)?;
        println!("{note}");
        if let Some(path) = &self.json {
            output::write_json(path, &report::json(&results))?;
            println!("rows: {}", path.display());
        }
        if let Some(path) = &self.svg {
            chart::write(path, &results, &note)?;
            println!("chart: {}", path.display());
        }
        Ok(())
    }

    fn schedule(&self) -> Result<Schedule> {
        let (rounds, warm_up, measure) = if self.quick {
            (3, 75, 110)
        } else {
            (7, 200, 500)
        };
        let rounds = self.rounds.unwrap_or(rounds);
        ensure!(rounds > 0, "--rounds is 0; remedy: use 1 or more");
        let measure = self.duration.unwrap_or(measure);
        ensure!(measure > 0, "--duration is 0; remedy: use 1 or more");
        Ok(Schedule {
            rounds,
            warm_up: Duration::from_millis(warm_up),
            measure: Duration::from_millis(measure),
        })
    }

    /// All metrics that were asked for, on all uplink profiles.
    fn measure(&self, schedule: &Schedule) -> Result<Vec<MetricResult>> {
        let other = OtherBuild {
            programs: self.against.clone(),
            script: self.set_up.clone(),
        };
        let metrics = if other.is_wanted() {
            METRICS.map(Metric::against_other)
        } else {
            METRICS
        };
        let mut results = Vec::new();
        for profile in UPLINK_PROFILES {
            if self.no_jumbo && profile.is_jumbo() {
                continue;
            }
            let is_wanted = |metric: &&Metric| {
                profile.has(metric) && profile.name_of(metric.name).contains(self.only())
            };
            let wanted: Vec<Metric> = metrics.iter().filter(is_wanted).copied().collect();
            if !wanted.is_empty() {
                results.extend(profile.measure(&wanted, &other, schedule)?);
            }
        }
        Ok(results)
    }

    fn only(&self) -> &str {
        self.only.as_deref().unwrap_or_default()
    }
}

/// The machine and the schedule of the measurement.
fn note(schedule: &Schedule) -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "Linux {}, {} CPUs, medians of {} rounds of {} ms, load average at the end {}",
        output::kernel_release()?,
        output::cpus(),
        schedule.rounds,
        schedule.measure.as_millis(),
        load.split(' ').next().unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::Column;

    const DOCUMENT: &str = include_str!("../../docs/performance.md");

    fn metric(name: &str) -> Option<&'static Metric> {
        let is_named = |metric: &&Metric| {
            let names = UPLINK_PROFILES.map(|profile| profile.name_of(metric.name));
            names.iter().any(|it| it == name)
        };
        METRICS.iter().find(is_named)
    }

    #[test]
    fn the_documented_results_have_the_names_and_targets_of_the_metrics() {
        let (_, results) = DOCUMENT.split_once("\n## Results\n").unwrap();
        let (results, _) = results.split_once("\n## ").unwrap();
        let rows: Vec<Vec<&str>> = results
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert!(rows.len() > 20, "only {} rows", rows.len());
        for row in rows {
            let name = row[1].split('`').nth(1).unwrap();
            let metric = metric(name).unwrap_or_else(|| panic!("there is no metric {name}"));
            let targets = [row[3], row[5]].map(|cell| cell.parse().ok());
            let expected = [Column::Plain, Column::Vxlan].map(|column| metric.target(column));
            assert_eq!(targets, expected, "{name}");
        }
    }
}

//! The numbers, for people and for programs.

use crate::{beds::Bed, metrics::Metric};
use anyhow::{Context, Result as Outcome};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

/// All samples of one metric.
pub struct Result<'a> {
    /// The metric.
    pub metric: &'a Metric,
    /// By bed, in the order of the beds; one a round.
    pub samples: Vec<Vec<f64>>,
    names: Vec<&'static str>,
}

/// Median and what surrounds it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Summary {
    median: f64,
    least: f64,
    most: f64,
}

impl<'a> Result<'a> {
    /// Without samples.
    pub fn new(metric: &'a Metric, beds: &[Bed]) -> Self {
        Self {
            metric,
            samples: vec![Vec::new(); beds.len()],
            names: beds.iter().map(|bed| bed.name).collect(),
        }
    }

    /// Ours by the other's, round by round: what slows the whole machine down for a while cancels
    /// out.
    fn ratio(&self, other: usize) -> Summary {
        let rounds = self.samples[0].iter().zip(&self.samples[other]);
        Summary::of(rounds.map(|(ours, other)| ours / other).collect())
    }
}

impl Summary {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let median = if samples.len().is_multiple_of(2) {
            (samples[middle - 1] + samples[middle]) / 2.0
        } else {
            samples[middle]
        };
        Self {
            median,
            least: samples[0],
            most: samples[samples.len() - 1],
        }
    }

    fn text(self) -> String {
        let Self {
            median,
            least,
            most,
        } = self;
        format!("{median:.2} ({least:.2}..{most:.2})")
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.least, "max": self.most })
    }
}

/// A row a metric: median (least..most) of each bed, and the ratios to the first.
pub fn table(results: &[Result<'_>]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let names = results.first().map(|result| result.names.clone());
    let names = names.unwrap_or_default();
    let ratios = names.iter().skip(1).map(|name| format!("ours / {name}"));
    let mut header = vec!["median (min..max)".to_string(), String::new()];
    header.extend(names.iter().map(|name| (*name).to_string()));
    header.extend(ratios);
    table.set_header(header);
    for result in results {
        let mut row = vec![result.metric.name.to_string(), result.metric.unit.into()];
        let samples = result.samples.iter().cloned();
        row.extend(samples.map(|samples| Summary::of(samples).text()));
        row.extend((1..names.len()).map(|other| result.ratio(other).text()));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Writes everything to `path`.
pub fn write_json(
    path: &Path,
    results: &[Result<'_>],
    rounds: usize,
    duration: Duration,
) -> Outcome<()> {
    let metrics: Vec<Value> = results
        .iter()
        .map(|result| {
            let beds = result.names.iter().zip(&result.samples);
            let beds: serde_json::Map<String, Value> = beds
                .map(|(name, samples)| {
                    let mut value = Summary::of(samples.clone()).json();
                    value["samples"] = json!(samples);
                    ((*name).to_string(), value)
                })
                .collect();
            let others = result.names.iter().enumerate().skip(1);
            let ratios: serde_json::Map<String, Value> = others
                .map(|(index, name)| (format!("ours/{name}"), result.ratio(index).json()))
                .collect();
            json!({
                "name": result.metric.name,
                "unit": result.metric.unit,
                "flows": result.metric.flows,
                "beds": beds,
                "ratios": ratios,
            })
        })
        .collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let report = json!({
        "kernel": kernel.trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "rounds": rounds,
        "milliseconds": duration.as_millis() as u64,
        "metrics": metrics,
    });
    fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_samples_lies_between_the_middle_two() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(
            summary,
            Summary {
                median: 2.5,
                least: 1.0,
                most: 4.0
            }
        );
    }
}

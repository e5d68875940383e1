//! The numbers, for people and for programs.

use crate::metrics::{COLUMNS, Columns, Row};
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// All samples of one row.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name.
    pub metric: String,
    /// What a person reads.
    pub unit: &'static str,
    /// Whether less is better.
    pub is_cost: bool,
    /// What the ratios to plain and VXLAN should reach.
    pub bars: [Option<f64>; 2],
    /// By column, one a round; empty where there is no such bed.
    pub samples: [Vec<f64>; COLUMNS.len()],
}

/// Median and what surrounds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub most: f64,
}

impl Line {
    /// Without samples.
    pub fn new(row: &Row, suffix: &str) -> Self {
        Self {
            metric: format!("{}{suffix}", row.metric),
            unit: row.unit,
            is_cost: row.value.is_cost(),
            bars: row.bars,
            samples: Default::default(),
        }
    }

    /// A column; none without samples.
    pub fn summary(&self, column: usize) -> Option<Summary> {
        Summary::of(self.samples[column].clone())
    }

    /// How much better ours is than another column, round by round: what slows the whole machine down
    /// for a while cancels out. More is better, also for a cost.
    pub fn ratio(&self, other: usize) -> Option<Summary> {
        let rounds = self.samples[0].iter().zip(&self.samples[other]);
        Summary::of(
            rounds
                .map(|(ours, other)| match self.is_cost {
                    true => other / ours,
                    false => ours / other,
                })
                .collect(),
        )
    }

    /// As a program reads it.
    fn json(&self) -> Value {
        let mut row = Map::new();
        let mut spread = Map::new();
        row.insert("metric".into(), json!(self.metric));
        row.insert("unit".into(), json!(self.unit));
        let values = (0..COLUMNS.len()).map(|n| (COLUMNS[n].to_string(), self.summary(n)));
        let ratios = (1..COLUMNS.len()).map(|n| (format!("ratio_{}", COLUMNS[n]), self.ratio(n)));
        for (name, summary) in values.chain(ratios) {
            let is_optional = COLUMNS[3..].iter().any(|column| name.ends_with(column));
            if let Some(summary) = summary {
                spread.insert(name.clone(), json!([summary.least, summary.most]));
            }
            if summary.is_some() || !is_optional {
                row.insert(name, json!(summary.map(|summary| summary.median)));
            }
        }
        row.insert("spread".into(), spread.into());
        row.into()
    }

    fn verdict(&self, other: usize) -> String {
        let Some(ratio) = self.ratio(other) else {
            return String::new();
        };
        let text = ratio.text();
        match self.bars.get(other - 1).copied().flatten() {
            Some(bar) if ratio.median >= bar => format!("{text} >= {bar}"),
            Some(bar) => format!("{text} MISSES {bar}"),
            None => text,
        }
    }
}

impl Summary {
    /// None of no samples.
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let upper = *samples.get(middle)?;
        let median = if samples.len().is_multiple_of(2) {
            (samples[middle - 1] + upper) / 2.0
        } else {
            upper
        };
        Some(Self {
            median,
            least: samples[0],
            most: samples[samples.len() - 1],
        })
    }

    fn text(self) -> String {
        let Self {
            median,
            least,
            most,
        } = self;
        format!("{median:.2} ({least:.2}..{most:.2})")
    }
}

/// A line a metric: median (least..most) of each bed, and the ratios to ours.
pub fn table(lines: &[Line]) -> String {
    let has_samples = |column: &usize| lines.iter().any(|line| !line.samples[*column].is_empty());
    let columns: Vec<usize> = (0..COLUMNS.len()).filter(has_samples).collect();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let mut header = vec!["median (min..max)".to_string(), String::new()];
    header.extend(columns.iter().map(|column| COLUMNS[*column].to_string()));
    let others = columns.iter().filter(|column| **column != 0);
    header.extend(
        others
            .clone()
            .map(|column| format!("ours to {}, more is better", COLUMNS[*column])),
    );
    table.set_header(header);
    for line in lines {
        let mut row = vec![line.metric.clone(), line.unit.into()];
        row.extend(columns.iter().map(|column| {
            let summary = line.summary(*column);
            summary.map_or_else(String::new, Summary::text)
        }));
        row.extend(others.clone().map(|column| line.verdict(*column)));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Writes the rows to `path`.
pub fn write_json(path: &Path, lines: &[Line]) -> Result<()> {
    let rows: Vec<Value> = lines.iter().map(Line::json).collect();
    fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Which columns a row has, where the kernel has all beds.
pub fn kinds(columns: &Columns) -> impl Iterator<Item = (usize, crate::beds::Kind)> + '_ {
    columns
        .iter()
        .enumerate()
        .filter_map(|(column, kind)| kind.map(|kind| (column, kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(is_cost: bool, ours: &[f64], plain: &[f64]) -> Line {
        Line {
            metric: "m".into(),
            unit: "u",
            is_cost,
            bars: [Some(1.0), None],
            samples: [ours, plain, &[], &[], &[]].map(<[f64]>::to_vec),
        }
    }

    #[test]
    fn the_median_of_an_even_number_of_samples_lies_between_the_middle_two() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(
            summary,
            Summary {
                median: 2.5,
                least: 1.0,
                most: 4.0
            }
        );
    }

    #[test]
    fn the_ratio_of_a_cost_is_turned_so_that_more_is_better() {
        let rate = line(false, &[2.0], &[1.0]);
        let cost = line(true, &[2.0], &[1.0]);
        assert_eq!(rate.ratio(1).unwrap().median, 2.0);
        assert_eq!(cost.ratio(1).unwrap().median, 0.5);
        assert!(cost.verdict(1).contains("MISSES 1"));
    }

    #[test]
    fn a_row_says_null_where_there_is_no_vxlan_and_nothing_of_a_kernel_that_lacks_ipip() {
        let row = line(false, &[1.0, 3.0, 2.0], &[1.0, 1.0, 1.0]).json();
        assert_eq!(row["ours"], 2.0);
        assert_eq!(row["ratio_plain"], 2.0);
        assert_eq!(row["spread"]["ratio_plain"], json!([1.0, 3.0]));
        assert!(row["vxlan"].is_null() && row["ratio_vxlan"].is_null());
        assert!(row.get("kernel_ipip").is_none());
    }
}

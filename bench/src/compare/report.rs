//! The results as a table and as JSON.

use super::{
    metrics::{Column, Metric},
    setup::SetupKind,
};
use crate::{output, statistics::Summary};
use serde_json::{Map, Value, json};

/// All samples of one metric in one profile.
#[derive(Clone, Debug)]
pub struct MetricResult {
    /// The metric's name with the profile's suffix.
    pub name: String,
    /// The metric.
    pub metric: Metric,
    /// The samples by [`Column`], one for each round. A column without a setup has none.
    samples: [Vec<f64>; Column::ALL.len()],
}

impl MetricResult {
    /// A result without samples.
    pub fn new(metric: Metric, name: String) -> Self {
        Self {
            name,
            metric,
            samples: Default::default(),
        }
    }

    /// The columns that the metric has, with their setups.
    pub fn columns(&self) -> impl Iterator<Item = (Column, SetupKind)> + use<> {
        let setups = self.metric.setups;
        Column::ALL
            .into_iter()
            .filter_map(move |column| setups[column as usize].map(|kind| (column, kind)))
    }

    /// Adds the sample of a round.
    pub fn push(&mut self, column: Column, sample: f64) {
        self.samples[column as usize].push(sample);
    }

    /// The values of a column; `None` without samples.
    fn summary(&self, column: Column) -> Option<Summary> {
        Summary::of(self.samples[column as usize].clone())
    }

    /// How much better ours is than another column. More is better; for a cost the ratio is inverted. Each
    /// ratio is taken within one round, so a slowdown of the whole machine cancels out.
    pub fn ratio(&self, other: Column) -> Option<Summary> {
        let [ours, others] = [Column::Ours, other].map(|column| &self.samples[column as usize]);
        let is_cost = self.metric.quantity.is_cost();
        let ratio = |(ours, other): (&f64, &f64)| {
            if is_cost { other / ours } else { ours / other }
        };
        Summary::of(ours.iter().zip(others).map(ratio).collect())
    }

    fn json(&self) -> Value {
        let values = Column::ALL.map(|it| (it, it.name().to_string(), self.summary(it)));
        let ratios = Column::ALL.map(|it| (it, format!("ratio_{}", it.name()), self.ratio(it)));
        let mut row = Map::new();
        let mut spread = Map::new();
        row.insert("metric".into(), json!(self.name));
        row.insert("unit".into(), json!(self.metric.unit));
        // The ratio of ours to ours, always 1, is skipped.
        for (column, name, summary) in values.into_iter().chain(ratios.into_iter().skip(1)) {
            if let Some(summary) = summary {
                spread.insert(name.clone(), json!([summary.min, summary.max]));
            }
            if summary.is_some() || !column.is_optional() {
                row.insert(name, json!(summary.map(|summary| summary.median)));
            }
        }
        row.insert("spread".into(), spread.into());
        row.into()
    }

    /// The ratio to a column, and whether it reaches its target.
    fn verdict(&self, other: Column) -> String {
        let Some(ratio) = self.ratio(other) else {
            return String::new();
        };
        let text = ratio.text();
        match self.metric.target(other) {
            Some(target) if ratio.median >= target => format!("{text} >= {target}"),
            Some(target) => format!("{text} MISSES {target}"),
            None => text,
        }
    }
}

/// A row for each metric: median (min..max) of each setup, and the ratios of ours to the others.
pub fn table(results: &[MetricResult]) -> String {
    let has_samples = |column: &Column| results.iter().any(|it| it.summary(*column).is_some());
    let columns: Vec<Column> = Column::ALL.into_iter().filter(has_samples).collect();
    let others = || columns.iter().filter(|column| **column != Column::Ours);
    let names = columns.iter().map(|column| column.name().to_string());
    let ratios = others().map(|column| format!("ours to {}, higher is better", column.name()));
    let first = ["median (min..max)".to_string(), String::new()];
    let mut table = output::table(first.into_iter().chain(names).chain(ratios));
    for result in results {
        let mut row = vec![result.name.clone(), result.metric.unit.into()];
        row.extend(columns.iter().map(|column| {
            let summary = result.summary(*column);
            summary.map_or_else(String::new, Summary::text)
        }));
        row.extend(others().map(|column| result.verdict(*column)));
        table.add_row(row);
    }
    output::align_right(&mut table, 2);
    table.to_string()
}

/// The rows of the table as JSON.
pub fn json(results: &[MetricResult]) -> Vec<Value> {
    results.iter().map(MetricResult::json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{catalogue::METRICS, metrics::Quantity};

    fn result(quantity: Quantity, ours: &[f64], plain: &[f64]) -> MetricResult {
        let metric = Metric {
            quantity,
            targets: [Some(1.0), None],
            ..METRICS[0]
        };
        MetricResult {
            name: "m".into(),
            metric,
            samples: [ours, plain, &[], &[], &[]].map(<[f64]>::to_vec),
        }
    }

    #[test]
    fn the_ratio_of_a_cost_is_inverted_so_that_more_is_better() {
        let rate = result(Quantity::Rate(1.0), &[2.0], &[1.0]);
        let cost = result(Quantity::Median, &[2.0], &[1.0]);
        assert_eq!(rate.ratio(Column::Plain).unwrap().median, 2.0);
        assert_eq!(cost.ratio(Column::Plain).unwrap().median, 0.5);
        assert!(cost.verdict(Column::Plain).contains("MISSES 1"));
    }

    #[test]
    fn without_vxlan_json_has_null_and_without_kernel_ipip_it_has_no_key() {
        let ours = [1.0, 3.0, 2.0];
        let row = result(Quantity::Rate(1.0), &ours, &[1.0, 1.0, 1.0]).json();
        assert_eq!(row["ours"], 2.0);
        assert_eq!(row["ratio_plain"], 2.0);
        assert_eq!(row["spread"]["ratio_plain"], json!([1.0, 3.0]));
        assert!(row["vxlan"].is_null() && row["ratio_vxlan"].is_null());
        assert!(row.get("kernel_ipip").is_none());
        assert!(row.get("ratio_ours").is_none());
    }
}

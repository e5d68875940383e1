//! The samples of all plugins as a table and as JSON.

use super::{
    REFERENCES,
    contender::{CniSamples, Contender},
};
use crate::{output, statistics::quantiles};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// How many rows the table has.
const ROWS: usize = 8;

/// A row for each operation, a column for each plugin, and the ratios of ours to the others.
pub fn table(contenders: &[Contender], parallel: usize) -> String {
    let names = contenders.iter().map(|it| it.name.to_string());
    let ratios = REFERENCES.map(|name| format!("ours / {name}"));
    let first = ["ms, median (p99)".to_string()];
    let mut table = output::table(first.into_iter().chain(names).chain(ratios));
    let columns: Vec<_> = contenders
        .iter()
        .map(|it| operations(&it.samples, parallel))
        .collect();
    for (row, (name, ours)) in columns[0].iter().enumerate() {
        let mut cells = vec![name.clone()];
        cells.extend(columns.iter().map(|column| cell(&column[row].1)));
        let others = columns[1..].iter().map(|column| &column[row].1);
        cells.extend(others.map(|other| ratio(ours, other)));
        table.add_row(cells);
    }
    output::align_right(&mut table, 1);
    table.to_string()
}

/// All samples with their medians, and the machine they were measured on.
pub fn json(contenders: &[Contender], sequential: usize, parallel: usize) -> Result<Value> {
    let mut plugins = Map::new();
    for contender in contenders {
        let mut rows = Map::new();
        for (name, samples) in operations(&contender.samples, parallel) {
            if !samples.is_empty() {
                let [median, p99] = quantiles(samples.clone(), [0.5, 0.99]);
                let row = json!({"median": median, "p99": p99, "samples": samples});
                rows.insert(name, row);
            }
        }
        plugins.insert(contender.name.into(), rows.into());
    }
    Ok(json!({
        "kernel": output::kernel_release()?,
        "cpus": output::cpus(),
        "sequential": sequential,
        "parallel": parallel,
        "milliseconds": plugins,
    }))
}

/// The rows of the table: names and samples in milliseconds.
fn operations(samples: &CniSamples, parallel: usize) -> [(String, Vec<f64>); ROWS] {
    let pairs = samples.add.iter().zip(&samples.del);
    let both: Vec<Duration> = pairs.map(|(add, del)| *add + *del).collect();
    let at_once = format!("ADD + DEL, {parallel} at once");
    [
        ("start (VERSION)", &samples.start),
        ("ADD", &samples.add),
        ("DEL", &samples.del),
        ("ADD + DEL", &both),
        (&at_once, &samples.parallel),
        ("promotion to TCX", &samples.promotion),
        ("DEL after promotion", &samples.del_promoted),
        ("ADD, attach: tcx", &samples.add_tcx),
    ]
    .map(|(name, samples)| {
        let milliseconds = samples.iter().map(|it| it.as_secs_f64() * 1e3).collect();
        (name.to_string(), milliseconds)
    })
}

fn cell(samples: &[f64]) -> String {
    if samples.is_empty() {
        return "-".into();
    }
    let [median, p99] = quantiles(samples.to_vec(), [0.5, 0.99]);
    format!("{median:.1} ({p99:.1})")
}

fn ratio(ours: &[f64], other: &[f64]) -> String {
    if ours.is_empty() || other.is_empty() {
        return "-".into();
    }
    let [ours, other] = [ours, other].map(|samples| quantiles(samples.to_vec(), [0.5])[0]);
    format!("{:.2}", ours / other)
}

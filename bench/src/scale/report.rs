//! The rows of the result.

use super::Dimension;
use crate::{output, statistics::Summary};
use serde_json::{Map, Value, json};

/// Nanoseconds per packet at each size of a dimension.
pub struct GrowthRow {
    name: String,
    dimension: Dimension,
    /// Sizes with their medians.
    cells: Vec<(u32, f64)>,
}

impl GrowthRow {
    /// The medians of the samples. A size without samples gets no cell.
    pub fn new(name: String, dimension: Dimension, sizes: &[u32], samples: Vec<Vec<f64>>) -> Self {
        let medians = samples.into_iter().map(Summary::of);
        let cells = sizes.iter().copied().zip(medians);
        Self {
            name,
            dimension,
            cells: cells
                .filter_map(|(size, summary)| Some((size, summary?.median)))
                .collect(),
        }
    }

    /// Its JSON.
    pub fn json(&self) -> Value {
        let cells = self.cells.iter();
        let ns: Map<String, Value> = cells
            .map(|(size, ns)| (size.to_string(), json!(ns)))
            .collect();
        json!({
            "metric": self.name,
            "unit": "ns",
            "grows": self.dimension.name(),
            "ns": ns,
            "last_to_first": self.growth(),
        })
    }

    fn growth(&self) -> f64 {
        let ends = self.cells.first().zip(self.cells.last());
        ends.map_or(f64::NAN, |(first, last)| last.1 / first.1)
    }
}

/// The rows as a table.
pub fn table(rows: &[GrowthRow]) -> String {
    let mut table = output::table(["", "grows", "ns per packet", "growth"].map(String::from));
    for row in rows {
        let cells = row.cells.iter();
        let cells: Vec<String> = cells.map(|(size, ns)| format!("{size}: {ns:.0}")).collect();
        table.add_row([
            row.name.clone(),
            row.dimension.name().into(),
            cells.join("   "),
            format!("{:.2}", row.growth()),
        ]);
    }
    output::align_right(&mut table, 3);
    table.to_string()
}

//! The chart: how much better ours is, for each metric a bar against plain routing and one against VXLAN.

use super::{metrics::Column, report::MetricResult};
use crate::statistics::Summary;
use anyhow::{Context, Result};
use std::path::Path;
use svg::{
    Document, Node,
    node::element::{Group, Line, Rectangle, Text},
};

/// Width of the metrics' names.
const LABELS: f64 = 270.0;
/// Width of the plot.
const PLOT: f64 = 520.0;
/// Height of a metric.
const METRIC: f64 = 30.0;
/// Height of a bar.
const BAR: f64 = 11.0;
/// Height of the title and the legend.
const TOP: f64 = 64.0;
/// The ticks of the axis. The scale is logarithmic: half as good is as far from 1 as twice as good.
const TICKS: [f64; 8] = [0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0];

/// The ratios to one column.
struct Series {
    column: Column,
    name: &'static str,
    /// From the palette of Okabe and Ito, which colour-blind readers can distinguish.
    colour: &'static str,
}

const SERIES: [Series; 2] = [
    Series {
        column: Column::Plain,
        name: "against plain routing (bridge on one node)",
        colour: "#0072b2",
    },
    Series {
        column: Column::Vxlan,
        name: "against kernel VXLAN",
        colour: "#e69f00",
    },
];

/// Writes the chart to `path`; `note` is its last line.
pub fn write(path: &Path, results: &[MetricResult], note: &str) -> Result<()> {
    svg::save(path, &chart(results, note))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn chart(results: &[MetricResult], note: &str) -> Document {
    let bottom = TOP + METRIC * results.len() as f64;
    let (width, height) = (LABELS + PLOT + 60.0, bottom + 46.0);
    let background = Rectangle::new()
        .set("width", width)
        .set("height", height)
        .set("fill", "#fff");
    let title = "ipip relative to other setups; 1 is equal, higher is better";
    let mut document = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("font-family", "sans-serif")
        .set("font-size", 12)
        .add(background)
        .add(text(10.0, 20.0, title).set("font-size", 15))
        .add(legend())
        .add(axis(bottom));
    for (number, result) in results.iter().enumerate() {
        document.append(bars(result, TOP + METRIC * number as f64));
    }
    let note = text(10.0, height - 8.0, note).set("font-size", 11);
    document.add(note.set("fill", "#444"))
}

fn legend() -> Group {
    let mut legend = Group::new();
    for (number, series) in SERIES.iter().enumerate() {
        let x = 10.0 + 330.0 * number as f64;
        legend.append(bar(x, 31.0, BAR, series.colour));
        legend.append(text(x + 16.0, 41.0, series.name));
    }
    legend
}

fn axis(bottom: f64) -> Group {
    let mut axis = Group::new();
    for tick in TICKS {
        let x = position(tick);
        let (colour, width) = if tick == 1.0 {
            ("#000", 1.5)
        } else {
            ("#ccc", 1.0)
        };
        axis.append(line((x, TOP), (x, bottom), colour).set("stroke-width", width));
        axis.append(text(x, bottom + 16.0, &tick.to_string()).set("text-anchor", "middle"));
    }
    axis
}

/// The name and the bars of a metric.
fn bars(result: &MetricResult, top: f64) -> Group {
    let name = result.name.replace('_', " ");
    let label = text(LABELS - 8.0, top + 18.0, &name).set("text-anchor", "end");
    let mut bars = Group::new().add(label);
    for (number, series) in SERIES.iter().enumerate() {
        if let Some(ratio) = result.ratio(series.column) {
            let y = top + 3.0 + BAR * number as f64;
            bars.append(ratio_bar(ratio, y, series.colour));
        }
    }
    bars
}

/// A bar from 1 to the median, a line from the least to the greatest ratio, and the median as text.
fn ratio_bar(ratio: Summary, y: f64, colour: &str) -> Group {
    let (equal, median) = (position(1.0), position(ratio.median));
    let (min, max) = (position(ratio.min), position(ratio.max));
    let middle = y + BAR / 2.0;
    let value = format!("{:.2}", ratio.median);
    let value = text(max.max(equal) + 4.0, y + 9.0, &value);
    Group::new()
        .add(bar(equal.min(median), y, (median - equal).abs(), colour))
        .add(line((min, middle), (max, middle), "#444"))
        .add(value.set("font-size", 10))
}

fn bar(x: f64, y: f64, width: f64, colour: &str) -> Rectangle {
    Rectangle::new()
        .set("x", rounded(x))
        .set("y", rounded(y))
        .set("width", rounded(width))
        .set("height", BAR)
        .set("fill", colour)
}

fn line(from: (f64, f64), to: (f64, f64), colour: &str) -> Line {
    Line::new()
        .set("x1", rounded(from.0))
        .set("y1", rounded(from.1))
        .set("x2", rounded(to.0))
        .set("y2", rounded(to.1))
        .set("stroke", colour)
}

fn text(x: f64, y: f64, content: &str) -> Text {
    Text::new(content).set("x", rounded(x)).set("y", rounded(y))
}

/// Rounds to a tenth of a pixel, which keeps the file small.
fn rounded(pixels: f64) -> f64 {
    (pixels * 10.0).round() / 10.0
}

/// The horizontal position of a ratio; ratios beyond the axis are drawn at its end.
fn position(ratio: f64) -> f64 {
    let (least, most) = (TICKS[0], TICKS[TICKS.len() - 1]);
    let share = (ratio.clamp(least, most) / least).ln() / (most / least).ln();
    LABELS + PLOT * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_as_good_is_as_far_from_equal_as_twice_as_good() {
        let (half, equal, twice) = (position(0.5), position(1.0), position(2.0));
        assert!((equal - half - (twice - equal)).abs() < 1e-9);
        assert_eq!(position(0.1), half);
    }
}

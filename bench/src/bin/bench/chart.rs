//! The chart: how much better ours is, a bar for plain routing and one for VXLAN each row.

use crate::report::Line;
use anyhow::{Context, Result};
use std::{fmt::Write, fs, path::Path};

const LABELS: f64 = 270.0;
const PLOT: f64 = 520.0;
const ROW: f64 = 30.0;
const BAR: f64 = 11.0;
const TOP: f64 = 64.0;
/// What the axis shows, on a logarithmic scale: half as good lies as far from 1 as twice as good.
const TICKS: [f64; 8] = [0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0];
/// Column of the table, name and colour (of a palette for the colour-blind).
const SERIES: [(usize, &str, &str); 2] = [
    (1, "against plain routing (bridge on one node)", "#0072b2"),
    (2, "against kernel VXLAN", "#e69f00"),
];

/// Writes the chart to `path`; `note` says what was measured where.
pub fn write(path: &Path, lines: &[Line], note: &str) -> Result<()> {
    fs::write(path, svg(lines, note)).with_context(|| format!("cannot write {}", path.display()))
}

fn svg(lines: &[Line], note: &str) -> String {
    let bottom = TOP + ROW * lines.len() as f64;
    let (width, height) = (LABELS + PLOT + 60.0, bottom + 46.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\">How much better ipip is; 1 is equal, more is better</text>\n"
    );
    // Writing to a String cannot fail.
    for (index, (_, name, colour)) in SERIES.iter().enumerate() {
        let x = 10.0 + 330.0 * index as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"31\" width=\"11\" height=\"11\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"41\">{name}</text>",
            x + 16.0
        );
    }
    for tick in TICKS {
        let x = place(tick);
        let (colour, wide) = if tick == 1.0 {
            ("#000", 1.5)
        } else {
            ("#ccc", 1.0)
        };
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{colour}\" \
             stroke-width=\"{wide}\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            bottom + 16.0
        );
    }
    for (number, line) in lines.iter().enumerate() {
        let top = TOP + ROW * number as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            top + 18.0,
            escaped(&line.metric.replace('_', " "))
        );
        for (index, (column, _, colour)) in SERIES.iter().enumerate() {
            let Some(ratio) = line.ratio(*column) else {
                continue;
            };
            let y = top + 3.0 + BAR * index as f64;
            let (from, to) = (place(1.0), place(ratio.median));
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
                 <line x1=\"{:.1}\" y1=\"{mid:.1}\" x2=\"{:.1}\" y2=\"{mid:.1}\" stroke=\"#444\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{:.2}</text>",
                from.min(to),
                (to - from).abs(),
                place(ratio.least),
                place(ratio.most),
                place(ratio.most).max(from) + 4.0,
                y + 9.0,
                ratio.median,
                mid = y + BAR / 2.0,
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"10\" y=\"{}\" font-size=\"11\" fill=\"#444\">{}</text>\n</svg>",
        height - 8.0,
        escaped(note)
    );
    svg
}

/// Where a ratio lies; what is beyond the axis lies at its end.
fn place(ratio: f64) -> f64 {
    let (least, most) = (TICKS[0], TICKS[TICKS.len() - 1]);
    let share = (ratio.clamp(least, most) / least).ln() / (most / least).ln();
    LABELS + PLOT * share
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_as_good_lies_as_far_from_equal_as_twice_as_good() {
        let (half, equal, twice) = (place(0.5), place(1.0), place(2.0));
        assert!((equal - half - (twice - equal)).abs() < 1e-9);
        assert_eq!(place(0.1), half);
    }
}

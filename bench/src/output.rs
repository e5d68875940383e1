//! Tables and files that all benchmarks write.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use std::{fs, path::Path, thread};

/// A table with this header.
pub fn table(header: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header.into_iter().collect::<Vec<_>>());
    table
}

/// A table of numbers: the name of each, what was measured, and its target.
pub fn targets<'a>(rows: impl IntoIterator<Item = (String, String, &'a str)>) -> String {
    let mut table = table(["", "measured", "at most"].map(String::from));
    for (name, measured, target) in rows {
        table.add_row([name, measured, target.into()]);
    }
    align_right(&mut table, 1);
    table.to_string()
}

/// Aligns all columns from `first` on to the right.
pub fn align_right(table: &mut Table, first: usize) {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Writes `value` as indented JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    fs::write(path, serde_json::to_string_pretty(value)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The release of the running kernel, as `uname -r` prints it.
pub fn kernel_release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().into())
}

/// How many CPUs this process may use; 0 if the system does not say.
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(0, usize::from)
}

//! Tables and JSON, both from the same rows.

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// The format of the output.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// A table, for people
    Table,
    /// JSON, for programs; field names are stable
    Json,
}

/// `rows` as JSON or as a table whose columns are the fields.
pub fn render<R: Serialize>(rows: &[R], format: Format) -> Result<String> {
    match format {
        Format::Json => json(&rows),
        Format::Table => table(rows),
    }
}

/// Any value as JSON, with a final line break.
pub fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Rows as a table: numbers are right-aligned, and absent values are shown as `-`.
pub fn table<R: Serialize>(rows: &[R]) -> Result<String> {
    let values = rows
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<Vec<_>, _>>()?;
    let Some(Value::Object(first)) = values.first() else {
        return Ok("(none)\n".into());
    };
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(first.keys().map(|field| heading(field)));
    for value in &values {
        let fields = value.as_object().into_iter().flat_map(|row| row.values());
        table.add_row(fields.map(cell));
    }
    for (column, field) in table.column_iter_mut().zip(first.keys()) {
        column.set_padding((0, 2));
        if values.iter().any(|row| row[field].is_number()) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    Ok(trimmed(&table.to_string()))
}

/// `txPackets` -> `TX PACKETS`.
fn heading(field: &str) -> String {
    let mut heading = String::new();
    for letter in field.chars() {
        if letter.is_ascii_uppercase() {
            heading.push(' ');
        }
        heading.push(letter.to_ascii_uppercase());
    }
    heading
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(cell).collect();
            let has_words = items.iter().any(|it| it.contains(' '));
            items.join(if has_words { "; " } else { " " })
        }
        other => other.to_string(),
    }
}

fn trimmed(table: &str) -> String {
    table
        .lines()
        .flat_map(|line| [line.trim_end(), "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Row {
        node: Option<&'static str>,
        tx_packets: u64,
        roles: Vec<&'static str>,
        gone: bool,
    }

    fn rows() -> [Row; 2] {
        let row = |node, tx_packets, roles, gone| Row {
            node,
            tx_packets,
            roles,
            gone,
        };
        [
            row(Some("a1"), 7, vec!["own", "underlay"], false),
            row(None, 12_345, vec![], true),
        ]
    }

    #[test]
    fn a_table_has_the_fields_as_columns_in_their_order() {
        let expected = "\
NODE  TX PACKETS  ROLES         GONE
a1             7  own underlay  no
-          12345  -             yes
";
        assert_eq!(table(&rows()).unwrap(), expected);
    }

    #[test]
    fn items_of_several_words_are_kept_apart() {
        assert_eq!(cell(&serde_json::json!(["a b", "c"])), "a b; c");
    }

    #[test]
    fn json_is_an_array_of_objects_with_camel_case_names() {
        let text = render(&rows()[1..], Format::Json).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!(
            [{ "node": null, "txPackets": 12_345, "roles": [], "gone": true }]
        );
        assert_eq!(value, expected);
        assert!(text.ends_with("]\n"));
    }

    #[test]
    fn without_rows_a_table_says_none_and_json_is_an_empty_array() {
        assert_eq!(render::<Row>(&[], Format::Table).unwrap(), "(none)\n");
        assert_eq!(render::<Row>(&[], Format::Json).unwrap(), "[]\n");
    }
}

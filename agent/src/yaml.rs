//! Excerpts of YAML files for error messages.

/// Line `number` (from 1) of `text`, trimmed and cut to 120 characters.
pub fn line(text: &str, number: u64) -> String {
    let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
    let line = text.lines().nth(index).unwrap_or_default().trim();
    line.chars().take(120).collect()
}

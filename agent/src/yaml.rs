//! Excerpts of YAML files for error messages.

/// Line `number` (from 1) of `text`, trimmed and cut to 120 characters.
pub fn line(text: &str, number: u64) -> String {
    let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
    // In YAML, a carriage return alone ends a line, too.
    let text = text.replace("\r\n", "\n");
    let mut lines = text.split(['\n', '\r']);
    let line = lines.nth(index).unwrap_or_default().trim();
    line.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_as_yaml_says() {
        for text in ["a\n b\nc", "a\r\n b\r\nc", "a\r b\rc"] {
            assert_eq!(line(text, 2), "b", "{text:?}");
        }
        assert_eq!(line("a", 2), "");
    }
}

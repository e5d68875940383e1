//! Names of the Kubernetes API.

/// Whether `text` can be the name of a node.
pub fn is_node_name(text: &str) -> bool {
    is_dns_subdomain(text)
}

/// Whether `text` is a DNS subdomain (RFC 1123) in lower case: labels of at most 63 letters, digits
/// and dashes, with dots between, at most 253 bytes together.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_follow_rfc_1123() {
        for good in ["a", "a1", "1a", "a-b.c-d", &"a".repeat(63)] {
            assert!(is_node_name(good), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a..b",
            ".a",
            "A",
            "a_b",
            &"a".repeat(64),
            &["abcd."; 51].concat(),
        ] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }
}

//! `CNI_ARGS`: pairs of key and value that a user or a runtime passes to every plugin.

use crate::error::Error;

/// The keys that this plugin or the IPAM plugin uses. The IPAM plugin reads its keys itself.
const KNOWN: [&str; 4] = ["IgnoreUnknown", "IP", "GATEWAY", "MAC"];

/// The arguments that this plugin uses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Args {
    /// The MAC that the pod is to have, not yet validated.
    pub mac: Option<String>,
}

impl Args {
    /// Reads pairs like `IgnoreUnknown=1;MAC=02:00:00:00:00:01`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut pairs = Vec::new();
        let mut wrong = Vec::new();
        for part in text.split(';').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(pair) => pairs.push(pair),
                None => wrong.push(format!("CNI_ARGS has {part:?}: use KEY=VALUE;KEY=VALUE")),
            }
        }
        let of = |key: &str| {
            let mut found = pairs.iter().filter(|(known, _)| *known == key);
            found.next_back().map(|(_, value)| *value)
        };
        let tolerant = match of("IgnoreUnknown").map(str::to_lowercase).as_deref() {
            None | Some("0" | "f" | "false") => false,
            Some("1" | "t" | "true") => true,
            Some(other) => {
                wrong.push(format!(
                    "CNI_ARGS has IgnoreUnknown={other}: use true or false"
                ));
                true
            }
        };
        let unknown: Vec<_> = pairs
            .iter()
            .map(|(key, _)| *key)
            .filter(|key| !tolerant && !KNOWN.contains(key))
            .collect();
        if !unknown.is_empty() {
            wrong.push(format!(
                "CNI_ARGS has unknown keys {}: leave them out, or add IgnoreUnknown=1",
                unknown.join(", ")
            ));
        }
        if wrong.is_empty() {
            let mac = of("MAC").map(Into::into);
            Ok(Self { mac })
        } else {
            Err(Error::Environment(wrong))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_unless_they_are_to_be_ignored() {
        let kubelet = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;MAC=02:00:00:00:00:01";
        let error = Args::parse(kubelet).unwrap_err().to_string();
        assert!(error.contains("K8S_POD_NAMESPACE, K8S_POD_NAME"), "{error}");
        for tolerant in ["1", "true", "T"] {
            let args = Args::parse(&format!("IgnoreUnknown={tolerant};{kubelet}")).unwrap();
            assert_eq!(args.mac.as_deref(), Some("02:00:00:00:00:01"));
        }
        assert_eq!(Args::parse("").unwrap(), Args::default());
        assert_eq!(Args::parse("IP=10.42.1.9").unwrap(), Args::default());
    }

    #[test]
    fn a_part_that_is_no_pair_and_a_value_that_is_no_boolean_are_named() {
        for (text, named) in [("MAC", "\"MAC\""), ("IgnoreUnknown=maybe", "maybe")] {
            let error = Args::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}

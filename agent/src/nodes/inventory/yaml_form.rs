//! The inventory as a YAML text.

use super::{
    Inventory, InventoryError,
    admission::admit,
    claim::{Claim, ParsedNode, Text},
};
use crate::yaml;
use serde::Deserialize;
use serde_saphyr::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    #[serde(rename = "internalIPs", default)]
    internal_ips: Vec<Spanned<String>>,
    #[serde(rename = "podCIDRs", default)]
    pod_cidrs: Vec<Spanned<String>>,
    #[serde(rename = "publicEndpoint")]
    public_endpoint: Option<Spanned<String>>,
    realm: Option<Spanned<String>>,
    encapsulation: Option<Spanned<String>>,
    #[serde(rename = "probeKey")]
    probe_key: Option<Spanned<String>>,
}

/// Parses the inventory `text` for the node `own_name`. A field with an invalid value keeps the value that it has in
/// `last`. Of contradicting values the first one in the file is used.
///
/// # Errors
/// It is not YAML of the expected form, or has no entry for `own_name`. The inventory is then refused as a whole.
pub fn parse(
    text: &str,
    own_name: &str,
    last: Option<&Inventory>,
) -> Result<Inventory, InventoryError> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        InventoryError::Form {
            line,
            text: yaml::line(text, line),
            message: error.without_snippet().to_string(),
        }
    })?;
    let claims: Vec<ParsedNode> = file
        .nodes
        .iter()
        .map(|entry| {
            let mut claim = Claim::from(entry).parse();
            if let Some(before) = last.and_then(|last| last.node(&claim.node.name)) {
                claim.keep_valid(before);
            }
            claim
        })
        .collect();
    let inventory = admit(&claims);
    if inventory.node(own_name).is_none() {
        return Err(InventoryError::OwnNodeMissing {
            name: own_name.to_owned(),
        });
    }
    Ok(inventory)
}

impl<'a> From<&'a Entry> for Claim<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            name: Text::from(&entry.name),
            internal_ips: entry.internal_ips.iter().map(Text::from).collect(),
            pod_cidrs: entry.pod_cidrs.iter().map(Text::from).collect(),
            public_endpoint: entry.public_endpoint.as_ref().map(Text::from),
            realm: entry.realm.as_ref().map(Text::from),
            encapsulation: entry.encapsulation.as_ref().map(Text::from),
            probe_key: entry.probe_key.as_ref().map(Text::from),
        }
    }
}

impl<'a> From<&'a Spanned<String>> for Text<'a> {
    fn from(text: &'a Spanned<String>) -> Self {
        Self {
            text: &text.value,
            line: Some(text.referenced.line()),
        }
    }
}

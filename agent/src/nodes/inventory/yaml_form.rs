//! The inventory as a YAML text.

use super::{
    Inventory, InventoryError,
    claim::{Claim, ParsedNode, Text},
    consistency::{check_names, check_sizes, check_together},
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
}

/// Parses the inventory `text` for the node `own_name`.
///
/// # Errors
/// Lists every value that cannot be used. The inventory is refused as a whole.
pub fn parse(text: &str, own_name: &str) -> Result<Inventory, InventoryError> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        InventoryError::Form {
            line,
            text: yaml::line(text, line),
            message: error.without_snippet().to_string(),
        }
    })?;
    let mut invalid = Vec::new();
    let parsed: Vec<ParsedNode> = file
        .nodes
        .iter()
        .map(|entry| Claim::from(entry).parse(&mut invalid))
        .collect();
    check_names(&parsed, &mut invalid);
    check_together(&parsed, &mut invalid);
    if !invalid.is_empty() {
        invalid.sort_by_key(|field| field.line);
        return Err(InventoryError::Values(invalid));
    }
    let inventory = Inventory {
        nodes: parsed.into_iter().map(|parsed| parsed.node).collect(),
    };
    check_sizes(&inventory)?;
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

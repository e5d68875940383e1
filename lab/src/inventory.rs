//! The agents' inventory file, as a lab writes it.

use anyhow::{Context, Result};
use ipnetwork::Ipv4Network;
use serde::Serialize;
use std::{fs, net::Ipv4Addr, path::Path};

/// A node, as a line of the inventory.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InventoryNode {
    /// Name of the node.
    pub name: String,
    /// Its addresses in its realm.
    #[serde(rename = "internalIPs")]
    pub internal_ips: Vec<Ipv4Addr>,
    /// Its pods' prefixes.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<Ipv4Network>,
    /// How other realms dial it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_endpoint: Option<Ipv4Addr>,
    /// Its realm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
    /// Its own encapsulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<String>,
}

#[derive(Serialize)]
struct Inventory<'a> {
    nodes: &'a [InventoryNode],
}

/// Writes the inventory in one step, as an editor or a ConfigMap does: a reader sees the old file
/// or the new one.
pub fn write(path: &Path, nodes: &[InventoryNode]) -> Result<()> {
    write_text(path, &serde_saphyr::to_string(&Inventory { nodes })?)
}

/// Writes any text in its place.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, text)
        .and_then(|()| fs::rename(&next, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

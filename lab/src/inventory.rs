//! The inventory file that a lab writes for its agents.

use anyhow::{Context, Result};
use ipnetwork::Ipv4Network;
use serde::Serialize;
use std::{fs, net::Ipv4Addr, path::Path};

/// A node in the inventory.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InventoryNode {
    /// Name of the node.
    pub name: String,
    /// Addresses in its realm.
    #[serde(rename = "internalIPs")]
    pub internal_ips: Vec<Ipv4Addr>,
    /// Pod CIDRs.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<Ipv4Network>,
    /// Address at which nodes of other realms reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_endpoint: Option<Ipv4Addr>,
    /// Realm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
    /// Encapsulation, if it differs from that of the agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<String>,
    /// Public key of its probes, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_key: Option<String>,
}

#[derive(Serialize)]
struct Inventory<'a> {
    nodes: &'a [InventoryNode],
}

/// Replaces the inventory in one step, as an editor or a ConfigMap does: a reader sees either the old file or
/// the new one.
pub fn write(path: &Path, nodes: &[InventoryNode]) -> Result<()> {
    write_text(path, &serde_saphyr::to_string(&Inventory { nodes })?)
}

/// Replaces the inventory by any text, in one step.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, text)
        .and_then(|()| fs::rename(&next, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

//! The inventory: the nodes with their fields, and the checks that they do not contradict each other.
//!
//! A file has one writer, so it is refused as a whole, with every mistake ([`parse`]). In Kubernetes each
//! node has its own object, and one bad node must not stop the others, so [`admission`] decides for each node.

pub mod admission;

mod claim;
mod consistency;
mod error;
mod yaml_form;

pub use claim::{Claim, Text, parse_address, parse_network};
pub use error::{Fault, InvalidField, InventoryError};
pub use yaml_form::parse;

use ipip_abi::Encapsulation;
use ipnetwork::Ipv4Network;
use std::{collections::BTreeSet, net::Ipv4Addr};

/// The nodes, in the order of the source. A value of this type is always valid.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inventory {
    /// The nodes; their names are unique.
    pub nodes: Vec<Node>,
}

/// A node, as its source describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// The name.
    pub name: String,
    /// The private addresses. The first one is the underlay address inside the realm.
    pub internal_ips: Vec<Ipv4Addr>,
    /// The ranges of the node's pods.
    pub pod_cidrs: Vec<Ipv4Network>,
    /// The address at which other realms reach the node.
    pub public_endpoint: Option<Ipv4Addr>,
    /// The realm; nodes without one share the unnamed realm.
    pub realm: String,
    /// The encapsulation of paths from and to the node, if it differs from the configured default.
    pub encapsulation: Option<Encapsulation>,
}

impl Inventory {
    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// InternalIPs that more than one node has. The nodes are in different realms, so this is no
    /// mistake; other realms cannot address a packet to any of these nodes.
    pub fn shared_internal_ips(&self) -> BTreeSet<Ipv4Addr> {
        let mut seen = BTreeSet::new();
        let addresses = self.nodes.iter().flat_map(|node| &node.internal_ips);
        addresses
            .filter(|address| !seen.insert(**address))
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests;

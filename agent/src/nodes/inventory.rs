//! The inventory: the nodes with their fields, which never contradict each other.
//!
//! One bad value must not stop the others. [`admission`] therefore decides about each value of each node, and what it
//! leaves out is part of the inventory.

pub mod admission;

mod claim;
mod error;
mod fence;
mod yaml_form;

pub use claim::{Claim, ParsedNode, Text, Value, parse_address, parse_network};
pub use error::{Fault, Field, InvalidField, InventoryError};
pub use fence::{Backing, Fence, Rules};
pub use yaml_form::parse;

use crate::probe_key::PublicKey;
use ipip_abi::Encapsulation;
use ipnetwork::Ipv4Network;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

/// The nodes. A value of this type is always valid.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inventory {
    /// The nodes, the oldest first; their names are unique.
    pub nodes: Vec<Node>,
    /// The values that no node uses, by the name of the node that has them: invalid ones, and those that contradict
    /// older claims.
    pub left_out: BTreeMap<String, Vec<InvalidField>>,
    /// The InternalIPs that nodes of several realms have, with the node whose claim is the oldest.
    pub shared_internal_ips: BTreeMap<Ipv4Addr, String>,
    /// The addresses of the API server from which the nodes come, if they do. They are never routed into the tunnel,
    /// because the agent must reach the API server without it.
    pub api_server: BTreeSet<Ipv4Addr>,
    /// The nodes that are used although the source no longer has them, because most of them disappeared together.
    pub held: BTreeSet<String>,
    /// InternalIPs of this node that a machine in the network of other nodes has, too, with the names of those nodes.
    pub lan_conflicts: BTreeMap<Ipv4Addr, BTreeSet<String>>,
    /// Whether the source states the public endpoint of this node, or that it has none. Otherwise what peers see may become it.
    pub endpoint_is_stated: bool,
    /// Whether the nodes come from the Kubernetes API, where each agent publishes its own. Nobody publishes an inventory file.
    pub is_published: bool,
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
    /// Whether the realm is not the stated one, but this node's, because [probes have shown](super::seen) a private path.
    pub is_found_near: bool,
    /// The key from which other nodes derive the secrets of probes.
    pub probe_key: Option<PublicKey>,
}

impl Node {
    /// The address from which the node sends probes, and at which it takes those of others: the network address of its first
    /// pod CIDR that has one. No IPAM plugin gives it to a pod.
    pub fn probe_address(&self) -> Option<Ipv4Addr> {
        // A /31 and a /32 have no network address.
        let network = self.pod_cidrs.iter().find(|it| it.prefix() <= 30)?;
        Some(network.network())
    }
}

impl Inventory {
    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The node that each InternalIP leads to from `realm`. Nodes of several realms may have the same one: then it
    /// leads to the node of the own realm, otherwise to the one with the oldest claim.
    pub fn internal_ip_owners<'a>(&'a self, realm: &str) -> HashMap<Ipv4Addr, &'a str> {
        let (own, others): (Vec<&Node>, Vec<&Node>) =
            self.nodes.iter().partition(|node| node.realm == realm);
        let addresses = |node: &'a Node| node.internal_ips.iter().map(|it| (it, &*node.name));
        let own = own.into_iter().flat_map(addresses);
        let shared = self.shared_internal_ips.iter();
        let shared = shared.map(|(ip, node)| (ip, &**node));
        let others = others.into_iter().flat_map(addresses);
        let mut owners = HashMap::new();
        for (ip, node) in own.chain(shared).chain(others) {
            owners.entry(*ip).or_insert(node);
        }
        owners
    }

    /// The fields of the node `name` of which a value is left out.
    pub fn fields_left_out(&self, name: &str) -> impl Iterator<Item = Field> {
        let fields = self.left_out.get(name).into_iter().flatten();
        fields.map(|it| it.field)
    }
}

#[cfg(test)]
mod tests;

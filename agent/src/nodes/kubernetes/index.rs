//! The IpipNodes, IpipClaims and IpipPodBlocks of the cluster, reduced to the fields that the agent needs.

use super::{
    backing::Claimed,
    claim::{Dated, IpipClaim},
    crd::{IpipNode, IpipNodeSpec},
    pod_block::IpipPodBlock,
};
use crate::nodes::inventory::{
    Claim, Inventory, ParsedNode, Text, Value,
    admission::{Entry, Reservation, admit},
    parse_network,
};
use ipnetwork::Ipv4Network;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

/// Sort key: creation time in seconds since 1970, then the name. The node with the lowest key is the oldest.
type CreationKey = (i64, String);

/// The nodes that the objects describe. Other parts of the objects are not kept.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Index {
    nodes: BTreeMap<CreationKey, ParsedNode>,
    /// Creation time in seconds since 1970, by name.
    created: HashMap<String, i64>,
    /// The addresses that each node reports as those of a machine in its network, too; without nodes that report none.
    lan_conflicts: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// The claims, by name.
    claims: BTreeMap<String, Dated>,
    /// The blocks, by name.
    blocks: BTreeMap<String, Block>,
}

/// A block of the pool, reduced.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Block {
    /// Creation time in seconds since 1970.
    created: i64,
    network: Ipv4Network,
    node: String,
}

impl Index {
    /// Adds or updates an object. Returns whether what it says of its node or reports to other nodes has changed. An object
    /// that is being deleted does not count: a finalizer must not keep a removed node.
    pub fn apply(&mut self, object: &IpipNode) -> bool {
        let Some(name) = object.metadata.name.clone() else {
            return false;
        };
        if object.metadata.deletion_timestamp.is_some() {
            return self.delete(&name);
        }
        let created = created(&object.metadata);
        let node = parse(&name, &object.spec);
        if let Some(before) = self.created.insert(name.clone(), created)
            && before != created
        {
            // A new object of the same name; the deletion of the old one was not observed.
            self.nodes.remove(&(before, name.clone()));
        }
        let status = object.status.iter();
        let reported = status.flat_map(|status| &status.lan_conflicts);
        let reported: BTreeSet<Ipv4Addr> = reported.filter_map(|it| it.parse().ok()).collect();
        let before = if reported.is_empty() {
            self.lan_conflicts.remove(&name).unwrap_or_default()
        } else {
            let before = self.lan_conflicts.insert(name.clone(), reported.clone());
            before.unwrap_or_default()
        };
        let changed = before != reported || self.nodes.get(&(created, name.clone())) != Some(&node);
        self.nodes.insert((created, name), node);
        changed
    }

    /// Removes the object called `name`. Returns whether it was present.
    pub fn delete(&mut self, name: &str) -> bool {
        self.lan_conflicts.remove(name);
        let created = self.created.remove(name);
        created.is_some_and(|created| self.nodes.remove(&(created, name.to_owned())).is_some())
    }

    /// Adds or updates a claim. Returns whether it has changed.
    pub fn apply_claim(&mut self, claim: &IpipClaim) -> bool {
        let Some(name) = claim.metadata.name.clone() else {
            return false;
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return self.delete_claim(&name);
        }
        let dated = Dated::of(claim);
        self.claims.insert(name, dated.clone()) != Some(dated)
    }

    /// Removes the claim called `name`. Returns whether it was present.
    pub fn delete_claim(&mut self, name: &str) -> bool {
        self.claims.remove(name).is_some()
    }

    /// Replaces all claims by those of `other`. Returns whether that changes something.
    pub fn replace_claims(&mut self, other: Self) -> bool {
        let changed = self.claims != other.claims;
        self.claims = other.claims;
        changed
    }

    /// Adds or updates a block. Returns whether it has changed. The API server validates the form of the range;
    /// a block whose range is never routed has no effect.
    pub fn apply_block(&mut self, block: &IpipPodBlock) -> bool {
        let (Some(name), Ok(network)) = (&block.metadata.name, parse_network(&block.spec.cidr))
        else {
            return false;
        };
        if block.metadata.deletion_timestamp.is_some() {
            return self.delete_block(name);
        }
        let entry = Block {
            created: created(&block.metadata),
            network,
            node: block.spec.node.clone(),
        };
        self.blocks.insert(name.clone(), entry.clone()) != Some(entry)
    }

    /// Removes the block called `name`. Returns whether it was present.
    pub fn delete_block(&mut self, name: &str) -> bool {
        self.blocks.remove(name).is_some()
    }

    /// Replaces all blocks by those of `other`. Returns whether that changes something.
    pub fn replace_blocks(&mut self, other: Self) -> bool {
        let changed = self.blocks != other.blocks;
        self.blocks = other.blocks;
        changed
    }

    /// The names of the nodes.
    pub fn names(&self) -> Vec<String> {
        self.created.keys().cloned().collect()
    }

    /// The names of the nodes that `other` lacks.
    pub fn missing_nodes(&self, other: &Self) -> BTreeSet<String> {
        let missing = self.created.keys();
        let missing = missing.filter(|name| !other.created.contains_key(*name));
        missing.cloned().collect()
    }

    /// Replaces the nodes by those of `other`; nodes that `other` lacks stay. Returns whether that changes something.
    pub fn apply_nodes(&mut self, mut other: Self) -> bool {
        for name in self.missing_nodes(&other) {
            let created = self.created[&name];
            let key = (created, name.clone());
            other.nodes.extend(self.nodes.remove_entry(&key));
            other
                .lan_conflicts
                .extend(self.lan_conflicts.remove_entry(&name));
            other.created.insert(name, created);
        }
        let changed = self.nodes != other.nodes || self.lan_conflicts != other.lan_conflicts;
        (self.nodes, self.created) = (other.nodes, other.created);
        self.lan_conflicts = other.lan_conflicts;
        changed
    }

    /// What each node claims, with its blocks.
    pub fn claims(&self) -> Vec<(&ParsedNode, Vec<Ipv4Network>)> {
        let mut blocks: HashMap<&str, Vec<Ipv4Network>> = HashMap::new();
        for it in self.blocks.values() {
            blocks.entry(&it.node).or_default().push(it.network);
        }
        let nodes = self.nodes.values();
        nodes
            .map(|it| (it, blocks.remove(&*it.node.name).unwrap_or_default()))
            .collect()
    }

    /// The inventory of what the objects say; the oldest claims win. `own` is the name of this node. `check` leaves of a
    /// claim what its node may have, if that is known, and only blocks that `allow` accepts count.
    pub fn inventory<'a>(
        &'a self,
        own: &str,
        check: impl Fn(Claimed<'a, '_>) -> Option<Cow<'a, ParsedNode>>,
        allow: impl Fn(&Ipv4Network) -> bool,
    ) -> Inventory {
        let claims = self.claims();
        let claims = claims
            .iter()
            .filter_map(|(node, blocks)| check((node, blocks)));
        let claims: Vec<Cow<'_, ParsedNode>> = claims.collect();
        let nodes = claims.iter().map(|it| Entry::Node(it));
        let dated = self
            .dated(&claims, allow)
            .into_iter()
            .map(Entry::Reservation);
        // A value without a claim can be of any time, so it comes last.
        let mut inventory = admit(dated.chain(nodes));
        let own_ips = inventory.node(own).map(|node| node.internal_ips.clone());
        for (node, addresses) in &self.lan_conflicts {
            for address in own_ips
                .iter()
                .flatten()
                .filter(|it| addresses.contains(*it))
            {
                let nodes = inventory.lan_conflicts.entry(*address).or_default();
                nodes.insert(node.clone());
            }
        }
        inventory
    }

    /// The values that a block or a claim dates, the oldest first. Claims count only for what their node says now.
    fn dated<'a>(
        &'a self,
        nodes: &'a [Cow<'a, ParsedNode>],
        allow: impl Fn(&Ipv4Network) -> bool,
    ) -> Vec<Reservation<'a>> {
        let mut claims: HashMap<&str, Vec<&Dated>> = HashMap::new();
        for claim in self.claims.values() {
            claims.entry(claim.node()).or_default().push(claim);
        }
        // A node creates its block before its claim; the times can be of the same second.
        let blocks = self.blocks.values().filter(|it| allow(&it.network));
        let blocks = blocks.map(|block| {
            let reservation = Reservation {
                value: Value::PodCidr(block.network),
                node: &block.node,
            };
            ((block.created, ""), reservation)
        });
        let mut dated: Vec<((i64, &str), Reservation<'_>)> = blocks.collect();
        for node in nodes.iter().map(|it| &it.node) {
            let own = claims.get(&*node.name).map_or(&[][..], |it| it);
            for value in node.values() {
                let ages = own.iter().filter(|it| it.dates(value)).map(|it| &it.age);
                if let Some((created, uid)) = ages.min() {
                    let reservation = Reservation {
                        value,
                        node: &node.name,
                    };
                    dated.push(((*created, uid), reservation));
                }
            }
        }
        dated.sort_by_key(|(age, _)| *age);
        dated.into_iter().map(|(_, it)| it).collect()
    }
}

/// Creation time in seconds since 1970. An object without one is the youngest.
fn created(metadata: &ObjectMeta) -> i64 {
    let timestamp = metadata.creation_timestamp.as_ref();
    timestamp.map_or(i64::MAX, |time| time.0.as_second())
}

/// The node that an object or a claim describes. The API server validates the form only; the schema has no rule against every range
/// that is never routed.
pub(super) fn parse(name: &str, spec: &IpipNodeSpec) -> ParsedNode {
    Claim {
        name: Text::from(name),
        internal_ips: spec.internal_ips.iter().map(Text::from).collect(),
        pod_cidrs: spec.pod_cidrs.iter().map(Text::from).collect(),
        public_endpoint: spec.public_endpoint.as_ref().map(Text::from),
        realm: spec.realm.as_ref().map(Text::from),
        encapsulation: spec.encapsulation.as_ref().map(Text::from),
        probe_key: spec.probe_key.as_ref().map(Text::from),
    }
    .parse()
}

#[cfg(test)]
mod tests;

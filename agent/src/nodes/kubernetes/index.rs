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
    }
    .parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::kubernetes::crd::IpipNodeStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    fn object(name: &str, created: &str, ip: &str, cidr: &str) -> IpipNode {
        serde_json::from_value(json!({
            "apiVersion": "ipip.dev/v1alpha1",
            "kind": "IpipNode",
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"internalIPs": [ip], "podCIDRs": [cidr]},
        }))
        .unwrap()
    }

    /// The inventory if everything that is claimed is allowed.
    fn inventory(index: &Index, own: &str) -> Inventory {
        index.inventory(own, |(claim, _)| Some(Cow::Borrowed(claim)), |_| true)
    }

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NEW: &str = "2026-01-02T00:00:00Z";

    /// The nodes that have an InternalIP.
    fn names(index: &Index) -> Vec<String> {
        let nodes = inventory(index, "a").nodes.into_iter();
        let nodes = nodes.filter(|node| !node.internal_ips.is_empty());
        nodes.map(|node| node.name).collect()
    }

    #[test]
    fn of_values_without_a_claim_that_of_the_older_object_wins_and_its_deletion_admits_the_younger()
    {
        let mut index = Index::default();
        index.apply(&object("a", NEW, "10.0.0.1", "10.42.1.0/24"));
        index.apply(&object("z", OLD, "10.0.0.1", "10.42.2.0/24"));
        assert_eq!(names(&index), ["z"]);
        assert!(inventory(&index, "a").left_out.contains_key("a"));
        assert!(index.delete("z"));
        assert_eq!(names(&index), ["a"]);
    }

    /// A claim of `values`, fields of an IpipClaim in JSON.
    fn claim(name: &str, created: &str, uid: &str, values: serde_json::Value) -> IpipClaim {
        let mut spec = values;
        spec["node"] = name.split('.').next().unwrap().into();
        serde_json::from_value(json!({
            "apiVersion": "ipip.dev/v1alpha1",
            "kind": "IpipClaim",
            "metadata": {"name": name, "creationTimestamp": created, "uid": uid},
            "spec": spec,
        }))
        .unwrap()
    }

    fn address(ip: &str) -> serde_json::Value {
        json!({"internalIPs": [ip]})
    }

    #[test]
    fn an_object_of_a_newer_version_is_used_without_what_this_version_does_not_know() {
        let newer: IpipNode = serde_json::from_value(json!({
            "apiVersion": "ipip.dev/v1alpha1",
            "kind": "IpipNode",
            "metadata": {"name": "b", "creationTimestamp": OLD},
            "spec": {
                "internalIPs": ["10.0.0.2"],
                "podCIDRs": ["10.42.2.0/24"],
                "encapsulation": "wireguard",
                "publicKey": "abc",
                "endpoints": [{"address": "203.0.113.2", "port": 51820}],
            },
            "status": {"agentVersion": "99.0.0", "paths": {"a": "probed"}},
        }))
        .unwrap();
        let mut index = Index::default();
        assert!(index.apply(&newer));
        let inventory = inventory(&index, "a");
        let [node] = &inventory.nodes[..] else {
            panic!("{:?}", inventory.nodes);
        };
        assert_eq!(node.internal_ips.len(), 1);
        assert_eq!(node.pod_cidrs.len(), 1);
        assert_eq!(node.encapsulation, None);
    }

    #[test]
    fn an_older_claim_wins_also_after_its_nodes_object_was_created_again() {
        let mut index = Index::default();
        index.apply_claim(&claim("v.0", OLD, "1", address("10.0.0.1")));
        index.apply(&object("evil", OLD, "10.0.0.1", "10.42.2.0/24"));
        assert!(index.apply_claim(&claim("evil.0", NEW, "2", address("10.0.0.1"))));
        index.apply(&object("v", NEW, "10.0.0.1", "10.42.1.0/24"));
        assert_eq!(names(&index), ["v"]);
        // A value without a claim can be of any time.
        index.apply(&object(
            "w",
            "2025-01-01T00:00:00Z",
            "10.0.0.1",
            "10.42.3.0/24",
        ));
        assert_eq!(names(&index), ["v"]);
        assert!(index.delete_claim("v.0"));
        assert_eq!(names(&index), ["evil"]);
    }

    #[test]
    fn a_changed_value_is_young_and_the_other_values_keep_their_age() {
        let mut index = Index::default();
        let values = json!({"internalIPs": ["10.0.0.1"], "podCIDRs": ["10.42.1.0/24"]});
        index.apply_claim(&claim("a.0", OLD, "1", values));
        index.apply_claim(&claim("b.0", NEW, "2", address("10.0.0.2")));
        index.apply(&object("b", NEW, "10.0.0.2", "10.42.1.0/24"));
        index.apply(&object("a", OLD, "10.0.0.1", "10.42.1.0/24"));
        assert_eq!(
            (names(&index).len(), with_pods(&index)),
            (2, vec!["a".to_owned()])
        );
        // `a` takes the address of `b`, which is younger than `a`, but not than this claim.
        index.apply(&object("a", OLD, "10.0.0.2", "10.42.1.0/24"));
        index.apply_claim(&claim(
            "a.1",
            "2026-01-03T00:00:00Z",
            "0",
            address("10.0.0.2"),
        ));
        assert_eq!(
            (names(&index), with_pods(&index)),
            (vec!["b".to_owned()], vec!["a".to_owned()])
        );
    }

    #[test]
    fn a_claim_dates_internal_ips_in_its_realm_only() {
        let mut index = Index::default();
        let in_x = |mut object: IpipNode| {
            object.spec.realm = Some("x".into());
            object
        };
        index.apply_claim(&claim("evil.0", OLD, "1", address("10.0.0.1")));
        index.apply_claim(&claim(
            "v.0",
            NEW,
            "2",
            json!({"internalIPs": ["10.0.0.1"], "realm": "x"}),
        ));
        index.apply(&in_x(object("evil", OLD, "10.0.0.1", "10.42.1.0/24")));
        index.apply(&in_x(object("v", NEW, "10.0.0.1", "10.42.2.0/24")));
        assert_eq!(names(&index), ["v"]);
    }

    #[test]
    fn of_two_claims_of_one_second_the_uid_decides_which_no_client_chooses() {
        let mut index = Index::default();
        for (node, uid) in [("a", "2"), ("b", "1")] {
            index.apply(&object(node, OLD, "10.0.0.1", &format!("10.42.{uid}.0/24")));
            index.apply_claim(&claim(&format!("{node}.0"), OLD, uid, address("10.0.0.1")));
        }
        assert_eq!(names(&index), ["b"]);
    }

    #[test]
    fn an_object_that_is_being_deleted_does_not_count_whatever_its_finalizers() {
        let mut index = Index::default();
        index.apply(&object("a", NEW, "10.0.0.1", "10.42.1.0/24"));
        let mut old = object("b", OLD, "10.0.0.1", "10.42.2.0/24");
        index.apply(&old);
        let mut dated = claim("b.0", OLD, "1", address("10.0.0.1"));
        index.apply_claim(&dated);
        let mut held = block("b", OLD, "10.42.1.0/24");
        index.apply_block(&held);
        assert_eq!(
            (names(&index), with_pods(&index)),
            (vec!["b".to_owned()], vec!["b".to_owned()])
        );
        let end = |metadata: &mut ObjectMeta| {
            let time = "2026-01-02T00:00:00Z".parse().unwrap();
            metadata.deletion_timestamp = Some(Time(time));
            metadata.finalizers = Some(vec!["example.org/held".into()]);
        };
        end(&mut held.metadata);
        assert!(index.apply_block(&held));
        assert_eq!(with_pods(&index), ["b", "a"]);
        end(&mut dated.metadata);
        assert!(index.apply_claim(&dated));
        end(&mut old.metadata);
        assert!(index.apply(&old));
        assert_eq!(names(&index), ["a"]);
        assert_eq!(inventory(&index, "a").nodes.len(), 1);
    }

    #[test]
    fn a_change_of_the_status_alone_is_no_change_of_the_claim() {
        let mut index = Index::default();
        let mut it = object("a", OLD, "10.0.0.1", "10.42.1.0/24");
        assert!(index.apply(&it));
        it.status = Some(Default::default());
        it.metadata.resource_version = Some("7".into());
        assert!(!index.apply(&it));
    }

    #[test]
    fn what_other_nodes_report_about_the_own_addresses_is_part_of_the_inventory() {
        let mut index = Index::default();
        index.apply(&object("a", OLD, "10.0.0.1", "10.42.1.0/24"));
        let mut reporter = object("b", OLD, "10.0.0.2", "10.42.2.0/24");
        index.apply(&reporter);
        let reported = vec!["10.0.0.1".into(), "10.0.0.9".into(), "?".into()];
        reporter.status = Some(IpipNodeStatus {
            lan_conflicts: reported,
            ..IpipNodeStatus::default()
        });
        assert!(index.apply(&reporter));
        assert!(!index.apply(&reporter));
        let conflicts = inventory(&index, "a").lan_conflicts;
        let expected = BTreeSet::from(["b".to_owned()]);
        assert_eq!(
            conflicts,
            BTreeMap::from([([10, 0, 0, 1].into(), expected)])
        );
        assert_eq!(inventory(&index, "b").lan_conflicts, BTreeMap::new());
        reporter.status = None;
        assert!(index.apply(&reporter));
        assert_eq!(inventory(&index, "a").lan_conflicts, BTreeMap::new());
    }

    fn block(node: &str, created: &str, cidr: &str) -> IpipPodBlock {
        serde_json::from_value(json!({
            "apiVersion": "ipip.dev/v1alpha1",
            "kind": "IpipPodBlock",
            "metadata": {"name": cidr.replace(['.', '/'], "-"), "creationTimestamp": created},
            "spec": {"cidr": cidr, "node": node},
        }))
        .unwrap()
    }

    /// The nodes that have a pod CIDR.
    fn with_pods(index: &Index) -> Vec<String> {
        let nodes = inventory(index, "a").nodes.into_iter();
        let nodes = nodes.filter(|node| !node.pod_cidrs.is_empty());
        nodes.map(|node| node.name).collect()
    }

    #[test]
    fn a_block_keeps_its_range_for_its_node_until_it_is_deleted() {
        let mut index = Index::default();
        assert!(index.apply_block(&block("a", OLD, "10.42.1.0/24")));
        assert!(!index.apply_block(&block("a", OLD, "10.42.1.0/24")));
        index.apply(&object("b", NEW, "10.0.0.2", "10.42.1.0/24"));
        index.apply(&object("a", NEW, "10.0.0.1", "10.42.1.0/24"));
        assert_eq!(with_pods(&index), ["a"]);
        assert!(index.delete_block("10-42-1-0-24"));
        index.delete("a");
        assert_eq!(with_pods(&index), ["b"]);
    }

    #[test]
    fn a_block_of_the_same_second_as_a_claim_is_the_older_one_and_an_invalid_block_has_no_effect() {
        let mut index = Index::default();
        index.apply(&object("b", OLD, "10.0.0.2", "10.42.1.0/24"));
        index.apply_claim(&claim(
            "b.0",
            OLD,
            "1",
            json!({"podCIDRs": ["10.42.1.0/24"]}),
        ));
        index.apply_block(&block("a", OLD, "10.42.1.0/24"));
        assert!(!index.apply_block(&block("a", OLD, "240.0.0.0/24")));
        assert_eq!(with_pods(&index), [""; 0]);
    }

    #[test]
    fn an_invalid_value_of_an_object_is_left_out_and_everything_else_is_not() {
        let mut index = Index::default();
        index.apply(&object("a", OLD, "10.0.0.1", "240.0.0.0/24"));
        index.apply(&object("b", OLD, "10.0.0.2", "10.42.2.0/24"));
        let inventory = inventory(&index, "a");
        assert_eq!(names(&index), ["a", "b"]);
        assert_eq!(inventory.nodes[0].pod_cidrs, []);
        let why = inventory.left_out["a"][0].to_string();
        assert!(why.contains("240.0.0.0/24"), "{why}");
    }
}

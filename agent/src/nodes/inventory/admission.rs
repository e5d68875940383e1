//! Decides which nodes are admitted when their claims contradict each other: the older claim wins.
//!
//! Pure: every agent of a cluster computes the same answer.

use super::{
    Fault, InvalidField, Inventory, InventoryError, Node,
    claim::ParsedNode,
    consistency::{check_sizes, check_together},
};
use ipnetwork::Ipv4Network;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

/// The admitted nodes, and the reason for each node that is left out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Admission {
    /// The admitted nodes.
    pub inventory: Inventory,
    /// The nodes that are left out, by name, each with its first contradiction or invalid value.
    pub left_out: BTreeMap<String, InvalidField>,
}

/// A range that a node has reserved before it publishes it as a pod CIDR.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reservation {
    /// The range.
    pub network: Ipv4Network,
    /// The name of the node.
    pub node: String,
}

/// What a node claims: with an age of its own.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    /// All fields of a node.
    Node(&'a Node),
    /// A range alone. It keeps the range for the node, also while the node publishes other fields anew.
    Reservation(&'a Reservation),
}

impl<'a> From<&'a Node> for Entry<'a> {
    fn from(node: &'a Node) -> Self {
        Self::Node(node)
    }
}

/// Admits each node of `entries` that contradicts neither itself nor an entry admitted before it. `entries` are
/// sorted by age, the oldest first, with unique names of nodes; so a younger node never displaces an older one. A
/// reservation that contradicts an older entry of another node has no effect.
///
/// # Errors
/// The admitted nodes do not fit the maps.
pub fn admit<'a>(
    entries: impl IntoIterator<Item: Into<Entry<'a>>>,
) -> Result<Admission, InventoryError> {
    let mut admitted = Admitted::default();
    let mut admission = Admission::default();
    for entry in entries {
        let node = match entry.into() {
            Entry::Node(node) => node,
            Entry::Reservation(reservation) => {
                admitted.reserve(reservation);
                continue;
            }
        };
        if let Some(field) = admitted.contradiction(node) {
            admission.left_out.insert(node.name.clone(), field);
        } else {
            admitted.add(node);
            admission.inventory.nodes.push(node.clone());
        }
    }
    check_sizes(&admission.inventory)?;
    Ok(admission)
}

/// The claims of the nodes admitted so far. One more node is checked against them in logarithmic time, with
/// the result of `check_together`, which would be too slow if it ran once per node.
#[derive(Default)]
struct Admitted<'a> {
    /// The node that has the InternalIP in the realm.
    in_realm: HashMap<(Ipv4Addr, &'a str), &'a str>,
    /// One of the nodes that have the InternalIP.
    internal_ips: HashMap<Ipv4Addr, &'a str>,
    /// The node that has the public endpoint.
    endpoints: HashMap<Ipv4Addr, &'a str>,
    /// One of the nodes that have the address, as InternalIP or public endpoint.
    addresses: BTreeMap<Ipv4Addr, &'a str>,
    /// Pod CIDRs by their first address. They are disjoint, so the order by last address is the same.
    networks: BTreeMap<Ipv4Addr, (Ipv4Network, &'a str)>,
}

impl<'a> Admitted<'a> {
    /// The first contradiction between `node` and itself or the admitted nodes.
    fn contradiction(&self, node: &Node) -> Option<InvalidField> {
        let ip_fault = |ip: &Ipv4Addr| {
            Some(invalid(
                "internalIPs",
                ip,
                self.internal_ip_fault(node, ip)?,
            ))
        };
        let endpoint_fault =
            |ip: &Ipv4Addr| Some(invalid("publicEndpoint", ip, self.endpoint_fault(ip)?));
        let network_fault =
            |it: &Ipv4Network| Some(invalid("podCIDRs", it, self.network_fault(&node.name, it)?));
        within(node)
            .or_else(|| node.internal_ips.iter().find_map(ip_fault))
            .or_else(|| node.public_endpoint.as_ref().and_then(endpoint_fault))
            .or_else(|| node.pod_cidrs.iter().find_map(network_fault))
    }

    fn internal_ip_fault(&self, node: &Node, ip: &Ipv4Addr) -> Option<Fault> {
        if let Some(owner) = self.in_realm.get(&(*ip, node.realm.as_str())) {
            return Some(Fault::InternalIpTaken((*owner).into(), None));
        }
        match self.endpoints.get(ip) {
            Some(owner) => Some(Fault::EndpointTaken((*owner).into(), None)),
            None => self.containing_network(ip),
        }
    }

    fn endpoint_fault(&self, ip: &Ipv4Addr) -> Option<Fault> {
        if let Some(owner) = self.endpoints.get(ip) {
            return Some(Fault::EndpointTaken((*owner).into(), None));
        }
        match self.internal_ips.get(ip) {
            Some(owner) => Some(Fault::EndpointIsInternalIp((*owner).into(), None)),
            None => self.containing_network(ip),
        }
    }

    /// Why the node `name` cannot have `network`.
    fn network_fault(&self, name: &str, network: &Ipv4Network) -> Option<Fault> {
        let range = network.network()..=network.broadcast();
        // A network that begins before `network` and reaches into it, or one that begins inside.
        let before = self.networks.range(..=network.network()).next_back();
        let before = before.filter(|(_, (other, _))| other.contains(network.network()));
        let overlapping = before.or_else(|| self.networks.range(range.clone()).next());
        if let Some((_, (other, owner))) = overlapping {
            // Its own reservation; other networks do not overlap that.
            if (other, *owner) == (network, name) {
                return None;
            }
            return Some(Fault::Overlaps(*other, (*owner).into(), None));
        }
        let (address, owner) = self.addresses.range(range).next()?;
        Some(Fault::HoldsNode(*address, (*owner).into(), None))
    }

    fn containing_network(&self, ip: &Ipv4Addr) -> Option<Fault> {
        let (_, (network, owner)) = self.networks.range(..=ip).next_back()?;
        let holds = network.contains(*ip);
        holds.then(|| Fault::HeldBy(*network, (*owner).into()))
    }

    /// Adds a reservation, unless the node cannot have the range.
    fn reserve(&mut self, reservation: &'a Reservation) {
        let Reservation { network, node } = reservation;
        if self.network_fault(node, network).is_none() {
            self.networks.insert(network.network(), (*network, node));
        }
    }

    fn add(&mut self, node: &'a Node) {
        let name = node.name.as_str();
        for ip in &node.internal_ips {
            self.in_realm.insert((*ip, &node.realm), name);
            self.internal_ips.insert(*ip, name);
        }
        self.endpoints
            .extend(node.public_endpoint.map(|it| (it, name)));
        let addresses = node.internal_ips.iter().chain(&node.public_endpoint);
        self.addresses.extend(addresses.map(|it| (*it, name)));
        let networks = node.pod_cidrs.iter();
        self.networks
            .extend(networks.map(|it| (it.network(), (*it, name))));
    }
}

/// The first contradiction between fields of one node. There may be thousands of nodes, so a node with at most one
/// InternalIP and one network, as most have, skips the full check.
fn within(node: &Node) -> Option<InvalidField> {
    let holds = |ip: &Ipv4Addr| node.pod_cidrs.iter().any(|network| network.contains(*ip));
    let mut addresses = node.internal_ips.iter().chain(&node.public_endpoint);
    if node.internal_ips.len() < 2 && node.pod_cidrs.len() < 2 && !addresses.any(holds) {
        return None;
    }
    let mut invalid = Vec::new();
    check_together(&[ParsedNode::from(node.clone())], &mut invalid);
    invalid.into_iter().next()
}

fn invalid(field: &'static str, value: &impl ToString, fault: Fault) -> InvalidField {
    InvalidField {
        line: None,
        field,
        value: value.to_string(),
        fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str, ip: &str, cidr: &str, endpoint: Option<&str>) -> Node {
        Node {
            name: name.into(),
            internal_ips: vec![ip.parse().unwrap()],
            pod_cidrs: vec![cidr.parse().unwrap()],
            public_endpoint: endpoint.map(|it| it.parse().unwrap()),
            realm: String::new(),
            encapsulation: None,
        }
    }

    fn names(admission: &Admission) -> Vec<&str> {
        let nodes = admission.inventory.nodes.iter();
        nodes.map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn of_two_nodes_with_overlapping_networks_the_older_is_admitted_also_if_its_network_is_the_higher_one()
     {
        let high = node("old", "10.0.0.1", "10.42.1.128/25", None);
        let low = node("new", "10.0.0.2", "10.42.1.0/24", None);
        let admission = admit(&[high.clone(), low.clone()]).unwrap();
        assert_eq!(names(&admission), ["old"]);
        assert!(
            admission.left_out["new"]
                .to_string()
                .contains("10.42.1.0/24")
        );
        let admission = admit(&[low, high]).unwrap();
        assert_eq!(names(&admission), ["new"]);
    }

    #[test]
    fn of_two_nodes_with_one_internal_ip_in_a_realm_the_older_is_admitted_and_in_two_realms_both_are()
     {
        let mut nodes = vec![
            node("a", "10.0.0.1", "10.42.1.0/24", None),
            node("b", "10.0.0.1", "10.42.2.0/24", None),
        ];
        let admission = admit(&nodes).unwrap();
        assert_eq!(names(&admission), ["a"]);
        assert_eq!(
            admission.left_out["b"].to_string(),
            "internalIPs: \"10.0.0.1\" is also an InternalIP of a in the same realm; remedy: correct one of them, or give the nodes different realms"
        );
        nodes[1].realm = "other".into();
        assert_eq!(names(&admit(&nodes).unwrap()), ["a", "b"]);
    }

    #[test]
    fn a_node_that_contradicts_only_a_node_that_is_left_out_is_admitted() {
        let admission = admit(&[
            node("a", "10.0.0.1", "10.42.1.0/24", None),
            node("b", "10.0.0.1", "10.42.2.0/24", None),
            node("c", "10.0.0.3", "10.42.2.0/24", None),
        ])
        .unwrap();
        assert_eq!(names(&admission), ["a", "c"]);
    }

    #[test]
    fn a_younger_node_cannot_take_an_older_ones_public_endpoint_nor_name_it_as_its_internal_ip() {
        let old = node("a", "10.0.0.1", "10.42.1.0/24", Some("203.0.113.1"));
        let same = node("b", "10.0.0.2", "10.42.2.0/24", Some("203.0.113.1"));
        let internal = node("c", "203.0.113.1", "10.42.3.0/24", None);
        let holder = node("d", "10.0.0.4", "203.0.113.0/24", None);
        let admission = admit(&[old, same, internal, holder]).unwrap();
        assert_eq!(names(&admission), ["a"]);
    }

    #[test]
    fn a_node_that_contradicts_itself_is_left_out() {
        let admission = admit(&[node("a", "10.42.1.1", "10.42.1.0/24", None)]).unwrap();
        assert_eq!(names(&admission), [""; 0]);
        assert!(admission.left_out.contains_key("a"));
    }

    fn reservation(node: &str, cidr: &str) -> Reservation {
        Reservation {
            network: cidr.parse().unwrap(),
            node: node.into(),
        }
    }

    #[test]
    fn a_reserved_range_is_for_its_node_alone_also_while_that_node_publishes_its_fields_anew() {
        let reserved = reservation("a", "10.42.1.0/24");
        let thief = node("thief", "10.0.0.2", "10.42.1.0/24", None);
        let part = node("part", "10.0.0.3", "10.42.1.128/25", None);
        let whole = node("whole", "10.0.0.4", "10.42.0.0/16", None);
        let address = node("address", "10.42.1.7", "10.43.0.0/24", None);
        let young = node("a", "10.0.0.1", "10.42.1.0/24", None);
        let nodes = [&thief, &part, &whole, &address, &young].map(Entry::from);
        let entries = [Entry::Reservation(&reserved)].into_iter().chain(nodes);
        let admission = admit(entries).unwrap();
        assert_eq!(names(&admission), ["a"]);
        assert_eq!(
            admission.left_out["thief"].to_string(),
            "podCIDRs: \"10.42.1.0/24\" overlaps 10.42.1.0/24 of a; remedy: give each node its own pod CIDRs"
        );
    }

    #[test]
    fn a_reservation_takes_nothing_away_from_an_older_node_or_reservation() {
        let old = node("old", "10.0.0.1", "10.42.1.0/24", None);
        let reserved = reservation("first", "10.42.2.0/24");
        let first = node("first", "10.0.0.2", "10.42.2.0/24", None);
        let late = [
            reservation("thief", "10.42.1.0/24"),
            reservation("thief", "10.42.0.0/16"),
            reservation("thief", "10.42.2.0/25"),
            reservation("thief", "10.0.0.0/28"),
        ];
        let mut entries = vec![Entry::Node(&old), Entry::Reservation(&reserved)];
        entries.extend(late.iter().map(Entry::Reservation));
        entries.push(Entry::Node(&first));
        assert_eq!(names(&admit(entries).unwrap()), ["old", "first"]);
    }

    #[test]
    fn a_node_that_reserves_the_range_that_it_uses_already_stays() {
        let node = node("a", "10.0.0.1", "10.42.1.0/24", None);
        let reserved = reservation("a", "10.42.1.0/24");
        let entries = [Entry::Node(&node), Entry::Reservation(&reserved)];
        assert_eq!(names(&admit(entries).unwrap()), ["a"]);
    }

    proptest! {
        /// Compares with the definition: check each node together with all that were admitted.
        #[test]
        fn a_node_is_admitted_exactly_if_it_contradicts_no_older_admitted_node(
            drawn in prop::collection::vec((0u8..6, 0u8..6, 22u8..27, prop::option::of(0u8..4), 0u8..2), 0..9)
        ) {
            let nodes: Vec<Node> = drawn.iter().enumerate().map(|(n, (ip, cidr, prefix, endpoint, realm))| {
                let network = Ipv4Network::new([10, 42, *cidr, 0].into(), *prefix).unwrap();
                Node {
                    name: format!("n{n}"),
                    internal_ips: vec![[10, 0, 0, *ip].into()],
                    pod_cidrs: vec![Ipv4Network::new(network.network(), *prefix).unwrap()],
                    public_endpoint: endpoint.map(|it| [10, 0, 0, it].into()),
                    realm: realm.to_string(),
                    encapsulation: None,
                }
            }).collect();
            let mut expected: Vec<ParsedNode> = Vec::new();
            for node in &nodes {
                expected.push(ParsedNode::from(node.clone()));
                let mut invalid = Vec::new();
                check_together(&expected, &mut invalid);
                if !invalid.is_empty() {
                    expected.pop();
                }
            }
            let expected: Vec<Node> = expected.into_iter().map(|parsed| parsed.node).collect();
            prop_assert_eq!(admit(&nodes).unwrap().inventory.nodes, expected);
        }
    }
}

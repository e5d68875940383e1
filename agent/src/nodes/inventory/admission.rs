//! Which nodes take part when what each says of itself contradicts others: the older one wins.
//!
//! Pure, and the same everywhere: each agent of a cluster comes to the same answer.

use super::{Entry, Fault, Inventory, InventoryError, Node, Problem, judge_sizes, judge_together};
use ipnetwork::Ipv4Network;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

/// The nodes that go together, and why the others do not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Admission {
    /// The nodes that take part.
    pub inventory: Inventory,
    /// What keeps each other node out: one problem of it.
    pub left_out: BTreeMap<String, Problem>,
}

/// Admits of `nodes`, the oldest first and each name once, those that go with every node admitted
/// before them. So a younger node never pushes an older one out.
pub fn admit<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Result<Admission, InventoryError> {
    let mut claims = Claims::default();
    let mut admission = Admission::default();
    for node in nodes {
        if let Some(problem) = claims.against(node) {
            admission.left_out.insert(node.name.clone(), problem);
        } else {
            claims.add(node);
            admission.inventory.nodes.push(node.clone());
        }
    }
    judge_sizes(&admission.inventory)?;
    Ok(admission)
}

/// What the nodes admitted so far have. What `judge_together` says of all at once it says of one
/// more, in logarithmic time: a single bad node may contradict thousands.
#[derive(Default)]
struct Claims<'a> {
    /// Who has an InternalIP in a realm.
    in_realm: HashMap<(Ipv4Addr, &'a str), &'a str>,
    /// One node that has the InternalIP.
    internal_ips: HashMap<Ipv4Addr, &'a str>,
    endpoints: HashMap<Ipv4Addr, &'a str>,
    /// Every address of a node, with one node that has it.
    addresses: BTreeMap<Ipv4Addr, &'a str>,
    /// They are apart, so by first address is also by last address.
    networks: BTreeMap<Ipv4Addr, (Ipv4Network, &'a str)>,
}

impl<'a> Claims<'a> {
    /// What keeps `node` out.
    fn against(&self, node: &Node) -> Option<Problem> {
        let of_ip =
            |ip: &Ipv4Addr| Some(problem("internalIPs", ip, self.of_internal_ip(node, ip)?));
        let of_endpoint =
            |ip: &Ipv4Addr| Some(problem("publicEndpoint", ip, self.of_endpoint(ip)?));
        let of_network = |it: &Ipv4Network| Some(problem("podCIDRs", it, self.of_network(it)?));
        of_itself(node)
            .or_else(|| node.internal_ips.iter().find_map(of_ip))
            .or_else(|| node.public_endpoint.as_ref().and_then(of_endpoint))
            .or_else(|| node.pod_cidrs.iter().find_map(of_network))
    }

    fn of_internal_ip(&self, node: &Node, ip: &Ipv4Addr) -> Option<Fault> {
        if let Some(owner) = self.in_realm.get(&(*ip, node.realm.as_str())) {
            return Some(Fault::InternalIpTaken((*owner).into(), None));
        }
        match self.endpoints.get(ip) {
            Some(owner) => Some(Fault::EndpointTaken((*owner).into(), None)),
            None => self.holder(ip),
        }
    }

    fn of_endpoint(&self, ip: &Ipv4Addr) -> Option<Fault> {
        if let Some(owner) = self.endpoints.get(ip) {
            return Some(Fault::EndpointTaken((*owner).into(), None));
        }
        match self.internal_ips.get(ip) {
            Some(owner) => Some(Fault::EndpointIsInternalIp((*owner).into(), None)),
            None => self.holder(ip),
        }
    }

    fn of_network(&self, network: &Ipv4Network) -> Option<Fault> {
        let range = network.network()..=network.broadcast();
        // One that begins before and reaches in, or one that begins inside.
        let before = self.networks.range(..=network.network()).next_back();
        let before = before.filter(|(_, (other, _))| other.contains(network.network()));
        let overlapping = before.or_else(|| self.networks.range(range.clone()).next());
        if let Some((_, (other, owner))) = overlapping {
            return Some(Fault::Overlaps(*other, (*owner).into(), None));
        }
        let (address, owner) = self.addresses.range(range).next()?;
        Some(Fault::HoldsNode(*address, (*owner).into(), None))
    }

    fn holder(&self, ip: &Ipv4Addr) -> Option<Fault> {
        let (_, (network, owner)) = self.networks.range(..=ip).next_back()?;
        let holds = network.contains(*ip);
        holds.then(|| Fault::HeldBy(*network, (*owner).into()))
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

/// What of the node contradicts itself. Most nodes have one address and one network, and no need
/// to be judged as thousands are.
fn of_itself(node: &Node) -> Option<Problem> {
    let holds = |ip: &Ipv4Addr| node.pod_cidrs.iter().any(|network| network.contains(*ip));
    let mut addresses = node.internal_ips.iter().chain(&node.public_endpoint);
    if node.internal_ips.len() < 2 && node.pod_cidrs.len() < 2 && !addresses.any(holds) {
        return None;
    }
    let mut problems = Vec::new();
    judge_together(&[Entry::from(node.clone())], &mut problems);
    problems.into_iter().next()
}

fn problem(field: &'static str, value: &impl ToString, fault: Fault) -> Problem {
    Problem {
        line: None,
        field,
        value: value.to_string(),
        fault,
    }
}

impl From<Node> for Entry {
    fn from(node: Node) -> Self {
        Self {
            name_line: None,
            ip_lines: vec![None; node.internal_ips.len()],
            cidr_lines: vec![None; node.pod_cidrs.len()],
            endpoint_line: None,
            node,
        }
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
    fn the_older_of_two_that_overlap_stays_whoever_has_the_lower_network() {
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
    fn of_two_with_one_internal_ip_in_a_realm_the_older_stays_and_in_two_realms_both_do() {
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
    fn who_contradicts_only_a_node_that_is_left_out_takes_part() {
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

    proptest! {
        /// By the definition, one after the other.
        #[test]
        fn a_node_takes_part_exactly_if_it_goes_with_all_older_ones_that_do(
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
            let mut expected: Vec<Entry> = Vec::new();
            for node in &nodes {
                expected.push(Entry::from(node.clone()));
                let mut problems = Vec::new();
                judge_together(&expected, &mut problems);
                if !problems.is_empty() {
                    expected.pop();
                }
            }
            let expected: Vec<Node> = expected.into_iter().map(|entry| entry.node).collect();
            prop_assert_eq!(admit(&nodes).unwrap().inventory.nodes, expected);
        }
    }
}

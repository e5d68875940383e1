use super::*;
use crate::probe_key::PrivateKey;
use proptest::prelude::*;

fn node(name: &str, ips: &[&str], cidr: &str, endpoint: Option<&str>) -> ParsedNode {
    ParsedNode::from(Node {
        is_found_near: false,
        name: name.into(),
        internal_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        pod_cidrs: vec![cidr.parse().unwrap()],
        public_endpoint: endpoint.map(|it| it.parse().unwrap()),
        realm: String::new(),
        encapsulation: None,
        probe_key: None,
    })
}

fn in_realm(realm: &str, mut claim: ParsedNode) -> ParsedNode {
    claim.node.realm = realm.into();
    claim
}

/// The texts of what is left out of the node.
fn left_out(inventory: &Inventory, name: &str) -> Vec<String> {
    let fields = inventory.left_out.get(name).into_iter().flatten();
    fields.map(InvalidField::to_string).collect()
}

#[test]
fn of_two_nodes_with_one_public_endpoint_the_younger_loses_only_the_endpoint() {
    let old = node("a1", &["10.0.0.1"], "10.42.1.0/24", Some("203.0.113.1"));
    let new = node("a2", &["10.0.0.2"], "10.42.2.0/24", Some("203.0.113.1"));
    let inventory = admit(&[old.clone(), new.clone()]);
    let mut expected = new.node;
    expected.public_endpoint = None;
    assert_eq!(inventory.nodes, [old.node, expected]);
    assert_eq!(
        left_out(&inventory, "a2"),
        [
            "publicEndpoint: \"203.0.113.1\" is also the publicEndpoint of a1; remedy: give each node its own public address (1:1 NAT); if a1 is the former name of this machine: kubectl delete node a1"
        ]
    );
    assert_eq!(left_out(&inventory, "a1"), [""; 0]);
}

#[test]
fn of_two_nodes_with_overlapping_networks_the_older_has_it_also_if_its_network_is_the_higher_one() {
    let high = node("high", &["10.0.0.1"], "10.42.1.128/25", None);
    let low = node("low", &["10.0.0.2"], "10.42.1.0/24", None);
    for (old, new) in [(&high, &low), (&low, &high)] {
        let inventory = admit([old, new]);
        assert_eq!(inventory.nodes[0], old.node);
        assert_eq!(inventory.nodes[1].internal_ips, new.node.internal_ips);
        assert_eq!(inventory.nodes[1].pod_cidrs, []);
        let texts = left_out(&inventory, &new.node.name);
        assert!(texts[0].contains("overlaps"), "{texts:?}");
    }
}

#[test]
fn a_virtual_address_of_two_nodes_is_contested_and_their_own_addresses_are_not() {
    let vip = "10.0.0.100";
    let first = node("a1", &["10.0.0.1", vip], "10.42.1.0/24", None);
    let second = node("a2", &[vip, "10.0.0.2"], "10.42.2.0/24", None);
    let inventory = admit(&[first.clone(), second.clone()]);
    assert_eq!(inventory.nodes[0], first.node);
    assert_eq!(
        inventory.nodes[1].internal_ips,
        [Ipv4Addr::new(10, 0, 0, 2)]
    );
    assert_eq!(inventory.nodes[1].pod_cidrs, second.node.pod_cidrs);
    // It has left the first node.
    let first = node("a1", &["10.0.0.1"], "10.42.1.0/24", None);
    let inventory = admit(&[first, second.clone()]);
    assert_eq!(inventory.nodes[1], second.node);
    assert_eq!(inventory.left_out, BTreeMap::new());
}

#[test]
fn an_internal_ip_belongs_to_one_node_of_a_realm_and_to_nodes_of_several_realms() {
    let a = node("a", &["10.0.0.1"], "10.42.1.0/24", None);
    let b = node("b", &["10.0.0.1"], "10.42.2.0/24", None);
    let inventory = admit(&[a.clone(), b.clone()]);
    assert_eq!(inventory.nodes[1].internal_ips, [Ipv4Addr::UNSPECIFIED; 0]);
    assert_eq!(
        left_out(&inventory, "b"),
        [
            "internalIPs: \"10.0.0.1\" is also an InternalIP of a in the same realm; remedy: correct one of them, or give the nodes different realms; if a is the former name of this machine: kubectl delete node a"
        ]
    );
    let b = in_realm("other", b);
    let inventory = admit(&[a, b.clone()]);
    assert_eq!(inventory.nodes[1], b.node);
}

#[test]
fn nodes_without_a_realm_share_an_internal_ip_if_they_are_in_different_networks() {
    let key = PrivateKey::from([7; 32]).public();
    let with_key = |mut claim: ParsedNode| {
        claim.node.probe_key = Some(key);
        claim
    };
    let shared: Ipv4Addr = [10, 0, 0, 1].into();
    let (one, other) = (Some("203.0.113.1"), Some("203.0.113.2"));
    let a = |endpoint| with_key(node("a", &["10.0.0.1"], "10.42.1.0/24", endpoint));
    let b = |endpoint| node("b", &["10.0.0.1"], "10.42.2.0/24", endpoint);
    let both = admit(&[a(one), with_key(b(other))]);
    assert_eq!(both.nodes[1].internal_ips, [shared]);
    assert_eq!(both.left_out, BTreeMap::new());
    assert_eq!(both.internal_ip_owners("")[&shared], "a");
    let further = node("b", &["10.0.0.1", "10.0.0.2"], "10.42.2.0/24", other);
    for (a, b) in [
        // Probes cannot tell them apart.
        (a(one), b(other)),
        (a(one), with_key(further)),
        (in_realm("r", a(one)), with_key(in_realm("r", b(other)))),
        // Perhaps one is the former name of the other.
        (a(one), with_key(b(one))),
        (a(one), with_key(b(None))),
        (a(None), with_key(b(other))),
    ] {
        let inventory = admit(&[a, b]);
        assert!(!inventory.nodes[1].internal_ips.contains(&shared));
        assert!(inventory.left_out.contains_key("b"));
    }
}

#[test]
fn a_value_that_contradicts_only_a_value_that_is_left_out_is_admitted() {
    let inventory = admit(&[
        node("a", &["10.0.0.1"], "10.42.1.0/24", None),
        node("b", &["10.0.0.2"], "10.42.1.0/25", None),
        node("c", &["10.0.0.3"], "10.42.1.128/25", None),
        node("d", &["10.0.0.1", "10.0.0.4"], "10.42.4.0/24", None),
        node("e", &["10.0.0.5"], "10.0.0.4/32", None),
    ]);
    let cidrs = |n: usize| inventory.nodes[n].pod_cidrs.len();
    assert_eq!(
        [cidrs(0), cidrs(1), cidrs(2), cidrs(3), cidrs(4)],
        [1, 0, 0, 1, 0]
    );
    assert_eq!(
        inventory.nodes[3].internal_ips,
        [Ipv4Addr::new(10, 0, 0, 4)]
    );
}

#[test]
fn a_younger_node_cannot_take_an_older_ones_addresses_in_any_field() {
    let old = node("a", &["10.0.0.1"], "10.42.1.0/24", Some("203.0.113.1"));
    let inventory = admit(&[
        old.clone(),
        node("b", &["203.0.113.1"], "10.0.0.1/32", Some("10.0.0.1")),
        in_realm(
            "x",
            node("c", &["10.42.1.9"], "203.0.113.0/24", Some("10.42.1.8")),
        ),
    ]);
    assert_eq!(inventory.nodes[0], old.node);
    for taken in &inventory.nodes[1..] {
        assert_eq!(taken.internal_ips, [Ipv4Addr::UNSPECIFIED; 0]);
        assert_eq!((taken.public_endpoint, &taken.pod_cidrs), (None, &vec![]));
        assert_eq!(inventory.left_out[&taken.name].len(), 3);
    }
}

#[test]
fn a_network_that_holds_an_own_address_is_left_out_and_the_address_is_not() {
    let inventory = admit(&[node("a", &["10.42.1.1"], "10.42.1.0/24", None)]);
    assert_eq!(
        inventory.nodes[0].internal_ips,
        [Ipv4Addr::new(10, 42, 1, 1)]
    );
    assert_eq!(inventory.nodes[0].pod_cidrs, []);
    let own = node("a", &["10.0.0.1"], "10.42.1.0/24", Some("10.0.0.1"));
    assert_eq!(admit(std::slice::from_ref(&own)).nodes, [own.node]);
}

#[test]
fn nodes_and_addresses_beyond_the_maps_are_left_out_and_the_older_ones_stay() {
    let claim = |n: u32| {
        let mut claim = node("", &[], "10.42.0.0/24", None);
        claim.node.name = format!("n{n}");
        claim.node.pod_cidrs.clear();
        claim.node.internal_ips = (0..4)
            .map(|i| Ipv4Addr::from(0x0a00_0000 + 4 * n + i))
            .collect();
        ParsedNode::from(claim.node)
    };
    let claims: Vec<ParsedNode> = (0..=maps::MAX_PEERS).map(claim).collect();
    let inventory = admit(&claims);
    assert_eq!(inventory.nodes.len(), maps::MAX_PEERS as usize);
    let last = format!("n{}", maps::MAX_PEERS);
    assert_eq!(inventory.left_out.len(), 1);
    assert!(left_out(&inventory, &last)[0].contains("the maps hold 5120 nodes"));

    let mut full = claims;
    full.truncate(maps::MAX_PEERS as usize);
    let more = [10, 255, 0, 1].into();
    full[3].node.internal_ips.push(more);
    full[3].ip_lines.push(None);
    let inventory = admit(&full);
    assert_eq!(inventory.nodes[3].internal_ips.len(), 5);
    let last = inventory.nodes.last().unwrap();
    assert_eq!(last.internal_ips.len(), 3);
    assert!(left_out(&inventory, &last.name)[0].contains("does not fit"));
}

fn reservation<'a>(node: &'a str, cidr: &str) -> Reservation<'a> {
    Reservation {
        value: Value::PodCidr(cidr.parse().unwrap()),
        node,
    }
}

/// The nodes that have a pod CIDR.
fn with_pods(inventory: &Inventory) -> Vec<&str> {
    let nodes = inventory
        .nodes
        .iter()
        .filter(|node| !node.pod_cidrs.is_empty());
    nodes.map(|node| node.name.as_str()).collect()
}

#[test]
fn a_reserved_range_is_for_its_node_alone_also_while_that_node_publishes_its_fields_anew() {
    let reserved = reservation("a", "10.42.1.0/24");
    let thief = node("thief", &["10.0.0.2"], "10.42.1.0/24", None);
    let part = node("part", &["10.0.0.3"], "10.42.1.128/25", None);
    let whole = node("whole", &["10.0.0.4"], "10.42.0.0/16", None);
    let address = node("address", &["10.42.1.7"], "10.43.0.0/24", None);
    let young = node("a", &["10.0.0.1"], "10.42.1.0/24", None);
    let nodes = [&thief, &part, &whole, &address, &young].map(Entry::from);
    let entries = [Entry::Reservation(reserved)].into_iter().chain(nodes);
    let inventory = admit(entries);
    assert_eq!(with_pods(&inventory), ["address", "a"]);
    assert!(left_out(&inventory, "address")[0].contains("lies in 10.42.1.0/24 of a"));
    assert_eq!(
        left_out(&inventory, "thief"),
        [
            "podCIDRs: \"10.42.1.0/24\" overlaps 10.42.1.0/24 of a; remedy: give each node its own pod CIDRs"
        ]
    );
}

#[test]
fn a_reservation_takes_nothing_away_from_an_older_node_or_reservation() {
    let old = node("old", &["10.0.0.1"], "10.42.1.0/24", None);
    let reserved = reservation("first", "10.42.2.0/24");
    let first = node("first", &["10.0.0.2"], "10.42.2.0/24", None);
    let late = [
        reservation("thief", "10.42.1.0/24"),
        reservation("thief", "10.42.0.0/16"),
        reservation("thief", "10.42.2.0/25"),
        reservation("thief", "10.0.0.0/28"),
    ];
    let mut entries = vec![Entry::Node(&old), Entry::Reservation(reserved)];
    entries.extend(late.map(Entry::Reservation));
    entries.push(Entry::Node(&first));
    let inventory = admit(entries);
    assert_eq!(inventory.nodes, [old.node.clone(), first.node.clone()]);
}

#[test]
fn a_node_that_reserves_the_range_that_it_uses_already_stays() {
    let node = node("a", &["10.0.0.1"], "10.42.1.0/24", None);
    let reserved = reservation("a", "10.42.1.0/24");
    let entries = [Entry::Node(&node), Entry::Reservation(reserved)];
    let inventory = admit(entries);
    assert_eq!(inventory.nodes, [node.node]);
}

#[test]
fn each_value_of_a_node_has_an_age_of_its_own() {
    let shared = ["10.0.0.1"];
    let old = node("old", &shared, "10.42.1.0/24", Some("203.0.113.9"));
    let young = node("young", &["10.0.0.2"], "10.42.2.0/24", Some("203.0.113.9"));
    let endpoint = Value::PublicEndpoint([203, 0, 113, 9].into());
    let reserved = |value, node| Entry::Reservation(Reservation { value, node });
    let entries = [
        reserved(Value::InternalIp([10, 0, 0, 1].into(), ""), "old"),
        reserved(endpoint, "young"),
        reserved(endpoint, "old"),
        Entry::Node(&old),
        Entry::Node(&young),
    ];
    let inventory = admit(entries);
    let endpoints: Vec<_> = inventory
        .nodes
        .iter()
        .map(|it| it.public_endpoint)
        .collect();
    assert_eq!(endpoints, [None, young.node.public_endpoint]);
    assert_eq!(inventory.nodes[0].internal_ips, old.node.internal_ips);
    assert_eq!(left_out(&inventory, "old").len(), 1);
}

#[test]
fn the_oldest_claim_of_an_address_of_several_realms_is_known() {
    let ip = Ipv4Addr::new(10, 0, 0, 1);
    let first = in_realm("a", node("first", &["10.0.0.1"], "10.42.1.0/24", None));
    let second = in_realm("b", node("second", &["10.0.0.1"], "10.42.2.0/24", None));
    let reserved = |node, realm| {
        let value = Value::InternalIp(ip, realm);
        Entry::Reservation(Reservation { value, node })
    };
    let nodes = [Entry::Node(&first), Entry::Node(&second)];
    for (oldest, realm) in [("first", "a"), ("second", "b")] {
        let entries = [reserved(oldest, realm)].into_iter().chain(nodes);
        let inventory = admit(entries);
        let expected = BTreeMap::from([(ip, oldest.to_owned())]);
        assert_eq!(inventory.shared_internal_ips, expected);
        assert_eq!(inventory.internal_ip_owners("c")[&ip], oldest);
        assert_eq!(inventory.internal_ip_owners("a")[&ip], "first");
        assert_eq!(inventory.internal_ip_owners("b")[&ip], "second");
    }
}

/// Whether the two values of different nodes contradict each other, by the definition.
fn contradict(a: &Node, b: &Node) -> bool {
    let addresses = |node: &Node| -> Vec<Ipv4Addr> {
        node.internal_ips
            .iter()
            .chain(&node.public_endpoint)
            .copied()
            .collect()
    };
    let holds = |a: &Node, b: &Node| {
        let mut networks = a.pod_cidrs.iter();
        networks.any(|network| addresses(b).iter().any(|ip| network.contains(*ip)))
    };
    let has =
        |node: &Node, ip: Option<Ipv4Addr>| ip.is_some_and(|ip| addresses(node).contains(&ip));
    a.realm == b.realm && a.internal_ips.iter().any(|ip| b.internal_ips.contains(ip))
        || has(a, b.public_endpoint)
        || has(b, a.public_endpoint)
        || holds(a, b)
        || holds(b, a)
        || a.pod_cidrs
            .iter()
            .any(|n| b.pod_cidrs.iter().any(|m| n.overlaps(*m)))
}

proptest! {
    #[test]
    fn admitted_nodes_never_contradict_each_other_and_a_node_without_contradiction_is_complete(
        drawn in prop::collection::vec((0u8..6, 0u8..6, 22u8..27, prop::option::of(0u8..4), 0u8..2), 0..9)
    ) {
        let claims: Vec<ParsedNode> = drawn.iter().enumerate().map(|(n, (ip, cidr, prefix, endpoint, realm))| {
            let network = Ipv4Network::new([10, 42, *cidr, 0].into(), *prefix).unwrap();
            ParsedNode::from(Node {
 is_found_near: false,
                name: format!("n{n}"),
                internal_ips: vec![[10, 0, 0, *ip].into()],
                pod_cidrs: vec![Ipv4Network::new(network.network(), *prefix).unwrap()],
                public_endpoint: endpoint.map(|it| [10, 0, 0, it].into()),
                realm: realm.to_string(),
                encapsulation: None,
                probe_key: None,
            })
        }).collect();
        let inventory = admit(&claims);
        for (n, claim) in claims.iter().enumerate() {
            let (before, rest) = inventory.nodes.split_at(n);
            let node = &rest[0];
            for other in before {
                prop_assert!(!contradict(node, other), "{node:?} {other:?}");
            }
            let complete = !before.iter().any(|other| contradict(&claim.node, other));
            prop_assert_eq!(complete, *node == claim.node);
            prop_assert_eq!(complete, !inventory.left_out.contains_key(&node.name));
        }
    }
}

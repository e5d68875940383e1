use super::*;
use crate::{
    host::facts::{COMMON_GSO_MAX, Hop, LocalUse, Uplink},
    nodes::{inventory, seen},
    paths::{self, uses::Use},
    probe_key::{PrivateKey, Secrets},
    reconcile::{mtu, peer_ids},
};
use ipip_abi::{
    Candidate, Encapsulation, Mac,
    probe::{CANDIDATES_PER_PEER, ProbeSecret, candidate_index},
};
use std::collections::BTreeSet;

const UPLINK_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const GATEWAY_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const IPIP0: Ipip0 = Ipip0 {
    index: 9,
    mac: Mac([2, 0, 0, 0, 0, 9]),
};

const NODES: &str = "
nodes:
  - {name: a1, internalIPs: [10.0.0.11], podCIDRs: [10.42.1.0/24], publicEndpoint: 203.0.113.11, realm: a}
  - {name: a2, internalIPs: [10.0.0.12], podCIDRs: [10.42.2.0/24], publicEndpoint: 203.0.113.12, realm: a}
  - {name: b1, internalIPs: [10.0.0.21], podCIDRs: [10.42.3.0/24], publicEndpoint: 198.51.100.21, realm: b}
";

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

/// This node is a1. a2 is on its link, and everything else is behind the gateway 10.0.0.1.
fn facts() -> Facts {
    let hop = |next_hop, mac| Hop {
        uplink: 2,
        next_hop: ip(next_hop),
        mac,
        source: Some(ip("10.0.0.11")),
    };
    Facts {
        missing_uplinks: BTreeSet::new(),
        reserved: BTreeMap::new(),
        on_link: BTreeSet::new(),
        lan_hosts: BTreeMap::new(),
        local: [ip("10.0.0.11")].into(),
        of_other_networks: BTreeSet::new(),
        gateways: [ip("10.0.0.1")].into(),
        uplinks: BTreeMap::from([(
            2,
            Uplink {
                name: "eth0".into(),
                mac: Some(UPLINK_MAC),
                mtu: 1500,
                gso_max: COMMON_GSO_MAX,
                addresses: [net("10.0.0.11/24")].into(),
            },
        )]),
        hops: BTreeMap::from([
            (ip("10.0.0.12"), hop("10.0.0.12", None)),
            (ip("198.51.100.21"), hop("10.0.0.1", Some(GATEWAY_MAC))),
            (ip("203.0.113.12"), hop("10.0.0.1", Some(GATEWAY_MAC))),
        ]),
    }
}

const SETTINGS: DatapathSettings = DatapathSettings {
    encapsulation: Encapsulation::Ipip,
    udp_port: 5555,
    mtu: None,
    foreign_ipip_passes: false,
    events_per_second: 100,
};

/// Everything on which the desired state of a1 depends.
struct Setup {
    inventory: Inventory,
    settings: DatapathSettings,
    facts: Facts,
    secrets: Secrets,
    uses: Uses,
}

impl Setup {
    fn new(nodes: &str) -> Self {
        Self {
            inventory: inventory::parse(nodes, "a1", None).unwrap(),
            settings: SETTINGS,
            facts: facts(),
            secrets: Secrets::default(),
            uses: Uses::new(),
        }
    }

    fn desired(&self) -> Desired {
        let names = self
            .inventory
            .nodes
            .iter()
            .skip(1)
            .map(|node| node.name.as_str());
        let ids = peer_ids::assign(&Ids::new(), names).ids;
        let own = &self.inventory.nodes[0];
        let can_probe = |peer: &Node| candidates::secret(peer, &self.secrets).is_some();
        compute(&Input {
            own,
            inventory: &seen::from(own, &self.inventory, &self.uses, can_probe),
            settings: &self.settings,
            facts: &self.facts,
            ipip0: IPIP0,
            secrets: &self.secrets,
            uses: &self.uses,
            ids: &ids,
        })
    }

    fn check_mtu(&self) -> Result<(), mtu::MtuDoesNotFit> {
        mtu::check(&self.settings, &self.inventory, &self.facts)
    }
}

/// The key of the best route to `destination`.
fn best(destination: &str) -> HostRouteKey {
    HostRouteKey::best(net(destination))
}

/// A route into the tunnel from the address of a1.
fn into_tunnel(mtu: Option<u32>) -> HostRoute {
    HostRoute::Interface {
        index: 9,
        source: Some(ip("10.0.0.11")),
        mtu,
    }
}

fn state_and_notes(desired: &Desired, id: u16) -> (PeerState, u8) {
    let info = desired.peer_info[&id];
    (PeerState::try_from(info.state).unwrap(), info.notes)
}

#[test]
fn a_peer_of_the_realm_is_reached_by_internal_ip_and_one_of_another_by_public_endpoint() {
    let desired = Setup::new(NODES).desired();
    let (a2, b1) = (desired.peers[&1], desired.peers[&2]);
    assert_eq!(a2.underlay, ip("10.0.0.12").into());
    assert_eq!(a2.source, ip("10.0.0.11").into());
    // The neighbour is not resolved, so the kernel must resolve it.
    assert_eq!((a2.flags, a2.next_hop_mac), (0, Mac::default()));
    assert_eq!(b1.underlay, ip("198.51.100.21").into());
    assert_eq!(b1.source, ip("10.0.0.11").into());
    assert_eq!(
        (b1.flags, b1.next_hop_mac, b1.uplink_mac),
        (Peer::MAC_KNOWN | Peer::PUBLIC, GATEWAY_MAC, UPLINK_MAC)
    );
    assert_eq!(
        (b1.ifindex, b1.mtu, b1.encapsulation),
        (2, 1480, Encapsulation::Ipip as u8)
    );
    assert_eq!(
        b1.header_sum,
        Peer::partial_sum(b1.source, b1.underlay, Encapsulation::Ipip)
    );
}

#[test]
fn two_realms_give_exactly_these_maps_and_routes() {
    let desired = Setup::new(NODES).desired();
    assert_eq!(
        desired.routes,
        BTreeMap::from([
            (net("10.42.1.0/24"), Route::new(0, Route::PODS)),
            (net("10.42.2.0/24"), Route::new(1, Route::PODS)),
            (net("10.42.3.0/24"), Route::new(2, Route::PODS)),
            (net("10.0.0.12/32"), Route::new(1, Route::NODE)),
            (net("10.0.0.21/32"), Route::new(2, Route::NODE)),
        ])
    );
    let address = |text, id, flags| (Addr::from(ip(text)), NodeAddr::new(id, flags));
    assert_eq!(
        desired.node_addrs,
        BTreeMap::from([
            address("10.0.0.11", 0, NodeAddr::OWN),
            address("203.0.113.11", 0, 0),
            address("10.0.0.12", 1, NodeAddr::UNDERLAY),
            address("203.0.113.12", 1, NodeAddr::PUBLIC),
            address("198.51.100.21", 2, NodeAddr::UNDERLAY | NodeAddr::PUBLIC),
            address("10.0.0.21", 2, 0),
        ])
    );
    let tunnel = into_tunnel(Some(1480));
    assert_eq!(
        desired.host_routes,
        BTreeMap::from([
            (best("10.0.0.21/32"), tunnel),
            (
                HostRouteKey::last_resort(net("10.42.1.0/24")),
                HostRoute::Unreachable
            ),
            (best("10.42.2.0/24"), tunnel),
            (best("10.42.3.0/24"), tunnel),
        ])
    );
    assert_eq!(desired.peer_info[&0].name(), "a1");
    assert_eq!(state_and_notes(&desired, 0), (PeerState::OwnNode, 0));
    assert_eq!(desired.config.pod_mtu, 1480);
    assert_eq!(
        (desired.config.ipip0_ifindex, desired.config.ipip0_mac),
        (9, IPIP0.mac)
    );
}

/// An uplink segments larger packets in software before they leave.
#[test]
fn pods_send_the_largest_gso_packets_that_every_uplink_accepts() {
    let mut setup = Setup::new(NODES);
    assert_eq!(setup.desired().config.pod_gso_max, 0);
    let uplink = setup.facts.uplinks.values().next().unwrap().clone();
    for (index, gso_max) in [(2, 512 << 10), (3, 192 << 10)] {
        let uplink = Uplink {
            gso_max,
            ..uplink.clone()
        };
        setup.facts.uplinks.insert(index, uplink);
    }
    assert_eq!(setup.desired().config.pod_gso_max, 192 << 10);
}

#[test]
fn a_public_endpoint_on_an_own_interface_is_the_source_towards_other_realms() {
    let mut setup = Setup::new(NODES);
    setup.facts.local.insert(ip("203.0.113.11"));
    let desired = setup.desired();
    assert_eq!(desired.peers[&1].source, ip("10.0.0.11").into());
    assert_eq!(desired.peers[&2].source, ip("203.0.113.11").into());
    assert_eq!(
        desired.node_addrs[&ip("203.0.113.11").into()],
        NodeAddr::new(0, NodeAddr::OWN)
    );
}

/// This node's second interface, with a public address behind NAT, is the one of the default route.
const TWO_NICS: &str = "
nodes:
  - {name: a1, internalIPs: [10.9.0.11], podCIDRs: [10.42.1.0/24], publicEndpoint: 203.0.113.11, realm: a}
  - {name: a2, internalIPs: [10.9.0.12, 10.0.0.12], podCIDRs: [10.42.2.0/24], publicEndpoint: 203.0.113.12, realm: a}
  - {name: b1, internalIPs: [10.0.0.21], podCIDRs: [10.42.3.0/24], publicEndpoint: 198.51.100.21, realm: b}
";

/// a1 has kubelet's address on the interface 3, and everything but its network is behind the gateway of interface 2.
fn two_nics(nodes: &str) -> Setup {
    let mut setup = Setup::new(nodes);
    let dmz = Uplink {
        name: "dmz".into(),
        addresses: [net("10.9.0.11/24")].into(),
        ..setup.facts.uplinks[&2].clone()
    };
    setup.facts.local.insert(ip("10.9.0.11"));
    setup.facts.uplinks.insert(3, dmz);
    let hop = Hop {
        uplink: 3,
        next_hop: ip("10.9.0.12"),
        mac: None,
        source: Some(ip("10.9.0.11")),
    };
    setup.facts.hops.insert(ip("10.9.0.12"), hop);
    setup
}

#[test]
fn the_source_towards_other_realms_is_that_of_the_route() {
    let desired = two_nics(TWO_NICS).desired();
    assert_eq!(desired.peers[&1].source, ip("10.9.0.11").into());
    assert_eq!(desired.peers[&2].source, ip("10.0.0.11").into());
    assert_eq!(desired.peers[&2].ifindex, 2);
}

/// Both on one interface: the gateway translates an address of its own network.
#[test]
fn the_source_towards_other_realms_is_an_internal_ip_if_it_is_in_the_gateways_network() {
    for (internal_ip, expected) in [("10.0.0.11/24", "10.0.0.11"), ("10.9.0.11/24", "10.0.0.99")] {
        let internal_ip = net(internal_ip);
        let nodes = NODES.replace("[10.0.0.11]", &format!("[{}]", internal_ip.ip()));
        let mut setup = Setup::new(&nodes);
        let uplink = setup.facts.uplinks.get_mut(&2).unwrap();
        uplink.addresses = [internal_ip, net("10.0.0.99/24")].into();
        let hop = setup.facts.hops.get_mut(&ip("198.51.100.21")).unwrap();
        hop.source = Some(ip("10.0.0.99"));
        let source = Ipv4Addr::from(setup.desired().peers[&2].source);
        assert_eq!(source, ip(expected));
    }
}

#[test]
fn tunnel_packets_to_any_address_of_an_uplink_are_for_this_node() {
    let desired = two_nics(TWO_NICS).desired();
    let roles = |address| desired.node_addrs[&ip(address).into()];
    assert_eq!(roles("10.9.0.11"), NodeAddr::new(0, NodeAddr::OWN));
    assert_eq!(
        roles("10.0.0.11"),
        NodeAddr::new(0, NodeAddr::OWN | NodeAddr::TUNNEL_ONLY)
    );
}

#[test]
fn a_peer_of_the_realm_may_send_with_each_of_its_internal_ips() {
    let desired = two_nics(TWO_NICS).desired();
    let underlay = NodeAddr::new(1, NodeAddr::UNDERLAY);
    for address in ["10.9.0.12", "10.0.0.12"] {
        assert_eq!(desired.node_addrs[&ip(address).into()], underlay);
    }
    let public = desired.node_addrs[&ip("203.0.113.12").into()];
    assert_eq!(public, NodeAddr::new(1, NodeAddr::PUBLIC));
}

#[test]
fn the_source_inside_a_realm_is_an_internal_ip_if_possible_of_the_routes_uplink() {
    let source = |internal_ips: &str, selected: &str| {
        let mut setup = two_nics(&TWO_NICS.replace("10.9.0.11", internal_ips));
        let hop = setup.facts.hops.get_mut(&ip("10.9.0.12")).unwrap();
        hop.source = Some(ip(selected));
        Ipv4Addr::from(setup.desired().peers[&1].source)
    };
    for (internal_ips, selected, expected) in [
        ("10.0.0.11, 10.9.0.11", "10.9.0.11", "10.9.0.11"),
        // The route names a source that no peer accepts.
        ("10.0.0.11, 10.9.0.11", "10.9.0.66", "10.9.0.11"),
        // The route names an InternalIP of another interface.
        ("10.9.0.11, 10.0.0.11", "10.0.0.11", "10.0.0.11"),
        ("10.0.0.11", "10.9.0.11", "10.0.0.11"),
        // NAT translates the uplink's address to the InternalIP.
        ("192.0.2.1", "10.9.0.11", "10.9.0.11"),
        ("192.0.2.1, 10.0.0.11", "10.9.0.11", "10.0.0.11"),
    ] {
        assert_eq!(
            source(internal_ips, selected),
            ip(expected),
            "{internal_ips} {selected}"
        );
    }
}

#[test]
fn a_peer_without_a_path_keeps_its_routes_and_has_the_reason_as_its_state() {
    let mut setup = Setup::new(&NODES.replace(", publicEndpoint: 198.51.100.21", ""));
    setup.facts.hops.remove(&ip("10.0.0.12"));
    let desired = setup.desired();
    assert_eq!(state_and_notes(&desired, 1).0, PeerState::NoUnderlayRoute);
    assert_eq!(state_and_notes(&desired, 2).0, PeerState::NoPublicEndpoint);
    assert_eq!(desired.peers, BTreeMap::new());
    assert_eq!(
        desired.routes[&net("10.42.3.0/24")],
        Route::new(2, Route::PODS)
    );
    assert_eq!(
        desired.host_routes[&best("10.42.3.0/24")],
        into_tunnel(None)
    );
    assert_eq!(
        desired.node_addrs[&ip("10.0.0.12").into()],
        NodeAddr::new(1, 0)
    );
}

#[test]
fn a_peer_of_the_realm_without_internal_ips_is_unreachable() {
    let desired = Setup::new(&NODES.replace("10.0.0.12", "")).desired();
    assert_eq!(state_and_notes(&desired, 1).0, PeerState::NoInternalIp);
}

#[test]
fn a_peer_whose_underlay_address_is_ours_is_unreachable() {
    let mut setup = Setup::new(NODES);
    setup.facts.local.insert(ip("198.51.100.21"));
    assert_eq!(
        state_and_notes(&setup.desired(), 2).0,
        PeerState::OwnAddress
    );
}

#[test]
fn an_internal_ip_of_nodes_in_two_realms_leads_to_the_node_of_the_own_realm() {
    let setup = Setup::new(&NODES.replace("10.0.0.21", "10.0.0.12"));
    let desired = setup.desired();
    assert_eq!(state_and_notes(&desired, 1), (PeerState::Reachable, 0));
    let shared = (PeerState::Reachable, PeerInfo::INTERNAL_IP_SHARED);
    assert_eq!(state_and_notes(&desired, 2), shared);
    let of_ours = Route::new(1, Route::NODE);
    assert_eq!(desired.routes[&net("10.0.0.12/32")], of_ours);
    assert!(!desired.host_routes.contains_key(&best("10.0.0.12/32")));
    let underlay = NodeAddr::new(1, NodeAddr::UNDERLAY);
    assert_eq!(desired.node_addrs[&ip("10.0.0.12").into()], underlay);
}

#[test]
fn an_internal_ip_of_nodes_in_two_other_realms_leads_to_the_older_one() {
    let setup = Setup::new(&NODES.replace("realm: b}", "realm: b}\n  - {name: c1, internalIPs: [10.0.0.21], podCIDRs: [10.42.4.0/24], publicEndpoint: 192.0.2.31, realm: c}"));
    let desired = setup.desired();
    assert_eq!(state_and_notes(&desired, 2), (PeerState::Reachable, 0));
    let notes = state_and_notes(&desired, 3).1;
    assert_eq!(notes, PeerInfo::INTERNAL_IP_SHARED);
    let address = net("10.0.0.21/32");
    assert_eq!(desired.routes[&address], Route::new(2, Route::NODE));
    assert!(desired.host_routes.contains_key(&best("10.0.0.21/32")));
}

#[test]
fn a_peer_without_its_public_endpoint_is_reached_inside_its_realm_only() {
    let contested = NODES.replace("198.51.100.21", "203.0.113.12");
    let desired = Setup::new(&contested).desired();
    assert_eq!(state_and_notes(&desired, 1), (PeerState::Reachable, 0));
    let expected = (PeerState::NoPublicEndpoint, PeerInfo::ENDPOINT_LEFT_OUT);
    assert_eq!(state_and_notes(&desired, 2), expected);

    let own = NODES.replace(", publicEndpoint: 203.0.113.11", "");
    let desired = Setup::new(&own).desired();
    assert_eq!(state_and_notes(&desired, 1), (PeerState::Reachable, 0));
    assert_eq!(
        state_and_notes(&desired, 2),
        (PeerState::NoOwnPublicEndpoint, 0)
    );
}

#[test]
fn an_internal_ip_that_is_also_the_public_endpoint_gets_no_host_route() {
    let setup = Setup::new(&NODES.replace("10.0.0.21", "198.51.100.21"));
    let desired = setup.desired();
    assert_eq!(state_and_notes(&desired, 2), (PeerState::Reachable, 0));
    let address = net("198.51.100.21/32");
    // The node may use it as a source, but this host sends to it through the uplink.
    assert_eq!(desired.routes[&address], Route::new(2, Route::NODE));
    let key = HostRouteKey::best(address);
    assert!(!desired.host_routes.contains_key(&key));
}

#[test]
fn a_pod_cidr_that_contains_an_address_or_gateway_of_this_host_gets_no_route() {
    for (pods, on_host) in [("10.42.3.0/24", "10.42.3.7"), ("10.0.0.0/30", "10.0.0.1")] {
        let mut setup = Setup::new(&NODES.replace("10.42.3.0/24", pods));
        setup.facts.local.insert(ip(on_host));
        let desired = setup.desired();
        let expected = (PeerState::Reachable, PeerInfo::POD_CIDR_HOLDS_HOST);
        assert_eq!(state_and_notes(&desired, 2), expected);
        assert!(!desired.routes.contains_key(&net(pods)));
        assert!(!desired.host_routes.contains_key(&best(pods)));
    }
}

#[test]
fn packets_to_an_own_internal_ip_on_no_interface_are_not_delivered_locally() {
    let mut setup = Setup::new(NODES);
    setup.facts.local = [ip("10.0.0.15")].into();
    let own = ip("10.0.0.11").into();
    assert_eq!(setup.desired().node_addrs[&own], NodeAddr::new(0, 0));
}

#[test]
fn an_internal_ip_of_another_realm_that_equals_an_own_address_or_gateway_gets_no_route() {
    for taken in ["10.0.0.1", "10.0.0.99"] {
        let mut setup = Setup::new(&NODES.replace("10.0.0.21", taken));
        setup.facts.local.insert(ip("10.0.0.99"));
        let desired = setup.desired();
        let expected = (PeerState::Reachable, PeerInfo::INTERNAL_IP_IS_LOCAL);
        assert_eq!(state_and_notes(&desired, 2), expected);
        assert!(!desired.routes.contains_key(&ip(taken).into()));
        let key = HostRouteKey::best(ip(taken).into());
        assert!(!desired.host_routes.contains_key(&key));
    }
}

#[test]
fn an_internal_ip_of_another_realm_that_the_own_network_uses_gets_no_route() {
    let b1 = net("10.0.0.21/32");
    let reserved = |network: &str, why| BTreeMap::from([(net(network), why)]);
    for (reserved, api_server) in [
        (reserved("10.0.0.21/32", LocalUse::Resolver), None),
        (reserved("10.0.0.16/28", LocalUse::Setting), None),
        (BTreeMap::new(), Some(ip("10.0.0.21"))),
    ] {
        let mut setup = Setup::new(NODES);
        setup.facts.reserved = reserved;
        setup.inventory.api_server.extend(api_server);
        let desired = setup.desired();
        let expected = (PeerState::Reachable, PeerInfo::INTERNAL_IP_IS_LOCAL);
        assert_eq!(state_and_notes(&desired, 2), expected);
        assert!(!desired.routes.contains_key(&b1));
        assert!(!desired.host_routes.contains_key(&HostRouteKey::best(b1)));
        // Its pods, and the node of the own realm, are reached.
        assert!(desired.routes.contains_key(&net("10.42.3.0/24")));
        assert!(desired.routes.contains_key(&net("10.0.0.12/32")));
        let own = &setup.inventory.nodes[0];
        let problems = local_use::problems(own, &setup.inventory, &setup.facts);
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].text.contains("10.0.0.21 of node b1"),
            "{problems:?}"
        );
    }
}

#[test]
fn a_machine_of_the_lan_that_answers_for_a_remote_internal_ip_is_noted_and_changes_no_route() {
    let mut setup = Setup::new(NODES);
    let plain = setup.desired();
    setup.facts.on_link = [(2, net("10.0.0.11/24")), (3, net("10.9.0.11/24"))].into();
    let own = setup.inventory.nodes[0].clone();
    let candidates = local_use::lan_candidates(&own, &setup.inventory, &setup.facts);
    assert_eq!(candidates, BTreeSet::from([(2, ip("10.0.0.21"))]));
    setup.facts.lan_hosts.insert(ip("10.0.0.21"), GATEWAY_MAC);
    let desired = setup.desired();
    let expected = (PeerState::Reachable, PeerInfo::LAN_CONFLICT);
    assert_eq!(state_and_notes(&desired, 2), expected);
    assert_eq!(desired.routes, plain.routes);
    assert_eq!(desired.host_routes, plain.host_routes);
    let problems = local_use::problems(&own, &setup.inventory, &setup.facts);
    assert!(
        problems[0].text.contains("10.0.0.21 of node b1"),
        "{problems:?}"
    );

    setup.facts.lan_hosts.clear();
    let reporters = ["c1", "c2", "c3", "c4"].map(String::from);
    setup.inventory.lan_conflicts = [(ip("10.0.0.11"), reporters.into())].into();
    let problems = local_use::problems(&own, &setup.inventory, &setup.facts);
    let said = "10.0.0.11 of this node is also the address of a machine in the network of c1, c2, c3 and 1 more";
    assert!(problems[0].text.contains(said), "{problems:?}");
}

#[test]
fn a_node_of_the_own_realm_and_a_public_endpoint_may_be_the_api_server_or_a_resolver() {
    let mut setup = Setup::new(&NODES.replace("10.0.0.21", "198.51.100.21"));
    setup.facts.reserved = BTreeMap::from([(net("10.0.0.12/32"), LocalUse::Resolver)]);
    setup.inventory.api_server.insert(ip("198.51.100.21"));
    let desired = setup.desired();
    for id in [1, 2] {
        assert_eq!(state_and_notes(&desired, id), (PeerState::Reachable, 0));
    }
}

#[test]
fn a_resolver_or_local_machine_is_no_further_address_of_a_node_of_the_realm() {
    let more = NODES.replace("[10.0.0.12]", "[10.0.0.12, 10.0.0.2]");
    assert_ne!(more, NODES);
    for why in [LocalUse::Resolver, LocalUse::Setting] {
        let mut setup = Setup::new(&more);
        let reserved = ["10.0.0.2/32", "10.0.0.12/32"].map(|it| (net(it), why));
        setup.facts.reserved = BTreeMap::from(reserved);
        let desired = setup.desired();
        let note = PeerInfo::INTERNAL_IP_IS_LOCAL;
        assert_eq!(state_and_notes(&desired, 1), (PeerState::Reachable, note));
        assert!(!desired.routes.contains_key(&net("10.0.0.2/32")));
        assert!(desired.routes.contains_key(&net("10.0.0.12/32")));
    }

    // Nor is a resolver of the Internet a node because it is also said to be a public endpoint.
    let public = NODES.replace("10.0.0.21", "198.51.100.21");
    let mut setup = Setup::new(&public);
    setup.facts.reserved = BTreeMap::from([(net("198.51.100.21/32"), LocalUse::Resolver)]);
    let desired = setup.desired();
    assert!(!desired.routes.contains_key(&net("198.51.100.21/32")));
}

#[test]
fn a_pod_cidr_that_contains_a_local_address_gets_no_route_and_one_inside_a_local_network_does() {
    let mut setup = Setup::new(NODES);
    for (local, is_routed) in [
        ("10.42.3.9/32", false),
        ("10.42.3.0/24", false),
        ("10.42.0.0/16", true),
    ] {
        setup.facts.reserved = BTreeMap::from([(net(local), LocalUse::Setting)]);
        let desired = setup.desired();
        let is_in = desired.routes.contains_key(&net("10.42.3.0/24"));
        assert_eq!(is_in, is_routed, "{local}");
    }
}

#[test]
fn a_node_of_the_realm_may_be_the_gateway() {
    let mut setup = Setup::new(NODES);
    setup.facts.gateways.insert(ip("10.0.0.12"));
    assert_eq!(
        state_and_notes(&setup.desired(), 1),
        (PeerState::Reachable, 0)
    );
}

#[test]
fn the_path_mtu_depends_on_the_encapsulation_and_pods_get_the_smallest() {
    let mut setup = Setup::new(&NODES.replace("realm: b}", "realm: b, encapsulation: udp}"));
    setup.settings.encapsulation = Encapsulation::Direct;
    let desired = setup.desired();
    assert_eq!((desired.peers[&1].mtu, desired.peers[&2].mtu), (1500, 1472));
    let udp_sum = Peer::partial_sum(
        desired.peers[&2].source,
        desired.peers[&2].underlay,
        Encapsulation::Udp,
    );
    assert_eq!(desired.peers[&2].header_sum, udp_sum);
    assert_eq!(desired.config.pod_mtu, 1472);
}

#[test]
fn a_configured_mtu_is_used_if_it_fits_and_refused_otherwise() {
    let mut setup = Setup::new(NODES);
    setup.settings.mtu = Some(1400);
    assert_eq!(setup.desired().config.pod_mtu, 1400);
    assert_eq!(setup.check_mtu(), Ok(()));
    setup.settings.mtu = Some(1481);
    let refusal = setup.check_mtu().unwrap_err();
    assert!(
        refusal
            .to_string()
            .ends_with("remedy: at most 1480, or auto"),
        "{refusal}"
    );
    assert_eq!(setup.desired().config.pod_mtu, 1480);
}

#[test]
fn an_own_internal_ip_on_no_interface_is_not_the_source_of_routes() {
    let mut setup = Setup::new(NODES);
    setup.facts.local.clear();
    let expected = HostRoute::Interface {
        index: 9,
        source: None,
        mtu: Some(1480),
    };
    let desired = setup.desired();
    assert_eq!(desired.host_routes[&best("10.42.2.0/24")], expected);
}

/// The candidates of the peer with this index, by name.
fn candidates_of(desired: &Desired, id: u16) -> BTreeMap<&'static str, Peer> {
    let first = candidate_index(id, 0);
    let own = desired.candidates.range(first..first + CANDIDATES_PER_PEER);
    own.map(|(index, path)| {
        let candidate = Candidate::try_from((index - first) as u8).unwrap();
        (candidate.name(), *path)
    })
    .collect()
}

#[test]
fn todays_path_is_one_of_the_candidates_and_the_others_have_entries_like_it() {
    let desired = Setup::new(NODES).desired();
    let (a2, b1) = (candidates_of(&desired, 1), candidates_of(&desired, 2));
    assert_eq!(a2["private-ipip"], desired.peers[&1]);
    assert_eq!(b1["public-ipip"], desired.peers[&2]);
    let names: Vec<&str> = a2.into_keys().chain(b1.clone().into_keys()).collect();
    assert_eq!(
        names,
        [
            "private-ipip",
            "private-udp",
            "public-ipip",
            "public-udp",
            "public-ipip",
            "public-udp"
        ]
    );
    let (ipip, udp) = (desired.peers[&2], b1["public-udp"]);
    let expected = Peer {
        mtu: 1472,
        encapsulation: Encapsulation::Udp as u8,
        header_sum: Peer::partial_sum(ipip.source, ipip.underlay, Encapsulation::Udp),
        ..ipip
    };
    assert_eq!(udp, expected);
    assert_eq!(desired.candidates.len(), 6);
}

#[test]
fn the_sources_of_candidates_are_those_of_their_addresses() {
    let mut setup = Setup::new(NODES);
    setup.facts.local.insert(ip("203.0.113.11"));
    let a2 = candidates_of(&setup.desired(), 1);
    assert_eq!(a2["private-udp"].source, ip("10.0.0.11").into());
    assert_eq!(a2["public-udp"].source, ip("203.0.113.11").into());
}

#[test]
fn direct_is_the_only_candidate_where_it_is_chosen() {
    let mut setup = Setup::new(NODES);
    setup.settings.encapsulation = Encapsulation::Direct;
    let desired = setup.desired();
    let expected = BTreeMap::from([("direct", desired.peers[&1])]);
    assert_eq!(candidates_of(&desired, 1), expected);
    assert_eq!(candidates_of(&desired, 2).len(), 2);
}

#[test]
fn an_address_of_this_host_or_node_or_without_a_route_is_no_candidate() {
    let unnamed = NODES.replace("realm: b}", "realm: ''}");
    let setup = |b1: &str| Setup::new(&unnamed.replace("10.0.0.21", b1));
    let private = |setup: &Setup| {
        let b1 = candidates_of(&setup.desired(), 2);
        assert!(b1.contains_key("public-ipip"));
        b1.contains_key("private-ipip")
    };
    let hop = facts().hops[&ip("10.0.0.12")].clone();
    let mut reached = setup("10.0.0.21");
    assert!(!private(&reached), "no route");
    reached.facts.hops.insert(ip("10.0.0.21"), hop.clone());
    assert!(private(&reached));
    reached.facts.local.insert(ip("10.0.0.21"));
    assert!(!private(&reached), "on an interface");
    // NAT translates it to the own address.
    let mut same = setup("10.0.0.11");
    same.facts.local = [ip("10.0.0.15")].into();
    same.facts.hops.insert(ip("10.0.0.11"), hop);
    assert!(!private(&same), "the own InternalIP");
}

#[test]
fn a_peer_with_a_key_and_a_probe_address_has_a_secret_and_nothing_else_changes() {
    let own = PrivateKey::from([1; 32]);
    let (a2, b1) = (PrivateKey::from([2; 32]), PrivateKey::from([3; 32]));
    let key = |key: &PrivateKey| format!("probeKey: {}, realm", key.public());
    let nodes = NODES
        .replacen("12, realm", &format!("12, {}", key(&a2)), 1)
        .replacen("21, realm", &format!("21, {}", key(&b1)), 1)
        .replace("10.42.3.0/24", "10.42.3.0/31");
    let mut setup = Setup::new(&nodes);
    let without = setup.desired();
    assert_eq!(without.probe_secrets, BTreeMap::new());
    assert_eq!(without.config.probe_address, ip("10.42.1.0").into());

    setup.secrets = Secrets::new("a1", Some(own.clone()));
    let peers = [("a2", a2.public()), ("b1", b1.public())];
    setup.secrets.set_peers(peers);
    let desired = setup.desired();
    let secret = ProbeSecret {
        address: ip("10.42.2.0").into(),
        ..setup.secrets.with("a2", a2.public()).unwrap()
    };
    assert_eq!(desired.probe_secrets, BTreeMap::from([(1, secret)]));
    assert_eq!(secret.own, own.public().identity("a1"));
    let same = Desired {
        probe_secrets: BTreeMap::new(),
        ..desired
    };
    assert_eq!(same, without);
}

#[test]
fn the_probe_address_is_in_the_first_pod_cidr_that_has_a_network_address() {
    for (cidrs, expected) in [
        ("10.42.1.0/24", "10.42.1.0"),
        ("10.42.1.0/31, 10.42.9.8/30, 10.42.8.0/24", "10.42.9.8"),
        ("10.42.1.0/32", "0.0.0.0"),
    ] {
        let desired = Setup::new(&NODES.replace("10.42.1.0/24", cidrs)).desired();
        assert_eq!(desired.config.probe_address, ip(expected).into());
    }
}

/// What probes have shown of a peer: the path, and the addresses from which it has answered.
fn shown(path: Option<(Candidate, &str)>, proven: &[&str]) -> Use {
    Use {
        path: path.map(|(number, address)| paths::candidate::Candidate {
            number,
            address: ip(address),
        }),
        mtu: None,
        proven: proven.iter().map(|it| ip(it)).collect(),
    }
}

#[test]
fn a_proven_path_is_used_and_one_that_is_no_candidate_is_not() {
    let mut setup = Setup::new(NODES);
    let udp = (Candidate::PublicUdp, "198.51.100.21");
    setup.uses = Uses::from([("b1".into(), shown(Some(udp), &[]))]);
    let desired = setup.desired();
    assert_eq!(desired.peers[&2], candidates_of(&desired, 2)["public-udp"]);
    assert_eq!(
        desired.host_routes[&best("10.42.3.0/24")],
        into_tunnel(Some(1472))
    );

    for other in [
        (Candidate::PublicUdp, "198.51.100.99"),
        (Candidate::PrivateUdp, "10.0.0.99"),
    ] {
        setup.uses = Uses::from([("b1".into(), shown(Some(other), &[]))]);
        let desired = setup.desired();
        assert_eq!(desired.peers[&2], candidates_of(&desired, 2)["public-ipip"]);
    }
}

#[test]
fn the_mtu_of_a_proven_path_is_the_proven_one_and_at_most_that_of_the_uplink() {
    let mut setup = Setup::new(NODES);
    for (found, expected) in [(None, 1480), (Some(1380), 1380), (Some(8981), 1480)] {
        let path = (Candidate::PublicIpip, "198.51.100.21");
        let shown = Use {
            mtu: found,
            ..shown(Some(path), &[])
        };
        setup.uses = Uses::from([("b1".into(), shown)]);
        let desired = setup.desired();
        assert_eq!(desired.peers[&2].mtu, expected);
        let route = into_tunnel(Some(expected.into()));
        assert_eq!(desired.host_routes[&best("10.42.3.0/24")], route);
        assert_eq!(candidates_of(&desired, 2)["public-ipip"].mtu, 1480);
    }
}

#[test]
fn an_address_belongs_to_the_peer_that_has_proven_it_if_it_states_it() {
    let address = "10.0.0.21";
    let nodes = format!(
        "{NODES}  - {{name: c1, internalIPs: [{address}], podCIDRs: [10.42.4.0/24], publicEndpoint: 192.0.2.31, realm: c}}\n"
    );
    let mut setup = Setup::new(&nodes);
    let owner = |setup: &Setup| setup.desired().node_addrs[&ip(address).into()];
    assert_eq!(owner(&setup), NodeAddr::new(2, 0));
    setup.uses = Uses::from([("c1".into(), shown(None, &[address, "10.0.0.99"]))]);
    assert_eq!(owner(&setup), NodeAddr::new(3, NodeAddr::UNDERLAY));
    let stranger = ip("10.0.0.99").into();
    assert_eq!(setup.desired().node_addrs.get(&stranger), None);
}

#[test]
fn a_peer_of_no_realm_has_no_private_path_until_a_probe_has_proven_it() {
    let (own, a2) = (PrivateKey::from([1; 32]), PrivateKey::from([2; 32]));
    let key = format!("10.0.0.12], probeKey: {}", a2.public());
    let nodes = NODES
        .replace(", realm: a", "")
        .replace(", publicEndpoint: 203.0.113.12", "")
        .replace("10.0.0.12]", &key);
    let mut setup = Setup::new(&nodes);
    setup.secrets = Secrets::new("a1", Some(own));
    setup.secrets.set_peers([("a2", a2.public())]);
    let state = |setup: &Setup| {
        let desired = setup.desired();
        let has_host_route = desired.host_routes.contains_key(&best("10.0.0.12/32"));
        (state_and_notes(&desired, 1).0, has_host_route)
    };
    assert_eq!(state(&setup), (PeerState::NotProven, false));
    let private = (Candidate::PrivateIpip, "10.0.0.12");
    setup.uses = Uses::from([("a2".into(), shown(Some(private), &["10.0.0.12"]))]);
    assert_eq!(state(&setup), (PeerState::Reachable, false));
    // A peer that cannot be probed is trusted as before.
    setup.secrets = Secrets::default();
    setup.uses = Uses::new();
    assert_eq!(state(&setup), (PeerState::Reachable, false));
}

#[test]
fn a_private_path_that_probes_have_found_is_never_direct_and_proves_one_address_only() {
    let nodes = NODES.replace("[10.0.0.21]", "[10.0.0.21, 10.9.0.21]");
    let mut setup = Setup::new(&nodes);
    setup.settings.encapsulation = Encapsulation::Direct;
    let hop = setup.facts.hops[&ip("10.0.0.12")].clone();
    setup.facts.hops.insert(ip("10.0.0.21"), hop);
    let private = (Candidate::PrivateIpip, "10.0.0.21");
    setup.uses = Uses::from([("b1".into(), shown(Some(private), &["10.0.0.21"]))]);
    let desired = setup.desired();
    assert_eq!(
        desired.peers[&2],
        candidates_of(&desired, 2)["private-ipip"]
    );
    assert_eq!(candidates_of(&desired, 2).len(), 4);
    assert!(!desired.host_routes.contains_key(&best("10.0.0.21/32")));
    let flags = |address: &str| desired.node_addrs[&ip(address).into()].flags;
    assert_eq!(flags("10.0.0.21"), NodeAddr::UNDERLAY);
    assert_eq!(flags("10.9.0.21"), 0);
}

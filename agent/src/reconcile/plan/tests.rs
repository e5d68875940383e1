use super::*;
use crate::{
    host::facts::{COMMON_GSO_MAX, Facts, Hop, Ipip0, Uplink},
    nodes::inventory::{Inventory, Node},
    paths::uses::Uses,
    probe_key::{PrivateKey, Secrets},
    reconcile::{
        datapath_settings::DatapathSettings,
        desired::{Input, compute},
        host_route::ForeignRoute,
        peer_ids::{Ids, assign},
    },
};
use ipip_abi::{Encapsulation, Mac, probe::CANDIDATES_PER_PEER};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const IPIP0: Ipip0 = Ipip0 {
    index: 9,
    mac: Mac([2, 0, 0, 0, 0, 9]),
};

fn node(number: u8, realm: &str, endpoint: bool, encapsulation: Option<Encapsulation>) -> Node {
    Node {
        is_found_near: false,
        name: format!("n{number}"),
        internal_ips: vec![Ipv4Addr::new(10, 0, 0, number)],
        pod_cidrs: vec![Ipv4Network::new(Ipv4Addr::new(10, 42, number, 0), 24).unwrap()],
        public_endpoint: endpoint.then(|| Ipv4Addr::new(203, 0, 113, number)),
        realm: realm.into(),
        encapsulation,
        probe_key: Some(key_of(number).public()),
    }
}

fn key_of(number: u8) -> PrivateKey {
    PrivateKey::from([number; 32])
}

/// The secrets of the own node with these peers.
fn secrets(peers: &[Node]) -> Secrets {
    let mut secrets = Secrets::new(&own().name, Some(key_of(250)));
    secrets.set_peers(
        peers
            .iter()
            .filter_map(|peer| Some((&*peer.name, peer.probe_key?))),
    );
    secrets
}

fn own() -> Node {
    node(250, "a", true, None)
}

/// Every node except those in `unrouted` is behind one gateway.
fn facts(unrouted: &BTreeSet<u8>) -> Facts {
    let hop = Hop {
        uplink: 2,
        next_hop: Ipv4Addr::new(10, 0, 0, 251),
        mac: None,
        source: Some(Ipv4Addr::new(10, 0, 0, 250)),
    };
    let uplink = Uplink {
        name: "eth0".into(),
        mac: None,
        mtu: 1500,
        gso_max: COMMON_GSO_MAX,
        addresses: [Ipv4Addr::new(10, 0, 0, 250).into()].into(),
    };
    let routed = (0..250).filter(|number| !unrouted.contains(number));
    Facts {
        missing_uplinks: BTreeSet::new(),
        reserved: BTreeMap::new(),
        on_link: BTreeSet::new(),
        lan_hosts: BTreeMap::new(),
        local: [Ipv4Addr::new(10, 0, 0, 250)].into(),
        of_other_networks: BTreeSet::new(),
        gateways: [hop.next_hop].into(),
        uplinks: [(2, uplink)].into(),
        hops: routed
            .flat_map(|n| [Ipv4Addr::new(10, 0, 0, n), Ipv4Addr::new(203, 0, 113, n)])
            .map(|address| (address, hop.clone()))
            .collect(),
    }
}

fn wanted(peers: &[Node], unrouted: &BTreeSet<u8>, previous: &Ids) -> (Desired, Ids) {
    let mut nodes = vec![own()];
    nodes.extend_from_slice(peers);
    let ids = assign(previous, peers.iter().map(|peer| peer.name.as_str())).ids;
    let inventory = Inventory {
        nodes,
        ..Inventory::default()
    };
    let settings = DatapathSettings {
        encapsulation: Encapsulation::Ipip,
        udp_port: 5555,
        mtu: None,
        foreign_ipip_passes: false,
        events_per_second: 100,
    };
    let desired = compute(&Input {
        own: &own(),
        inventory: &inventory,
        settings: &settings,
        facts: &facts(unrouted),
        ipip0: IPIP0,
        secrets: &secrets(peers),
        uses: &Uses::new(),
        ids: &ids,
    });
    (desired, ids)
}

fn after(actual: &Actual, steps: &[Step]) -> Actual {
    steps.iter().fold(actual.clone(), |mut actual, step| {
        actual.record(step);
        actual
    })
}

/// The actual state of a node that has reconciled `peers`, and the indexes of the peers.
fn settled(peers: &[Node]) -> (Actual, Ids) {
    let (desired, ids) = wanted(peers, &BTreeSet::new(), &Ids::new());
    let steps = diff(&desired, &Actual::default()).steps;
    (after(&Actual::default(), &steps), ids)
}

fn key(destination: &str, metric: u32) -> HostRouteKey {
    HostRouteKey {
        destination: destination.parse().unwrap(),
        metric,
    }
}

#[test]
fn a_removed_peer_is_deleted_from_the_routes_first_and_from_peer_info_last() {
    let (actual, ids) = settled(&[node(1, "b", true, None)]);
    let (desired, _) = wanted(&[], &BTreeSet::new(), &ids);
    let steps = diff(&desired, &actual).steps;
    let kinds: Vec<String> = steps
        .iter()
        .map(|step| format!("{step:?}").split('(').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds,
        [
            "DeleteHostRoute",
            "DeleteHostRoute",
            "DeleteRoute",
            "DeleteRoute",
            "DeleteNodeAddr",
            "DeleteNodeAddr",
            "SetProbeSecret",
            "SetCandidate",
            "SetCandidate",
            "SetCandidate",
            "SetCandidate",
            "SetPeer",
            "SetPeerInfo",
        ]
    );
}

#[test]
fn a_peer_with_another_key_gets_another_secret_and_nothing_else_is_written() {
    let mut peer = node(1, "b", true, None);
    let (actual, ids) = settled(std::slice::from_ref(&peer));
    peer.probe_key = Some(key_of(2).public());
    let (desired, _) = wanted(std::slice::from_ref(&peer), &BTreeSet::new(), &ids);
    let secret = desired.probe_secrets[&1];
    assert_ne!(secret, actual.probe_secrets[&1]);
    assert_eq!(
        diff(&desired, &actual).steps,
        [Step::SetProbeSecret(1, secret)]
    );

    peer.probe_key = None;
    let (desired, _) = wanted(&[peer], &BTreeSet::new(), &ids);
    let cleared = Step::SetProbeSecret(1, ProbeSecret::default());
    assert_eq!(diff(&desired, &actual).steps, [cleared]);
}

/// A static route that comes before ours.
const STATIC: ForeignRoute = ForeignRoute {
    protocol: 4,
    oif: Some(7),
    gateway: None,
    is_first: true,
};

#[test]
fn a_foreign_route_to_pods_stays_behind_ours_and_one_to_an_internal_ip_in_place_of_ours() {
    let (desired, _) = wanted(&[node(1, "b", true, None)], &BTreeSet::new(), &Ids::new());
    let (pods, part) = (key("10.42.1.0/24", 0), key("10.42.1.64/26", 0));
    let internal_ip = key("10.0.0.1/32", 0);
    let unrelated = [key("10.0.0.1/32", 100), key("172.16.0.0/12", 0)];
    let all = [pods, part, internal_ip].into_iter().chain(unrelated);
    let actual = Actual {
        foreign_routes: all.map(|key| (key, STATIC)).collect(),
        ..Actual::default()
    };
    for ours in [pods, internal_ip] {
        assert!(desired.host_routes.contains_key(&ours));
    }
    let plan = diff(&desired, &actual);
    let found: Vec<_> = plan.conflicts.iter().map(|it| (it.key, it.kind)).collect();
    let expected = [
        (internal_ip, ConflictKind::TheirsStays),
        (pods, ConflictKind::OursIsFirst),
        (part, ConflictKind::TheirsIsLonger),
    ];
    assert_eq!(found, expected);
    let result = after(&actual, &plan.steps);
    let mut ours = desired.host_routes.clone();
    ours.remove(&internal_ip);
    let ours: BTreeMap<_, _> = ours.iter().map(|(k, v)| (*k, Some(*v))).collect();
    assert_eq!(result.host_routes, ours);
    assert_eq!(result.foreign_routes.len(), actual.foreign_routes.len());
    assert_eq!(diff(&desired, &result).steps, [], "it writes once");
}

#[test]
fn a_route_of_ours_that_is_unwanted_or_edited_is_corrected() {
    let peers = [node(1, "b", true, None)];
    let (mut actual, ids) = settled(&peers);
    let (desired, _) = wanted(&peers, &BTreeSet::new(), &ids);
    let pods = key("10.42.1.0/24", 0);
    let Some(Some(HostRoute::Interface { mtu, .. })) = actual.host_routes.get_mut(&pods) else {
        panic!("{actual:?} has no route to the pods of the peer");
    };
    *mtu = Some(1280);
    let node = key("10.0.0.1/32", 0);
    actual.host_routes.insert(node, None).unwrap();
    let stray = key("10.99.0.0/16", 0);
    let wrong_metric = key("10.42.1.0/24", 5);
    for unwanted in [stray, wrong_metric] {
        let route = Some(desired.host_routes[&pods]);
        actual.host_routes.insert(unwanted, route);
    }
    let steps = diff(&desired, &actual).steps;
    assert_eq!(
        steps,
        [
            Step::SetHostRoute(node, desired.host_routes[&node]),
            Step::SetHostRoute(pods, desired.host_routes[&pods]),
            Step::DeleteHostRoute(wrong_metric),
            Step::DeleteHostRoute(stray),
        ]
    );
}

/// Checks the conditions that must hold after every single write, so that no packet meets a half-written change.
fn check_consistent(state: &Actual) -> Result<(), TestCaseError> {
    for route in state.routes.values() {
        prop_assert!(
            state.peer_info.contains_key(&route.peer),
            "{route:?} refers to an unknown peer"
        );
    }
    for id in state.probe_secrets.keys() {
        prop_assert!(state.peer_info.contains_key(id), "a secret of no peer");
    }
    for index in state.candidates.keys() {
        let id = (index / CANDIDATES_PER_PEER) as u16;
        prop_assert!(state.peer_info.contains_key(&id), "a path to no peer");
    }
    for node in state.node_addrs.values() {
        prop_assert!(
            node.flags & NodeAddr::UNDERLAY == 0 || state.peers.contains_key(&node.peer),
            "{node:?} refers to a peer without a path"
        );
    }
    for key in state.host_routes.keys() {
        let known = state.routes.contains_key(&key.destination);
        prop_assert!(known, "{key:?} is not in ROUTES");
    }
    Ok(())
}

prop_compose! {
    fn peers()(
        rows in prop::collection::btree_map(
            1u8..12,
            (prop_oneof![Just("a"), Just("b")], any::<bool>(), prop_oneof![
                Just(None),
                Just(Some(Encapsulation::Udp)),
                Just(Some(Encapsulation::Direct)),
            ]),
            0..8,
        )
    ) -> Vec<Node> {
        rows.into_iter()
            .map(|(number, (realm, endpoint, encapsulation))| node(number, realm, endpoint, encapsulation))
            .collect()
    }
}

proptest! {
    #[test]
    fn a_plan_leads_from_any_state_to_the_desired_one_and_every_step_is_consistent(
        before in peers(),
        later in peers(),
        unrouted in prop::collection::btree_set(1u8..12, 0..3),
    ) {
        let (actual, ids) = settled(&before);
        let (desired, _) = wanted(&later, &unrouted, &ids);
        let steps = diff(&desired, &actual).steps;
        let mut state = actual;
        for step in &steps {
            state.record(step);
            check_consistent(&state)?;
        }
        prop_assert_eq!(&state.config, &desired.config);
        prop_assert_eq!(&state.peers, &desired.peers);
        prop_assert_eq!(&state.peer_info, &desired.peer_info);
        prop_assert_eq!(&state.probe_secrets, &desired.probe_secrets);
        prop_assert_eq!(&state.candidates, &desired.candidates);
        prop_assert_eq!(&state.routes, &desired.routes);
        prop_assert_eq!(&state.node_addrs, &desired.node_addrs);
        prop_assert_eq!(diff(&desired, &state), Plan::default());
    }
}

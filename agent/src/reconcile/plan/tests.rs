use super::*;
use crate::{
    config::from_pairs,
    host::facts::{COMMON_GSO_MAX, Facts, Hop, Ipip0, Uplink},
    nodes::inventory::{Inventory, Node},
    reconcile::{
        desired::desired,
        peer_ids::{Ids, assign},
    },
};
use ipip_abi::{Encapsulation, Mac};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const IPIP0: Ipip0 = Ipip0 {
    index: 9,
    mac: Mac([2, 0, 0, 0, 0, 9]),
};

fn node(number: u8, realm: &str, endpoint: bool, encapsulation: Option<Encapsulation>) -> Node {
    Node {
        name: format!("n{number}"),
        internal_ips: vec![Ipv4Addr::new(10, 0, 0, number)],
        pod_cidrs: vec![Ipv4Network::new(Ipv4Addr::new(10, 42, number, 0), 24).unwrap()],
        public_endpoint: endpoint.then(|| Ipv4Addr::new(203, 0, 113, number)),
        realm: realm.into(),
        encapsulation,
    }
}

fn own() -> Node {
    node(250, "a", true, None)
}

/// Everything is behind one gateway, except what is `unrouted`.
fn facts(unrouted: &BTreeSet<u8>) -> Facts {
    let hop = Hop {
        uplink: 2,
        next_hop: Ipv4Addr::new(10, 0, 0, 251),
        mac: None,
    };
    let uplink = Uplink {
        name: "eth0".into(),
        mac: None,
        mtu: 1500,
        gso_max: COMMON_GSO_MAX,
    };
    let routed = (0..250).filter(|number| !unrouted.contains(number));
    Facts {
        missing_uplinks: BTreeSet::new(),
        local: [Ipv4Addr::new(10, 0, 0, 250)].into(),
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
    let config = from_pairs("n250", &[]);
    let inventory = Inventory { nodes };
    let desired = desired(&own(), &inventory, &config, &facts(unrouted), IPIP0, &ids);
    (desired, ids)
}

fn after(actual: &Actual, steps: &[Step]) -> Actual {
    steps.iter().fold(actual.clone(), |mut actual, step| {
        actual.note(step);
        actual
    })
}

/// The state of a node that has done everything for `peers`.
fn settled(peers: &[Node]) -> (Actual, Ids) {
    let (desired, ids) = wanted(peers, &BTreeSet::new(), &Ids::new());
    let steps = plan(&desired, &Actual::default()).steps;
    (after(&Actual::default(), &steps), ids)
}

fn foreign(destination: &str, metric: Option<u32>) -> KernelRoute {
    KernelRoute {
        metric,
        ..KernelRoute::on_link(destination.parse().unwrap(), 3)
    }
}

#[test]
fn a_removed_peer_goes_from_the_routes_first_and_from_peers_last() {
    let (actual, ids) = settled(&[node(1, "b", true, None)]);
    let (desired, _) = wanted(&[], &BTreeSet::new(), &ids);
    let steps = plan(&desired, &actual).steps;
    let kinds: Vec<String> = steps
        .iter()
        .map(|step| format!("{step:?}").split('(').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds,
        [
            "DeleteKernelRoute",
            "DeleteKernelRoute",
            "DeleteRoute",
            "DeleteRoute",
            "DeleteNodeAddr",
            "DeleteNodeAddr",
            "SetPeer",
            "SetPeerInfo",
        ]
    );
}

#[test]
fn routes_of_others_stay_and_one_in_the_place_of_ours_is_reported() {
    let (desired, _) = wanted(&[node(1, "b", true, None)], &BTreeSet::new(), &Ids::new());
    let (blocking, beside, elsewhere) = (
        foreign("10.42.1.0/24", None),
        foreign("10.0.0.1/32", Some(100)),
        foreign("172.16.0.0/12", None),
    );
    let actual = Actual {
        kernel_routes: vec![blocking, beside, elsewhere],
        ..Actual::default()
    };
    let plan = plan(&desired, &actual);
    assert_eq!(plan.conflicts, [blocking]);
    let result = after(&actual, &plan.steps).kernel_routes;
    for route in [blocking, beside, elsewhere] {
        assert!(result.contains(&route), "{route:?}");
    }
    assert!(
        !result
            .iter()
            .any(|route| route.protocol == ROUTE_PROTOCOL
                && route.destination == blocking.destination)
    );
}

#[test]
fn a_route_of_ours_that_nobody_wants_or_that_differs_is_mended() {
    let peers = [node(1, "b", true, None)];
    let (mut actual, ids) = settled(&peers);
    let (desired, _) = wanted(&peers, &BTreeSet::new(), &ids);
    let stray = KernelRoute {
        protocol: ROUTE_PROTOCOL,
        ..foreign("10.99.0.0/16", None)
    };
    actual.kernel_routes[0].mtu = Some(1280);
    let wrong_metric = KernelRoute {
        metric: Some(5),
        ..actual.kernel_routes[1]
    };
    actual.kernel_routes.extend([stray, wrong_metric]);
    let steps = plan(&desired, &actual).steps;
    assert_eq!(steps.len(), 3, "{steps:?}");
    assert!(steps.contains(&Step::DeleteKernelRoute(stray)));
    assert!(steps.contains(&Step::DeleteKernelRoute(wrong_metric)));
}

/// What holds after every single write, so that no packet meets a half of a change.
fn check_no_half_done_state(state: &Actual) -> Result<(), TestCaseError> {
    for route in state.routes.values() {
        prop_assert!(
            state.peer_info.contains_key(&route.peer),
            "{route:?} of an unknown peer"
        );
    }
    for node in state.node_addrs.values() {
        prop_assert!(
            node.flags & NodeAddr::UNDERLAY == 0 || state.peers.contains_key(&node.peer),
            "{node:?} of a peer without a path"
        );
    }
    for route in &state.kernel_routes {
        let known = state.routes.contains_key(&route.destination);
        prop_assert!(known, "{route:?}, which the datapath does not know");
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
    fn a_plan_leads_from_any_state_to_the_desired_one_without_a_half_done_state(
        before in peers(),
        later in peers(),
        unrouted in prop::collection::btree_set(1u8..12, 0..3),
    ) {
        let (actual, ids) = settled(&before);
        let (desired, _) = wanted(&later, &unrouted, &ids);
        let steps = plan(&desired, &actual).steps;
        let mut state = actual;
        for step in &steps {
            state.note(step);
            check_no_half_done_state(&state)?;
        }
        prop_assert_eq!(&state.config, &desired.config);
        prop_assert_eq!(&state.peers, &desired.peers);
        prop_assert_eq!(&state.peer_info, &desired.peer_info);
        prop_assert_eq!(&state.routes, &desired.routes);
        prop_assert_eq!(&state.node_addrs, &desired.node_addrs);
        prop_assert_eq!(plan(&desired, &state), Plan::default());
    }
}

//! When the kernel is asked again for the route to a peer.

use ipip_agent::{
    host::observe::{Observer, Settings},
    nodes::{
        inventory::{self, Node},
        path::Underlay,
    },
};
use ipip_netlink::{Changes, Netlink};
use ipip_testkit::test_ns::TestNs;
use std::{collections::BTreeSet, net::Ipv4Addr};

const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 12);

/// A host whose routes are in table 77, which the agent does not list; the routes to peers lead to 10.0.0.1.
struct Host {
    netns: TestNs,
    observer: Observer,
    own: Node,
}

impl Host {
    fn new() -> Self {
        let netns = TestNs::new();
        netns.sh("ip link set lo up
             ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up
             ip addr add 10.0.0.11/24 dev eth0
             ip rule add lookup 77
             ip route add default via 10.0.0.1 table 77");
        let observer = || Observer::new(Netlink::open().unwrap(), Settings::default());
        let observer = netns.run(observer).unwrap();
        let text = "nodes:\n- {name: a1, internalIPs: [10.0.0.11]}\n";
        let inventory = inventory::parse(text, "a1", None).unwrap();
        Self {
            netns,
            observer,
            own: inventory.node("a1").unwrap().clone(),
        }
    }

    /// The next hop to the peer after these changes.
    fn next_hop(&mut self, changes: Changes) -> Ipv4Addr {
        let underlays = BTreeSet::from([Underlay {
            address: PEER,
            in_realm: false,
        }]);
        let (observer, own) = (&mut self.observer, &self.own);
        let facts = observer.facts(own, &underlays, &BTreeSet::new(), changes);
        facts.unwrap().hops[&PEER].next_hop
    }
}

#[test]
fn a_resync_asks_again_if_addresses_routes_or_rules_look_different() {
    for change in [
        "ip rule add to 192.0.2.1 lookup main",
        "ip route add 192.0.2.0/24 via 10.0.0.1",
        "ip addr add 10.0.0.12/24 dev eth0",
    ] {
        let mut host = Host::new();
        assert_eq!(host.next_hop(Changes::EVERYTHING).octets(), [10, 0, 0, 1]);
        host.netns
            .sh("ip route replace default via 10.0.0.2 table 77");
        let resync = host.next_hop(Changes::WITHOUT_EVENTS);
        assert_eq!(resync.octets(), [10, 0, 0, 1], "nobody has reported it");
        host.netns.sh(change);
        let resync = host.next_hop(Changes::WITHOUT_EVENTS);
        assert_eq!(resync.octets(), [10, 0, 0, 2], "{change}");
    }
}

#[test]
fn a_reported_change_of_routes_is_seen_at_once_and_an_unreported_one_within_ten_minutes() {
    let mut host = Host::new();
    assert_eq!(host.next_hop(Changes::EVERYTHING).octets(), [10, 0, 0, 1]);
    host.netns
        .sh("ip route replace default via 10.0.0.2 table 77");
    let reported = Changes {
        routes: true,
        ..Changes::default()
    };
    assert_eq!(host.next_hop(reported).octets(), [10, 0, 0, 2]);
    host.netns
        .sh("ip route replace default via 10.0.0.3 table 77");
    let resyncs = (0..20).map(|_| host.next_hop(Changes::WITHOUT_EVENTS).octets());
    assert!(resyncs.into_iter().any(|it| it == [10, 0, 0, 3]));
}

//! Requests of the client, compared with the output of `ip`.

use ipip_netlink::{LinkChange, NetNs, Netlink, Route, RouteKind, Scope, Veth};
use ipip_testkit::test_ns::TestNs;
use ipnetwork::Ipv4Network;
use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A client in `ns`, with `v0` = 10.9.0.1/24 and its other end `v1`, both up.
fn with_veth(ns: &NetNs) -> (Netlink, u32) {
    let mut netlink = Netlink::open_in(ns).unwrap();
    netlink
        .add_veth(&Veth {
            name: "v0",
            peer_name: "v1",
            ..Veth::default()
        })
        .unwrap();
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    for name in ["v1", "v0"] {
        let index = netlink.link(name).unwrap().unwrap().index;
        netlink.change_link(index, &up).unwrap();
    }
    let index = netlink.link("v0").unwrap().unwrap().index;
    netlink.add_address(index, net("10.9.0.1/24")).unwrap();
    (netlink, index)
}

#[test]
fn a_veths_macs_are_explicit_so_that_udev_does_not_change_them() {
    let ns = TestNs::new();
    let (_netlink, _) = with_veth(&ns);
    // Only a sysfs that was mounted in the namespace shows its interfaces.
    let script = format!(
        "ip netns exec {} sh -c 'cat /sys/class/net/v*/addr_assign_type; cat /sys/class/net/v*/address'",
        ns.name()
    );
    let printed = ns.sh(&script);
    let lines: Vec<&str> = printed.lines().collect();
    // 3 is NET_ADDR_SET; a MAC that the kernel has chosen has NET_ADDR_RANDOM (1).
    assert_eq!(lines[..2], ["3", "3"]);
    assert_ne!(lines[2], lines[3]);
}

#[test]
fn a_veth_is_created_with_its_peer_in_another_namespace() {
    let (here, there) = (TestNs::new(), TestNs::new());
    let mut netlink = Netlink::open_in(&here).unwrap();
    // The name of the peer is in use here; the peer is created elsewhere, so this is no conflict.
    netlink
        .add_veth(&Veth {
            name: "eth0",
            peer_name: "other",
            ..Veth::default()
        })
        .unwrap();
    netlink
        .add_veth(&Veth {
            name: "pod1",
            peer_name: "eth0",
            peer_ns: Some(&there),
            mtu: Some(1480),
            gso_ipv4_max: None,
            mac: Some(MAC),
            peer_mac: Some(PEER_MAC),
        })
        .unwrap();
    let host = netlink.link("pod1").unwrap().unwrap();
    let pod = Netlink::open_in(&there)
        .unwrap()
        .link("eth0")
        .unwrap()
        .unwrap();
    assert_eq!((host.mac, pod.mac), (MAC, PEER_MAC));
    assert_eq!((host.mtu, pod.mtu), (1480, 1480));
    assert_eq!(
        (host.peer_index, pod.peer_index),
        (Some(pod.index), Some(host.index))
    );
    assert!(host.peer_netns_id.is_some());
    assert_eq!(host.kind.as_deref(), Some("veth"));
    assert!(host.ethernet && !host.up && !host.loopback);

    netlink.delete_link(host.index).unwrap();
    assert_eq!(
        Netlink::open_in(&there).unwrap().link("eth0").unwrap(),
        None
    );
}

#[test]
fn a_refusal_names_the_object_the_error_number_and_the_kernels_message() {
    let ns = TestNs::new();
    let (mut netlink, index) = with_veth(&ns);
    let twice = netlink.add_veth(&Veth {
        name: "v0",
        peer_name: "v9",
        ..Veth::default()
    });
    let error = twice.unwrap_err();
    assert!(error.is_already_exists());
    assert!(
        error.to_string().contains("create veth v0 with peer v9"),
        "{error}"
    );

    let wrong = Route::through(net("10.8.0.0/16"), ip("192.0.2.1"), index);
    let error = netlink.replace_route(&wrong).unwrap_err().to_string();
    assert!(error.contains("10.8.0.0/16"), "{error}");
    assert!(error.contains("invalid gateway"), "{error}");

    assert!(netlink.delete_link(9999).unwrap_err().is_not_found());
    // The socket still works after refusals.
    assert_eq!(netlink.link("absent").unwrap(), None);
    assert_eq!(netlink.link("v0").unwrap().unwrap().index, index);
}

#[test]
fn every_field_of_a_link_can_be_changed() {
    let (ns, there) = (TestNs::new(), TestNs::new());
    let (mut netlink, index) = with_veth(&ns);
    ns.sh("ip link add br0 type bridge");
    let bridge = netlink.link("br0").unwrap().unwrap();
    assert_eq!(bridge.kind.as_deref(), Some("bridge"));
    let change = LinkChange {
        up: Some(false),
        mtu: Some(1400),
        gso_ipv4_max: Some(100_000),
        noarp: Some(true),
        mac: Some(MAC),
        name: Some("w0"),
        ns: None,
        master: Some(bridge.index),
        alias: Some("free text"),
    };
    netlink.change_link(index, &change).unwrap();
    let link = netlink.link("w0").unwrap().unwrap();
    assert_eq!(link.gso_ipv4_max, Some(100_000));
    assert_eq!(link.alias.as_deref(), Some("free text"));
    assert_eq!((link.index, link.mtu, link.mac), (index, 1400, MAC));
    assert!(!link.up && link.noarp);
    assert_eq!(link.master, Some(bridge.index));

    let change = LinkChange {
        master: Some(0),
        noarp: Some(false),
        ..LinkChange::default()
    };
    netlink.change_link(index, &change).unwrap();
    let link = netlink.link("w0").unwrap().unwrap();
    assert!(!link.noarp && link.master.is_none());

    let change = LinkChange {
        ns: Some(&there),
        name: Some("eth0"),
        ..LinkChange::default()
    };
    netlink.change_link(index, &change).unwrap();
    assert_eq!(netlink.link("w0").unwrap(), None);
    assert!(
        Netlink::open_in(&there)
            .unwrap()
            .link("eth0")
            .unwrap()
            .is_some()
    );
}

#[test]
fn addresses_are_listed_with_prefix_and_scope() {
    let ns = TestNs::new();
    let (mut netlink, index) = with_veth(&ns);
    netlink.add_address(index, net("10.42.1.7/32")).unwrap();
    ns.sh("ip link set lo up");
    let addresses = netlink.addresses().unwrap();
    let of = |text| addresses.iter().find(|a| a.network == net(text)).unwrap();
    assert_eq!(
        (of("10.9.0.1/24").index, of("10.9.0.1/24").scope),
        (index, Scope::Global)
    );
    assert_eq!(of("10.42.1.7/32").index, index);
    assert_eq!(of("127.0.0.1/8").scope, Scope::Host);
    assert!(
        ns.sh("ip -4 addr show v0")
            .contains("10.9.0.1/24 brd 10.9.0.255 scope global v0")
    );
}

#[test]
fn a_route_is_listed_as_it_was_set_and_deleted_by_the_same_fields() {
    let ns = TestNs::new();
    let (mut netlink, index) = with_veth(&ns);
    let gateway = ip("10.9.0.2");
    let route = Route {
        mtu: Some(1400),
        metric: Some(50),
        source: Some(ip("10.9.0.1")),
        protocol: 77,
        ..Route::through(net("10.42.0.0/16"), gateway, index)
    };
    let onlink = Route {
        onlink: true,
        ..Route::through(net("10.43.0.0/16"), ip("192.0.2.1"), index)
    };
    let unreachable = Route {
        kind: RouteKind::Unreachable,
        oif: None,
        scope: Scope::Global,
        metric: Some(4000),
        ..Route::on_link(net("10.44.0.0/16"), 0)
    };
    let blackhole = Route {
        kind: RouteKind::Blackhole,
        destination: net("10.45.0.0/16"),
        ..unreachable
    };
    let pod = Route::on_link(net("10.42.1.7/32"), index);
    let default = Route::through(net("0.0.0.0/0"), gateway, index);
    let all = [route, onlink, unreachable, blackhole, pod, default];
    for route in &all {
        netlink.replace_route(route).unwrap();
        // Repeating it is no error, and adds no second route.
        netlink.replace_route(route).unwrap();
    }
    let listed = netlink.routes().unwrap();
    for route in &all {
        let same: Vec<_> = listed
            .iter()
            .filter(|r| r.destination == route.destination)
            .collect();
        assert_eq!(same, [route]);
    }
    assert_eq!(
        ns.sh("ip route show 10.42.0.0/16").trim(),
        "10.42.0.0/16 via 10.9.0.2 dev v0 proto 77 src 10.9.0.1 metric 50 mtu 1400"
    );

    let elsewhere = Route {
        gateway: Some(ip("10.9.0.3")),
        ..route
    };
    netlink.replace_route(&elsewhere).unwrap();
    let listed = netlink.routes().unwrap();
    assert!(listed.contains(&elsewhere) && !listed.contains(&route));
    assert!(netlink.delete_route(&route).unwrap_err().is_not_found());
    for route in [elsewhere, onlink, unreachable, blackhole, pod, default] {
        netlink.delete_route(&route).unwrap();
    }
    assert_eq!(
        netlink.routes().unwrap().len(),
        1,
        "the link's own prefix is left"
    );
}

#[test]
fn only_the_main_table_is_listed_and_each_of_several_next_hops() {
    let ns = TestNs::new();
    let (mut netlink, _) = with_veth(&ns);
    ns.sh("ip route add 10.50.0.0/16 via 10.9.0.2 table 100");
    ns.sh("ip route add 10.51.0.0/16 nexthop via 10.9.0.2 nexthop via 10.9.0.3");
    let routes = netlink.routes().unwrap();
    assert!(
        routes
            .iter()
            .all(|route| route.destination != net("10.50.0.0/16"))
    );
    let gateways: Vec<_> = routes
        .iter()
        .filter(|route| route.destination == net("10.51.0.0/16"))
        .map(|route| route.gateway.unwrap())
        .collect();
    assert_eq!(gateways, [ip("10.9.0.2"), ip("10.9.0.3")]);
}

#[test]
fn a_table_of_ten_thousand_routes_is_read_completely() {
    let ns = TestNs::new();
    let (mut netlink, _) = with_veth(&ns);
    ns.sh("for a in $(seq 0 39); do for b in $(seq 0 249); do
           echo route add 10.$((a + 100)).$b.0/24 via 10.9.0.2
         done; done | ip -batch -");
    assert_eq!(netlink.routes().unwrap().len(), 10_001);
}

#[test]
fn route_to_distinguishes_gateway_link_local_and_unreachable() {
    let ns = TestNs::new();
    let (mut netlink, index) = with_veth(&ns);
    ns.sh("ip link set lo up; ip route add 10.42.0.0/16 via 10.9.0.2; ip route add unreachable 10.43.0.0/16; ip route add blackhole 10.44.0.0/16");
    let hop = netlink.route_to(ip("10.42.3.4")).unwrap().unwrap();
    assert_eq!(
        (hop.oif, hop.gateway, hop.source),
        (index, Some(ip("10.9.0.2")), Some(ip("10.9.0.1")))
    );
    let hop = netlink.route_to(ip("10.9.0.77")).unwrap().unwrap();
    assert_eq!((hop.oif, hop.gateway, hop.local), (index, None, false));
    assert!(netlink.route_to(ip("10.9.0.1")).unwrap().unwrap().local);
    for nowhere in ["10.43.0.1", "10.44.0.1", "203.0.113.1"] {
        assert_eq!(netlink.route_to(ip(nowhere)).unwrap(), None, "{nowhere}");
    }
}

#[test]
fn route_from_follows_the_rules_of_policy_routing() {
    let ns = TestNs::new();
    let (mut netlink, index) = with_veth(&ns);
    ns.sh(
        "ip addr add 10.9.1.1/24 dev lo; ip link set lo up; ip route add 10.42.0.0/16 via 10.9.0.2
           ip route add 10.42.0.0/16 via 10.9.0.3 table 7; ip rule add from 10.9.1.1 table 7",
    );
    let mut gateway = |source| {
        let hop = netlink.route_from(ip(source), ip("10.42.3.4")).unwrap();
        hop.map(|hop| (hop.oif, hop.gateway.unwrap()))
    };
    assert_eq!(gateway("10.9.0.1"), Some((index, ip("10.9.0.2"))));
    assert_eq!(gateway("10.9.1.1"), Some((index, ip("10.9.0.3"))));
    assert_eq!(gateway("192.0.2.1"), None);
}

#[test]
fn route_over_finds_the_route_that_a_longer_one_through_another_interface_hides() {
    let ns = TestNs::new();
    let (mut netlink, index) = with_veth(&ns);
    ns.sh("ip route add default via 10.9.0.2; ip route add 10.42.3.4 dev v1");
    let hop = netlink.route_to(ip("10.42.3.4")).unwrap().unwrap();
    assert_ne!(hop.oif, index);
    let hop = netlink.route_over(index, ip("10.42.3.4")).unwrap().unwrap();
    assert_eq!(
        (hop.oif, hop.gateway, hop.source),
        (index, Some(ip("10.9.0.2")), Some(ip("10.9.0.1")))
    );
}

#[test]
fn neighbours_are_permanent_when_added_and_resolved_when_used() {
    let ns = TestNs::new();
    let there = TestNs::new();
    let (mut netlink, index) = with_veth(&ns);
    let far = netlink.link("v1").unwrap().unwrap();
    let away = LinkChange {
        ns: Some(&there),
        ..LinkChange::default()
    };
    netlink.change_link(far.index, &away).unwrap();
    there.sh("ip addr add 10.9.0.2/24 dev v1; ip link set v1 up");

    let (fixed, dynamic) = (ip("10.9.0.9"), ip("10.9.0.2"));
    netlink.add_neighbour(index, fixed, PEER_MAC).unwrap();
    netlink.add_neighbour(index, fixed, MAC).unwrap();
    let find = |netlink: &mut Netlink, address| {
        let all = netlink.neighbours().unwrap();
        all.into_iter()
            .find(|n| n.index == index && n.address == address)
    };
    let neighbour = find(&mut netlink, fixed).unwrap();
    assert!(neighbour.permanent && neighbour.usable);
    assert_eq!(neighbour.mac, Some(MAC));

    assert_eq!(find(&mut netlink, dynamic), None);
    netlink.use_neighbour(index, dynamic).unwrap();
    let found = (0..100).find_map(|_| {
        thread::sleep(Duration::from_millis(20));
        find(&mut netlink, dynamic).filter(|neighbour| neighbour.usable)
    });
    let found = found.expect("no answer to ARP within 2 s");
    assert_eq!(found.mac, Some(far.mac));
    assert!(!found.permanent);

    // A neighbour that does not answer is listed, but not usable.
    netlink.use_neighbour(index, ip("10.9.0.200")).unwrap();
    assert!(!find(&mut netlink, ip("10.9.0.200")).unwrap().usable);
}

#[test]
fn a_table_that_changes_during_a_dump_loses_no_unchanged_entry() {
    let ns = TestNs::new();
    ns.sh(
        "for i in $(seq 1 150); do echo link add s$i type veth peer name t$i; done | ip -batch -",
    );
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut netlink = Netlink::open_in(&ns).unwrap();
            let veth = Veth {
                name: "v0",
                peer_name: "v1",
                ..Veth::default()
            };
            while !stop.load(Ordering::Relaxed) {
                netlink.add_veth(&veth).unwrap();
                let index = netlink.link("v0").unwrap().unwrap().index;
                netlink.delete_link(index).unwrap();
            }
        });
        let mut netlink = Netlink::open_in(&ns).unwrap();
        for _ in 0..100 {
            let links = netlink.links();
            let stays = links.map(|all| {
                all.iter()
                    .filter(|l| l.name.starts_with(['s', 't']))
                    .count()
            });
            if !matches!(stays, Ok(300)) {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(stays.unwrap(), 300);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_prepended_route_is_used_and_the_one_with_the_same_key_stays_behind_it() {
    let ns = TestNs::new();
    let (mut netlink, index) = with_veth(&ns);
    ns.sh(&format!(
        "ip -n {} route add 10.42.3.0/24 via 10.9.0.2 dev v0 proto static",
        ns.name()
    ));
    let ours = Route {
        protocol: 105,
        ..Route::on_link(net("10.42.3.0/24"), index)
    };
    netlink.prepend_route(&ours).unwrap();
    let gateway = |netlink: &mut Netlink| {
        let hop = netlink.route_to(ip("10.42.3.2")).unwrap();
        hop.unwrap().gateway
    };
    assert_eq!(gateway(&mut netlink), None);
    let listed = netlink.routes().unwrap();
    let same = listed
        .iter()
        .filter(|it| it.destination == ours.destination);
    let protocols: Vec<u8> = same.map(|it| it.protocol).collect();
    assert_eq!(protocols, [105, Route::PROTOCOL_STATIC]);
    netlink.delete_route(&ours).unwrap();
    assert_eq!(gateway(&mut netlink), Some(ip("10.9.0.2")));
}

#[test]
fn a_listed_rule_can_be_deleted() {
    let ns = TestNs::new();
    let (mut netlink, _) = with_veth(&ns);
    let add = "rule add fwmark 0x200/0xf00 lookup 2004 priority 9";
    ns.sh(&format!("ip -n {} {add}", ns.name()));
    let rules = netlink.rules().unwrap();
    let rule = rules.iter().find(|it| it.table == 2004).unwrap();
    assert_eq!(rule.priority, 9);
    netlink.delete_rule(rule).unwrap();
    let rules = netlink.rules().unwrap();
    assert!(rules.iter().all(|it| it.table != 2004), "{rules:?}");
    assert_eq!(rules.len(), 3, "the kernel's own rules stay: {rules:?}");
}

//! Notifications of changes.

use ipip_netlink::{Changes, Events, Netlink, Route, RulesetEvents, Veth, Watched};
use ipip_testkit::test_ns::TestNs;
use std::{os::fd::AsFd, process::Command};

#[test]
fn each_kind_of_change_is_reported_as_that_kind() {
    let ns = TestNs::new();
    let mut events = Events::open_in(&ns).unwrap();
    assert!(!events.drain().unwrap().any());

    Netlink::open_in(&ns)
        .unwrap()
        .add_veth(&Veth {
            name: "v0",
            peer_name: "v1",
            ..Veth::default()
        })
        .unwrap();
    assert!(events.drain().unwrap().links);

    ns.sh("ip link set v0 up; ip link set v1 up");
    // The kernel reports the carrier later than the command returns.
    ns.sh("for link in v0 v1; do until ip link show $link | grep -q 'state UP'; do sleep 0.01; done; done");
    events.drain().unwrap();
    ns.sh("ip addr add 10.9.0.1/32 dev v0");
    assert!(events.drain().unwrap().addresses);
    ns.sh("ip route add 10.42.0.0/16 dev v0");
    let only_routes = Changes {
        routes: true,
        ..Changes::default()
    };
    assert_eq!(events.drain().unwrap(), only_routes);
    ns.sh("ip rule add from 10.9.0.1 table 7");
    assert_eq!(events.drain().unwrap(), only_routes);
    ns.sh("ip rule del from 10.9.0.1 table 7");
    assert_eq!(events.drain().unwrap(), only_routes);
    ns.sh("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:01 dev v0");
    let only_neighbours = Changes {
        neighbours: true,
        ..Changes::default()
    };
    assert_eq!(events.drain().unwrap(), only_neighbours);
    let only_settings = Changes {
        settings: true,
        ..Changes::default()
    };
    for setting in ["forwarding", "rp_filter"] {
        ns.sh(&format!("echo 1 > /proc/sys/net/ipv4/conf/v0/{setting}; echo 0 > /proc/sys/net/ipv4/conf/v0/{setting}"));
        assert_eq!(events.drain().unwrap(), only_settings, "{setting}");
    }
    ns.sh("tc qdisc add dev v0 clsact; tc qdisc del dev v0 clsact");
    let only_filters = Changes {
        filters: true,
        ..Changes::default()
    };
    assert_eq!(events.drain().unwrap(), only_filters);
    assert!(!events.drain().unwrap().any());
}

#[test]
fn route_changes_through_the_ignored_port_are_not_reported_and_those_of_others_are() {
    let ns = TestNs::new();
    ns.sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up");
    let mut netlink = Netlink::open_in(&ns).unwrap();
    let index = netlink.link("v0").unwrap().unwrap().index;
    let mut events = Events::open_in(&ns).unwrap();
    events.ignore_routes_of(netlink.port().unwrap());
    let route = Route::on_link("10.42.0.0/16".parse().unwrap(), index);
    netlink.replace_route(&route).unwrap();
    netlink.delete_route(&route).unwrap();
    assert!(!events.drain().unwrap().any());
    netlink.replace_route(&route).unwrap();
    ns.sh("ip route del 10.42.0.0/16");
    assert!(events.drain().unwrap().routes);
}

#[test]
fn an_overrun_is_reported_and_the_socket_continues_to_work() {
    let ns = TestNs::new();
    ns.sh("ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up; ip addr add 10.9.0.1/24 dev v0");
    let mut events = Events::open_in(&ns).unwrap();
    // The buffer must be too small for the following changes: otherwise the test proves nothing.
    let tiny = 4096_usize;
    nix::sys::socket::setsockopt(&events.as_fd(), nix::sys::socket::sockopt::RcvBuf, &tiny)
        .unwrap();
    ns.sh("for i in $(seq 1 250); do echo neigh add 10.9.0.$i lladdr 02:00:00:00:00:01 dev v0; done | ip -batch -");
    let changes = events.drain().unwrap();
    assert_eq!(changes, Changes::EVERYTHING);
    ns.sh("ip neigh del 10.9.0.7 dev v0");
    let changes = events.drain().unwrap();
    assert!(changes.neighbours && !changes.lost, "{changes:?}");
}

#[test]
fn twenty_thousand_changes_fit_without_loss() {
    let ns = TestNs::new();
    ns.sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up");
    let mut events = Events::open_in(&ns).unwrap();
    ns.sh("for a in $(seq 0 79); do for b in $(seq 0 249); do
           echo route add 10.$((a + 100)).$b.0/24 dev v0
         done; done | ip -batch -");
    let changes = events.drain().unwrap();
    assert!(changes.routes && !changes.lost, "{changes:?}");
}

#[test]
fn events_of_another_namespace_are_not_reported() {
    let (here, there) = (TestNs::new(), TestNs::new());
    let mut events = Events::open_in(&here).unwrap();
    there.sh("ip link add v0 type veth peer name v1");
    assert!(!events.drain().unwrap().any());
    // Events of the caller's own namespace are not reported either.
    assert!(Command::new("ip").arg("link").output().is_ok());
    assert!(!events.drain().unwrap().any());
}

#[test]
fn only_watched_rules_and_chains_with_a_hook_are_reported() {
    const WATCHED: &[Watched] = &[
        Watched {
            table: "ours",
            chain: None,
        },
        Watched {
            table: "filter",
            chain: Some("FORWARD"),
        },
    ];
    let ns = TestNs::new();
    let mut events = RulesetEvents::open_in(&ns, WATCHED).unwrap();
    for (script, is_reported) in [
        ("nft add table ip other", false),
        ("nft add chain ip other plain", false),
        ("nft add rule ip other plain accept", false),
        ("nft add table ip ours", true),
        ("nft add chain ip ours plain", true),
        ("nft add rule ip ours plain accept", true),
        ("nft delete table ip ours", true),
        ("iptables -P FORWARD DROP", true),
        ("iptables -N OTHER", false),
        ("iptables -A OTHER -j ACCEPT", false),
        ("iptables -A FORWARD -j ACCEPT", true),
        ("iptables -F FORWARD", true),
        (
            "nft 'add chain inet other base { type filter hook forward priority 0; }'",
            false,
        ),
        ("nft add table inet other", false),
        (
            "nft 'add chain inet other base { type filter hook forward priority 0; }'",
            true,
        ),
        ("nft delete table inet other", true),
        ("nft flush ruleset", true),
    ] {
        let _ = events.drain();
        ns.run(|| Command::new("sh").args(["-c", script]).status())
            .unwrap()
            .unwrap();
        assert_eq!(events.drain().unwrap().ruleset, is_reported, "{script}");
        assert!(!events.drain().unwrap().any());
    }
}

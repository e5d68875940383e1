//! Which firewalls are reported, checked with rules that `nft` and `iptables` load.

use ipip_agent::host::{
    firewall::{Traffic, check},
    forward_accept,
};
use ipip_testkit::test_ns::TestNs;
use ipnetwork::Ipv4Network;
use std::process::Command;

const INTERNET: &str = "connections from pods to the Internet";
const SERVICES: &str = "connections from pods to Services";
const HOST_PORTS: &str = "connections to hostPorts and NodePorts";

/// What the agent reports on a host after a script.
fn reported(script: &str) -> Vec<String> {
    let netns = TestNs::new();
    netns.sh("ip link add eth0 type veth peer name eth1");
    netns.sh(script);
    reported_in(&netns)
}

fn reported_in(netns: &TestNs) -> Vec<String> {
    let pods: [Ipv4Network; 1] = ["10.42.1.0/24".parse().unwrap()];
    let traffic = Traffic {
        pods: &pods,
        peer_pods: Some("10.42.2.0/24".parse().unwrap()),
        uplinks: vec![(2, "eth0")],
    };
    let found = netns.run(|| check(&traffic)).unwrap().unwrap();
    found.iter().map(ToString::to_string).collect()
}

/// A table `inet host` whose chain `forward` has this policy and these rules.
fn host(policy: &str, rules: &str) -> String {
    format!(
        "nft 'table inet host {{
            set lan {{ type ipv4_addr; flags interval; elements = {{ 10.0.0.0/8 }}; }}
            chain helper {{ {rules}
            }}
            chain forward {{ type filter hook forward priority filter; policy {policy};
                {rules}
            }}
        }}'"
    )
}

#[test]
fn a_policy_of_drop_is_reported_with_the_commands_that_help() {
    let found = reported(&host("drop", "ct state established,related accept"));
    assert_eq!(
        found,
        [format!(
            "the firewall chain inet host forward drops {INTERNET} and {HOST_PORTS} and {SERVICES}; remedy: \
             `nft insert rule inet host forward ip saddr 10.42.1.0/24 accept && \
             nft insert rule inet host forward ip daddr 10.42.1.0/24 accept && \
             nft insert rule inet host forward iifname ipip0 ct status dnat accept && \
             nft insert rule inet host forward oifname ipip0 ct status dnat accept`, \
             and keep this in the firewall's configuration; or `forwardAccept: false` if this is intended"
        )]
    );
}

#[test]
fn the_remedy_helps() {
    for script in [
        host("drop", ""),
        "iptables-legacy -P FORWARD DROP".to_owned(),
    ] {
        let netns = TestNs::new();
        netns.sh(&script);
        let found = reported_in(&netns).pop().unwrap_or_default();
        let Some(remedy) = found.split('`').nth(1) else {
            panic!("after {script}: {found:?}");
        };
        netns.sh(remedy);
        assert_eq!(reported_in(&netns), [] as [&str; 0], "after {remedy}");
    }
}

#[test]
fn rules_that_let_only_some_packets_pass_do_not_hide_a_drop() {
    for rules in [
        "ct state { established, related } accept",
        "ct state vmap { established : accept, related : accept, invalid : drop }",
        "meta l4proto icmp accept; tcp dport 22 accept; udp dport { 53, 123 } accept",
        "iif \"lo\" accept; iifname \"wg0\" accept; oifname { \"br0\", \"br1\" } accept",
        "ip saddr 192.168.0.0/16 accept; ip6 saddr fe80::/10 accept; meta nfproto ipv6 accept",
        "meta mark 0x4000 accept; limit rate 10/second accept; counter log prefix \"no\"",
        "tcp dport 80-90 accept; ct status dnat tcp dport 443 accept",
    ] {
        let found = reported(&host("drop", rules));
        assert!(
            found.len() == 1 && found[0].contains(INTERNET),
            "{rules}: {found:?}"
        );
        let found = reported(&host("accept", &format!("{rules}; reject")));
        assert!(
            found.len() == 1 && found[0].contains(INTERNET),
            "{rules}; reject: {found:?}"
        );
    }
}

#[test]
fn rules_that_let_pods_pass_are_no_problem() {
    for rules in [
        "ip saddr 10.42.0.0/16 accept; ip daddr 10.42.0.0/16 accept",
        "iifname \"pod*\" accept; oifname \"pod*\" accept",
        "ct state new,established,related accept",
        "ct state vmap { new : accept, established : accept }",
        "meta nfproto ipv4 accept",
        "iifname != \"wan0\" accept",
        // These cannot be judged.
        "ip saddr @lan accept; ip daddr @lan accept",
        "meta iifgroup 5 accept; meta oifgroup 5 accept",
        "ip saddr . ip daddr { 10.42.1.0 . 192.0.2.1 } accept",
        "fib daddr type local accept",
        // An operator meant these.
        "ip saddr 10.42.0.0/16 drop; ip daddr 10.42.0.0/16 drop",
    ] {
        assert_eq!(reported(&host("drop", rules)), [] as [&str; 0], "{rules}");
    }
    for rules in [
        "ct state invalid drop; ip saddr 10.42.1.7 ip daddr 10.42.2.9 drop",
        "",
    ] {
        assert_eq!(reported(&host("accept", rules)), [] as [&str; 0], "{rules}");
    }
}

#[test]
fn chains_that_are_called_are_followed() {
    let table = |last: &str| {
        format!(
            "nft 'table inet firewalld {{
                chain public_allow {{ oifname \"eth9\" accept; }}
                chain public {{ jump public_allow; {last}; }}
                chain zones {{ iifname \"eth9\" goto public; goto public; }}
                chain filter_FORWARD {{ type filter hook forward priority filter + 10; policy accept;
                    ct state {{ established, related }} accept
                    ct status dnat accept
                    iifname \"lo\" accept
                    ct state invalid drop
                    ip6 daddr {{ ::/96 }} reject with icmpv6 addr-unreachable
                    jump zones
                    reject with icmpx admin-prohibited
                }}
            }}'"
        )
    };
    let found = reported(&table("reject with icmpx admin-prohibited"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains(INTERNET) && !found[0].contains(SERVICES),
        "{found:?}"
    );
    assert!(found[0].contains("firewall-cmd --permanent --zone=trusted --add-source=10.42.1.0/24"));
    assert_eq!(reported(&table("accept")), [] as [&str; 0]);
}

#[test]
fn the_agents_own_accept_rules_solve_a_drop_of_iptables() {
    let netns = TestNs::new();
    netns.sh("iptables -P FORWARD DROP");
    assert_eq!(reported_in(&netns).len(), 1);
    let pods = ["10.42.1.0/24".parse().unwrap()];
    netns
        .run(|| forward_accept::ensure(&pods))
        .unwrap()
        .unwrap();
    assert_eq!(reported_in(&netns), [] as [&str; 0]);
}

#[test]
fn drops_of_iptables_legacy_are_reported_and_its_accepts_are_seen() {
    let legacy = Command::new("iptables-legacy").arg("-S").output();
    if !legacy.is_ok_and(|it| it.status.success()) {
        eprintln!("no iptables-legacy, or a kernel without it");
        return;
    }
    for rules in [
        "-P FORWARD DROP",
        "-A FORWARD -j REJECT",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables-legacy -P FORWARD DROP",
        "-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT; iptables-legacy -P FORWARD DROP",
        "-N no; iptables-legacy -A no -m comment --comment all -j DROP; iptables-legacy -A FORWARD -j no",
        "-A FORWARD ! -i eth0 -p tcp -j ACCEPT; iptables-legacy -P FORWARD DROP",
    ] {
        let found = reported(&format!("iptables-legacy {rules}"));
        assert!(
            found.len() == 1 && found[0].contains(INTERNET),
            "{rules}: {found:?}"
        );
        assert!(found[0].contains("iptables-legacy FORWARD"), "{found:?}");
    }
    for rules in [
        "-P FORWARD ACCEPT",
        "-A FORWARD -s 10.42.1.9 -j DROP",
        "-A FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables-legacy -A FORWARD -d 10.42.0.0/16 -j ACCEPT; iptables-legacy -P FORWARD DROP",
        "-N yes; iptables-legacy -A yes -i pod+ -j ACCEPT; iptables-legacy -A yes -o pod+ -j ACCEPT; iptables-legacy -A FORWARD -g yes; iptables-legacy -P FORWARD DROP",
        "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT; iptables-legacy -P FORWARD DROP",
    ] {
        let found = reported(&format!("iptables-legacy {rules}"));
        assert_eq!(found, [] as [&str; 0], "{rules}");
    }
}

#[test]
fn traffic_that_one_of_two_uplinks_takes_has_a_way() {
    let netns = TestNs::new();
    netns.sh("ip link add eth0 type veth peer name eth1");
    netns.sh(&host(
        "drop",
        "oifname eth1 accept; iifname eth1 accept; oifname ipip0 accept",
    ));
    let pods: [Ipv4Network; 1] = ["10.42.1.0/24".parse().unwrap()];
    let reported = |uplinks| {
        let traffic = Traffic {
            pods: &pods,
            peer_pods: Some("10.42.2.0/24".parse().unwrap()),
            uplinks,
        };
        netns.run(|| check(&traffic)).unwrap().unwrap()
    };
    assert!(reported(vec![(2, "eth0"), (3, "eth1")]).is_empty());
    let drops = reported(vec![(2, "eth0")]);
    assert_eq!(drops.len(), 1);
    assert!(!drops[0].cut_services(), "{}", drops[0]);
}

//! The table that keeps other machines out of the pod network, checked with `nft`. `tests/e2e/outside.rs` checks it with
//! packets.

use ipip_agent::host::guard::{self, Guard};
use ipip_testkit::test_ns::{TestNs, drop_capabilities};

fn guard(uplinks: &[&str], routed: &[&str]) -> Guard {
    Guard {
        uplinks: uplinks.iter().map(|it| (*it).to_owned()).collect(),
        routed: routed.iter().map(|it| (*it).to_owned()).collect(),
        udp_port: 5555,
    }
}

fn apply(node: &TestNs, guard: &Guard) {
    node.run(|| guard.apply()).unwrap().unwrap();
}

fn has(node: &TestNs, guard: &Guard) -> bool {
    node.run(|| guard.is_in_place()).unwrap().unwrap()
}

/// The rules of a chain as `nft` lists them, without those for other pod networks.
fn rules(node: &TestNs, chain: &str) -> Vec<String> {
    let shown = node.sh(&format!(
        "nft --numeric-protocol list chain ip {} {chain}",
        guard::TABLE
    ));
    let rules = shown
        .lines()
        .skip(4)
        .map(str::trim)
        .take_while(|it| *it != "}");
    let is_ours = |rule: &String| {
        let others = [
            "cali", "flannel", "cni0", "tunl0", "cilium", "lxc", "weave", "veth", "bpf",
        ];
        let others = others
            .iter()
            .chain(&["wg-v6", "wireguard", "vxlan", "datapath"]);
        !others.into_iter().any(|it| rule.contains(it))
    };
    rules.map(str::to_owned).filter(is_ours).collect()
}

#[test]
fn nft_shows_the_expected_rules() {
    let node = TestNs::new();
    apply(&node, &guard(&["eth0", "eth1"], &["docker0", "br-*"]));
    assert_eq!(
        rules(&node, "prerouting"),
        [
            "iifname \"pod*\" accept",
            "iifname \"ipip0\" accept",
            "iifname \"eth0\" accept",
            "iifname \"eth1\" accept",
            "iifname \"br-*\" accept",
            "iifname \"docker0\" accept",
            "fib saddr oifname \"ipip0\" counter packets 0 bytes 0 drop",
            "fib saddr oifname \"pod*\" counter packets 0 bytes 0 drop",
        ]
    );
    assert_eq!(
        rules(&node, "forward"),
        [
            "oifname \"eth0\" ip protocol 4 counter packets 0 bytes 0 drop",
            "oifname \"eth1\" ip protocol 4 counter packets 0 bytes 0 drop",
            "iifname \"pod*\" accept",
            "iifname \"ipip0\" accept",
            "ct status dnat accept",
            "ct direction reply accept",
            "iifname \"br-*\" accept",
            "iifname \"docker0\" accept",
            "oifname \"ipip0\" counter packets 0 bytes 0 drop",
            "oifname \"pod*\" counter packets 0 bytes 0 drop",
        ]
    );
    assert_eq!(
        rules(&node, "postrouting"),
        [
            "oifname \"eth0\" udp dport 5555 counter packets 0 bytes 0 drop",
            "oifname \"eth1\" udp dport 5555 counter packets 0 bytes 0 drop",
        ]
    );
}

#[test]
fn a_flushed_or_edited_table_is_noticed_and_restored() {
    let wanted = guard(&["eth0"], &["docker0"]);
    let table = guard::TABLE;
    let edits = [
        "nft flush ruleset".to_owned(),
        format!("nft flush chain ip {table} forward"),
        format!("nft add table ip {table} '{{ flags dormant; }}'"),
        format!("nft add chain ip {table} another"),
        format!("nft insert rule ip {table} forward accept"),
        format!("nft add rule ip {table} postrouting accept"),
        format!("nft 'chain ip {table} prerouting {{ policy drop; }}'"),
    ];
    for edit in &edits {
        let node = TestNs::new();
        apply(&node, &wanted);
        assert!(has(&node, &wanted));
        node.sh(edit);
        assert!(!has(&node, &wanted), "{edit}");
        apply(&node, &wanted);
        assert!(has(&node, &wanted), "{edit}");
    }
}

#[test]
fn the_table_for_other_interfaces_is_not_the_wanted_one() {
    let node = TestNs::new();
    let wanted = guard(&["eth0"], &["docker0"]);
    apply(&node, &wanted);
    let other_port = Guard {
        udp_port: 5556,
        ..wanted.clone()
    };
    for other in [
        guard(&["eth1"], &["docker0"]),
        guard(&["eth0", "eth1"], &["docker0"]),
        guard(&["eth0"], &[]),
        guard(&["eth0"], &["docker*"]),
        other_port,
    ] {
        assert!(!has(&node, &other), "{other:?}");
    }
    assert!(has(&node, &wanted));
}

#[test]
fn removing_the_table_twice_is_no_error_and_leaves_others_alone() {
    let node = TestNs::new();
    node.sh("nft 'table ip other { chain c { ip saddr 10.42.1.0/24 accept; }; }'");
    let before = node.sh("nft list ruleset");
    apply(&node, &guard(&["eth0"], &[]));
    for _ in 0..2 {
        node.run(guard::remove).unwrap().unwrap();
        assert_eq!(node.sh("nft list ruleset"), before);
    }
}

#[test]
fn a_table_that_cannot_be_read_is_neither_in_place_nor_missing() {
    let node = TestNs::new();
    let wanted = guard(&["eth0"], &[]);
    apply(&node, &wanted);
    let outcome = node.run(|| {
        drop_capabilities();
        wanted.is_in_place()
    });
    let error = outcome.unwrap().unwrap_err().to_string();
    assert!(error.contains("EPERM"), "{error}");
}

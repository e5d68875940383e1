//! The accept rules in the chain `FORWARD` of iptables, checked with `iptables`.

use ipip_agent::host::forward_accept::{ensure, remove};
use ipip_testkit::test_ns::TestNs;
use ipnetwork::Ipv4Network;

/// The output of `iptables` for a node with two pod ranges.
const CHAIN: &str = "\
-N IPIP-FORWARD
-A IPIP-FORWARD -s 10.42.1.0/24 -j ACCEPT
-A IPIP-FORWARD -d 10.42.1.0/24 -j ACCEPT
-A IPIP-FORWARD -s 10.42.9.7/32 -j ACCEPT
-A IPIP-FORWARD -d 10.42.9.7/32 -j ACCEPT
-A IPIP-FORWARD -o ipip0 -m conntrack --ctstate DNAT -j ACCEPT
-A IPIP-FORWARD -i ipip0 -m conntrack --ctstate DNAT -j ACCEPT
";

/// A host in its own network namespace, and the pod CIDRs of its node.
struct Firewall {
    netns: TestNs,
    pods: Vec<Ipv4Network>,
}

impl Firewall {
    /// A host after these commands.
    fn after(script: &str) -> Self {
        let netns = TestNs::new();
        netns.sh(script);
        let pods = ["10.42.1.0/24", "10.42.9.7/32"].map(|it| it.parse().unwrap());
        Self {
            netns,
            pods: pods.into(),
        }
    }

    fn sh(&self, script: &str) -> String {
        self.netns.sh(script)
    }

    /// Whether the agent had to change anything.
    fn ensure(&self) -> bool {
        self.netns.run(|| ensure(&self.pods)).unwrap().unwrap()
    }

    fn remove(&self) {
        self.netns.run(remove).unwrap().unwrap();
    }

    /// The rules of `FORWARD`, each without `-A FORWARD`.
    fn forward(&self) -> Vec<String> {
        let rules = self.sh("iptables -S FORWARD");
        let rules = rules
            .lines()
            .filter_map(|it| it.strip_prefix("-A FORWARD "));
        rules.map(str::to_owned).collect()
    }
}

#[test]
fn iptables_prints_the_rules_and_can_delete_them() {
    let host = Firewall::after("iptables -P FORWARD DROP");
    assert!(host.ensure());
    assert_eq!(host.sh("iptables -S IPIP-FORWARD"), CHAIN);
    assert_eq!(host.forward(), ["-j IPIP-FORWARD"]);
    assert!(!host.ensure(), "nothing was changed meanwhile");
    // Saved rules can be restored, and are then the same.
    host.sh("iptables-save > /tmp/ipip-$$; iptables-restore < /tmp/ipip-$$; rm /tmp/ipip-$$");
    assert_eq!(host.sh("iptables -S IPIP-FORWARD"), CHAIN);
    for rule in CHAIN.lines().filter_map(|it| it.strip_prefix("-A ")) {
        host.sh(&format!("iptables -D {rule}"));
    }
    host.sh("iptables -D FORWARD -j IPIP-FORWARD; iptables -X IPIP-FORWARD");
}

#[test]
fn rules_that_another_program_changed_are_repaired() {
    let host = Firewall::after("iptables -P FORWARD DROP");
    host.ensure();
    for change in [
        "iptables -F FORWARD",
        "iptables -F IPIP-FORWARD",
        "iptables -D IPIP-FORWARD 2",
        "iptables -A FORWARD -j IPIP-FORWARD",
        "iptables -F FORWARD; iptables -F IPIP-FORWARD; iptables -X IPIP-FORWARD",
        "iptables -D FORWARD 1; iptables -A FORWARD -j REJECT; iptables -A FORWARD -j IPIP-FORWARD",
        "printf '*filter\n:FORWARD DROP\nCOMMIT\n' | iptables-restore",
    ] {
        host.sh(change);
        assert!(host.ensure(), "after {change}");
        assert_eq!(host.sh("iptables -S IPIP-FORWARD"), CHAIN, "after {change}");
        let forward = host.forward();
        let jumps: Vec<_> = forward.iter().filter(|it| it.contains("IPIP")).collect();
        assert_eq!(jumps, ["-j IPIP-FORWARD"], "after {change}");
        assert!(!host.ensure(), "a second time after {change}");
    }
}

#[test]
fn the_jump_comes_after_rules_with_conditions_and_before_a_rule_that_drops_everything() {
    // As ufw and Docker write them.
    let host = Firewall::after(
        "iptables -N ufw-user; iptables -A ufw-user -s 10.42.1.9 -j DROP
        iptables -N ufw-reject; iptables -A ufw-reject -m comment --comment final -j REJECT
        iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP
        iptables -A FORWARD -j ufw-user
        iptables -A FORWARD -o docker0 -j DROP
        iptables -A FORWARD -j ufw-reject
        iptables -A FORWARD -s 192.0.2.1 -j ACCEPT",
    );
    host.ensure();
    assert_eq!(
        host.forward(),
        [
            "-m conntrack --ctstate INVALID -j DROP",
            "-j ufw-user",
            "-o docker0 -j DROP",
            "-j IPIP-FORWARD",
            "-j ufw-reject",
            "-s 192.0.2.1/32 -j ACCEPT",
        ]
    );
    assert!(!host.ensure());
}

#[test]
fn a_host_without_iptables_gets_no_rules() {
    let host = Firewall::after("nft add table ip filter; nft add chain ip filter FORWARD");
    let before = host.sh("nft list ruleset");
    assert!(!host.ensure());
    assert_eq!(host.sh("nft list ruleset"), before);
    let host = Firewall::after("true");
    assert!(!host.ensure());
    assert_eq!(host.sh("nft list ruleset"), "");
    host.remove();
}

#[test]
fn removal_leaves_what_was_there_before() {
    let host = Firewall::after("iptables -P FORWARD DROP; iptables -A FORWARD -i lo -j ACCEPT");
    let before = host.sh("iptables -S");
    host.ensure();
    host.remove();
    assert_eq!(host.sh("iptables -S"), before);
    host.remove();
}

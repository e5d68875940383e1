use super::*;
use proptest::prelude::*;

/// A node in one line of YAML.
fn line(name: &str, ip: &str, cidr: &str, more: &str) -> String {
    format!("  - {{name: {name}, internalIPs: [{ip}], podCIDRs: [{cidr}]{more}}}\n")
}

fn parsed(text: &str) -> Result<Inventory, InventoryError> {
    parse(text, "a1", None)
}

/// What is left out of the inventory, one text in a line.
fn left_out(lines: &[String]) -> String {
    let inventory = parsed(&format!("nodes:\n{}", lines.concat())).unwrap();
    let fields = inventory.left_out.values().flatten();
    let texts: Vec<String> = fields.map(ToString::to_string).collect();
    texts.join("\n")
}

fn two(more_a: &str, more_b: &str) -> [String; 2] {
    [
        line("a1", "10.0.0.11", "10.42.1.0/24", more_a),
        line("b1", "10.0.0.12", "10.42.2.0/24", more_b),
    ]
}

#[test]
fn a_full_inventory_is_read_as_it_stands() {
    let text = "
nodes:
  - name: a1
    internalIPs: [10.0.0.11, 10.0.1.11]
    podCIDRs: [10.42.1.0/24]
    publicEndpoint: 203.0.113.11
    realm: cloud-a
    encapsulation: udp
    probeKey: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
  - name: b1.example
";
    let inventory = parsed(text).unwrap();
    assert_eq!(
        inventory.nodes[0],
        Node {
            is_found_near: false,
            name: "a1".into(),
            internal_ips: vec![[10, 0, 0, 11].into(), [10, 0, 1, 11].into()],
            pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
            public_endpoint: Some([203, 0, 113, 11].into()),
            realm: "cloud-a".into(),
            encapsulation: Some(Encapsulation::Udp),
            probe_key: Some([1; 32].into()),
        }
    );
    assert_eq!(inventory.nodes[1].realm, "");
    assert_eq!(inventory.nodes[1].probe_key, None);
    assert_eq!(inventory.nodes[1].pod_cidrs, []);
}

#[test]
fn an_unknown_field_is_refused_with_its_line() {
    let error = parsed("nodes:\n  - name: a1\n    podCidrs: [10.42.1.0/24]\n").unwrap_err();
    let InventoryError::Form {
        line,
        text,
        message,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((line, text.as_str()), (3, "podCidrs: [10.42.1.0/24]"));
    assert!(message.contains("unknown field `podCidrs`"), "{message}");
}

#[test]
fn an_inventory_without_this_node_is_refused() {
    let error = parsed("nodes: []").unwrap_err().to_string();
    assert!(
        error.contains("\"a1\"") && error.contains("remedy"),
        "{error}"
    );
}

#[test]
fn of_two_nodes_with_one_name_the_first_is_used() {
    let mut lines = two("", "");
    lines[1] = lines[1].replace("b1", "a1");
    assert_eq!(
        left_out(&lines),
        "line 3, name: \"a1\" is also the name of another node (line 2); remedy: give each node its own name"
    );
}

#[test]
fn of_two_nodes_with_one_public_endpoint_the_first_has_it_and_everything_else_is_used() {
    let endpoint = ", publicEndpoint: 203.0.113.11";
    let lines = two(endpoint, endpoint);
    assert_eq!(
        left_out(&lines),
        "line 3, publicEndpoint: \"203.0.113.11\" is also the publicEndpoint of a1 (line 2); remedy: give each node its own public address (1:1 NAT)"
    );
    let inventory = parsed(&format!("nodes:\n{}", lines.concat())).unwrap();
    let [a1, b1] = &inventory.nodes[..] else {
        panic!("{inventory:?}");
    };
    assert_eq!(a1.public_endpoint, Some([203, 0, 113, 11].into()));
    assert_eq!(b1.public_endpoint, None);
    assert_eq!(b1.internal_ips, [Ipv4Addr::new(10, 0, 0, 12)]);
    assert_eq!(b1.pod_cidrs.len(), 1);
}

#[test]
fn each_contradiction_is_named_with_its_lines() {
    let all = [
        line(
            "a1",
            "10.0.0.11",
            "10.42.1.0/24",
            ", publicEndpoint: 203.0.113.11",
        ),
        line("b1", "10.0.0.11, 10.0.0.12, 10.42.1.9", "10.42.0.0/16", ""),
        line(
            "c1",
            "10.0.0.13",
            "10.0.0.8/29",
            ", publicEndpoint: 10.0.0.12",
        ),
        line(
            "d1",
            "10.0.0.14",
            "203.0.113.0/24, 10.42.4.0/24, 10.42.4.128/25",
            "",
        ),
    ];
    let text = left_out(&all);
    for part in [
        "line 3, internalIPs: \"10.0.0.11\" is also an InternalIP of a1 (line 2) in the same realm",
        "line 3, internalIPs: \"10.42.1.9\" lies in 10.42.1.0/24 of a1",
        "line 3, podCIDRs: \"10.42.0.0/16\" overlaps 10.42.1.0/24 of a1 (line 2); remedy: give each node its own pod CIDRs",
        "line 4, publicEndpoint: \"10.0.0.12\" is also an InternalIP of b1 (line 3)",
        "line 4, podCIDRs: \"10.0.0.8/29\" holds 10.0.0.11 of a1 (line 2)",
        "line 5, podCIDRs: \"203.0.113.0/24\" holds 203.0.113.11 of a1 (line 2)",
        "line 5, podCIDRs: \"10.42.4.128/25\" overlaps 10.42.4.0/24 of d1 (line 5)",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    assert_eq!(text.lines().count(), 7);
    assert_eq!(text.lines().count(), text.matches("remedy").count());
}

#[test]
fn an_internal_ip_of_two_realms_leads_to_the_node_of_the_own_realm_otherwise_to_the_first() {
    let mut lines = two(", realm: a", ", realm: b");
    lines[1] = lines[1].replace("10.0.0.12", "10.0.0.11");
    let inventory = parsed(&format!("nodes:\n{}", lines.concat())).unwrap();
    assert_eq!(inventory.left_out, BTreeMap::new());
    let shared = [10, 0, 0, 11].into();
    for (realm, owner) in [("a", "a1"), ("b", "b1"), ("c", "a1")] {
        assert_eq!(inventory.internal_ip_owners(realm)[&shared], owner);
    }
}

#[test]
fn every_value_that_cannot_be_read_is_named_with_its_remedy_and_the_others_are_used() {
    let lines = [
        line("a1", "10.0.0.11", "10.42.1.1/24, 10.42.9.0/24", ""),
        line("A_1", "10.0.0.12", "10.42.2.0/24", ""),
        line(
            "b1",
            "127.0.0.1, 10.0.0, 10.0.0.13",
            "10.42.3.0",
            ", publicEndpoint: 224.0.0.1",
        ),
        line("c1", "10.0.0.14", "160.0.0.0/3", ", encapsulation: vxlan"),
    ];
    let text = left_out(&lines);
    for part in [
        "line 2, podCIDRs: \"10.42.1.1/24\" has bits set below its prefix; remedy: write 10.42.1.0/24",
        "line 3, name: \"A_1\" is not a node name",
        "line 4, internalIPs: \"127.0.0.1\" is this-network, loopback",
        "line 4, internalIPs: \"10.0.0\" is not an IPv4 address",
        "line 4, podCIDRs: \"10.42.3.0\" is not an IPv4 network",
        "line 4, publicEndpoint: \"224.0.0.1\" is this-network",
        "line 5, podCIDRs: \"160.0.0.0/3\" is this-network",
        "line 5, encapsulation: \"vxlan\" is not an encapsulation",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    assert_eq!(text.lines().count(), text.matches("remedy").count());
    let inventory = parsed(&format!("nodes:\n{}", lines.concat())).unwrap();
    let names: Vec<&str> = inventory.nodes.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["a1", "b1", "c1"]);
    assert_eq!(inventory.nodes[0].pod_cidrs.len(), 1);
    assert_eq!(
        inventory.nodes[1].internal_ips,
        [Ipv4Addr::new(10, 0, 0, 13)]
    );
}

#[test]
fn a_field_with_an_invalid_value_keeps_its_last_valid_value_and_other_changes_are_used() {
    let good = two(", publicEndpoint: 203.0.113.11", ", encapsulation: udp");
    let last = parsed(&format!("nodes:\n{}", good.concat())).unwrap();
    let bad = [
        line(
            "a1",
            "10.0.0.99",
            "10.42.1.0/240",
            ", publicEndpoint: 203.0.113",
        ),
        line("b1", "10.0.0", "10.42.7.0/24", ", encapsulation: gre"),
        line("c1", "10.0.0.13", "10.42.3.0/24", ""),
    ];
    let text = format!("nodes:\n{}", bad.concat());
    let next = parse(&text, "a1", Some(&last)).unwrap();
    let mut expected = last.nodes;
    expected[0].internal_ips = vec![[10, 0, 0, 99].into()];
    expected[1].pod_cidrs = vec!["10.42.7.0/24".parse().unwrap()];
    assert_eq!(next.nodes[..2], expected);
    assert_eq!(next.nodes[2].name, "c1");
    assert_eq!(next.left_out.values().flatten().count(), 4);
}

#[test]
fn a_probe_key_that_is_none_is_left_out_alone() {
    // Keys are no claims: who publishes the key of another node harms only itself.
    let key = ", probeKey: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let lines = [
        line("a1", "10.0.0.11", "10.42.1.0/24", key),
        line("b1", "10.0.0.12", "10.42.2.0/24", key),
        line("c1", "10.0.0.13", "10.42.3.0/24", ", probeKey: AQEB"),
    ];
    assert_eq!(
        left_out(&lines),
        "line 4, probeKey: \"AQEB\" is not a public key; remedy: the one that the node's agent logs, 44 characters of base64"
    );
    let inventory = parsed(&format!("nodes:\n{}", lines.concat())).unwrap();
    let keys = inventory.nodes.iter().map(|it| it.probe_key);
    assert!(keys.eq([Some([1; 32].into()), Some([1; 32].into()), None]));
    for node in &inventory.nodes {
        assert_eq!((node.internal_ips.len(), node.pod_cidrs.len()), (1, 1));
    }
    // What it had before stays in use.
    let good = lines[2].replace("AQEB}", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=}");
    let last = parsed(&format!("nodes:\n{}{good}", lines[0])).unwrap();
    let next = parse(&format!("nodes:\n{}", lines.concat()), "a1", Some(&last)).unwrap();
    assert_eq!(next.nodes[2].probe_key, Some([2; 32].into()));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(nodes:\n)?([ -]{0,6}[a-zA-Z]{1,9}: ?[\\[\\]{}0-9./a-z,&*!\"']{0,12}\n){0,5}") {
        let _ = parsed(&text);
    }

    #[test]
    fn overlaps_are_found_exactly_where_two_networks_share_an_address(
        networks in prop::collection::vec((0u32..64, 24u8..=30), 2..6)
    ) {
        let networks: Vec<Ipv4Network> = networks
            .iter()
            .map(|&(n, prefix)| {
                let address = Ipv4Addr::from_bits((0x0a2a_0000 + n * 8) & (u32::MAX << (32 - prefix)));
                Ipv4Network::new(address, prefix).unwrap()
            })
            .collect();
        let lines: String = networks
            .iter()
            .enumerate()
            .map(|(n, network)| format!("  - {{name: n{n}, podCIDRs: [{network}]}}\n"))
            .collect();
        let overlap = networks
            .iter()
            .enumerate()
            .any(|(n, a)| networks[..n].iter().any(|b| a.overlaps(*b)));
        let inventory = parse(&format!("nodes:\n{lines}"), "n0", None).unwrap();
        prop_assert_eq!(!inventory.left_out.is_empty(), overlap);
    }
}

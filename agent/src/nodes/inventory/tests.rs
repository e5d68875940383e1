use super::*;
use ipip_abi::maps;
use proptest::prelude::*;

/// A node in one line of YAML.
fn line(name: &str, ip: &str, cidr: &str, more: &str) -> String {
    format!("  - {{name: {name}, internalIPs: [{ip}], podCIDRs: [{cidr}]{more}}}\n")
}

fn refusal(lines: &[String]) -> String {
    let text = format!("nodes:\n{}", lines.concat());
    parse(&text, "a1").unwrap_err().to_string()
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
  - name: b1.example
";
    let inventory = parse(text, "a1").unwrap();
    assert_eq!(
        inventory.nodes[0],
        Node {
            name: "a1".into(),
            internal_ips: vec![[10, 0, 0, 11].into(), [10, 0, 1, 11].into()],
            pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
            public_endpoint: Some([203, 0, 113, 11].into()),
            realm: "cloud-a".into(),
            encapsulation: Some(Encapsulation::Udp),
        }
    );
    assert_eq!(inventory.nodes[1].realm, "");
    assert_eq!(inventory.nodes[1].pod_cidrs, []);
}

#[test]
fn an_unknown_field_is_refused_with_its_line() {
    let error = parse("nodes:\n  - name: a1\n    podCidrs: [10.42.1.0/24]\n", "a1").unwrap_err();
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
    let error = parse("nodes: []", "a1").unwrap_err().to_string();
    assert!(
        error.contains("\"a1\"") && error.contains("remedy"),
        "{error}"
    );
}

#[test]
fn a_duplicate_name_is_refused() {
    let mut lines = two("", "");
    lines[1] = lines[1].replace("b1", "a1");
    assert_eq!(
        refusal(&lines),
        "line 3, name: \"a1\" is also the name of another node (line 2); remedy: give each node its own name"
    );
}

#[test]
fn overlapping_pod_cidrs_are_refused_across_nodes_and_within_one() {
    let mut lines = two("", "");
    lines[1] = lines[1].replace("10.42.2.0/24", "10.42.0.0/16");
    assert_eq!(
        refusal(&lines),
        "line 2, podCIDRs: \"10.42.1.0/24\" overlaps 10.42.0.0/16 of b1 (line 3); remedy: give each node its own pod CIDRs"
    );
    let lines = [line("a1", "10.0.0.11", "10.42.1.0/24, 10.42.1.128/25", "")];
    assert!(refusal(&lines).contains("\"10.42.1.128/25\" overlaps 10.42.1.0/24 of a1 (line 2)"));
}

#[test]
fn one_public_endpoint_for_two_nodes_is_refused() {
    let endpoint = ", publicEndpoint: 203.0.113.11";
    assert_eq!(
        refusal(&two(endpoint, endpoint)),
        "line 3, publicEndpoint: \"203.0.113.11\" is also the publicEndpoint of a1 (line 2); remedy: give each node its own public address (1:1 NAT)"
    );
}

#[test]
fn a_public_endpoint_that_is_another_nodes_internal_ip_is_refused() {
    let refusal = refusal(&two(", publicEndpoint: 10.0.0.12", ""));
    assert!(
        refusal.contains("is also an InternalIP of b1 (line 3)"),
        "{refusal}"
    );
}

#[test]
fn a_pod_cidr_that_holds_a_nodes_address_is_refused() {
    let mut lines = two("", ", publicEndpoint: 203.0.113.12");
    lines[0] = lines[0].replace("10.42.1.0/24", "10.0.0.0/28");
    let text = refusal(&lines);
    assert!(
        text.contains("line 2, podCIDRs: \"10.0.0.0/28\" holds 10.0.0.11 of a1 (line 2)"),
        "{text}"
    );
    assert!(text.contains("holds 10.0.0.12 of b1 (line 3)"), "{text}");
    lines[0] = lines[0].replace("10.0.0.0/28", "203.0.113.0/24");
    assert!(refusal(&lines).contains("holds 203.0.113.12 of b1 (line 3)"));
}

#[test]
fn the_same_internal_ip_is_refused_in_one_realm_and_shared_in_two() {
    let same = |realm_a: &str, realm_b: &str| {
        let mut lines = two(realm_a, realm_b);
        lines[1] = lines[1].replace("10.0.0.12", "10.0.0.11");
        format!("nodes:\n{}", lines.concat())
    };
    let error = parse(&same("", ""), "a1").unwrap_err().to_string();
    assert!(error.contains("line 3, internalIPs: \"10.0.0.11\" is also an InternalIP of a1 (line 2) in the same realm"), "{error}");
    let inventory = parse(&same(", realm: a", ", realm: b"), "a1").unwrap();
    assert_eq!(
        inventory.shared_internal_ips(),
        BTreeSet::from([[10, 0, 0, 11].into()])
    );
}

#[test]
fn every_value_that_cannot_be_read_is_named_with_its_remedy() {
    let lines = [
        line("A_1", "10.0.0", "10.42.1.1/24", ""),
        line(
            "b1",
            "127.0.0.1",
            "10.42.2.0",
            ", publicEndpoint: 224.0.0.1",
        ),
        line("c1", "10.0.0.13", "160.0.0.0/3", ", encapsulation: vxlan"),
    ];
    let text = refusal(&lines);
    for part in [
        "line 2, name: \"A_1\" is not a node name",
        "line 2, internalIPs: \"10.0.0\" is not an IPv4 address",
        "line 2, podCIDRs: \"10.42.1.1/24\" has bits set below its prefix; remedy: write 10.42.1.0/24",
        "line 3, internalIPs: \"127.0.0.1\" is this-network, loopback",
        "line 3, podCIDRs: \"10.42.2.0\" is not an IPv4 network",
        "line 3, publicEndpoint: \"224.0.0.1\" is this-network",
        "line 4, podCIDRs: \"160.0.0.0/3\" is this-network",
        "line 4, encapsulation: \"vxlan\" is not an encapsulation",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    assert_eq!(text.lines().count(), text.matches("remedy").count());
}

#[test]
fn more_nodes_than_the_maps_hold_are_refused() {
    let lines: String = (0..=maps::MAX_PEERS)
        .map(|n| format!("  - name: n{n}\n"))
        .collect();
    let error = parse(&format!("nodes:\n{lines}"), "n0")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("5121 nodes, but the maps hold 5120"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(nodes:\n)?([ -]{0,6}[a-zA-Z]{1,9}: ?[\\[\\]{}0-9./a-z,&*!\"']{0,12}\n){0,5}") {
        let _ = parse(&text, "a1");
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
        prop_assert_eq!(parse(&format!("nodes:\n{lines}"), "n0").is_err(), overlap);
    }
}

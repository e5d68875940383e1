use super::*;
use serde_json::json;

fn node(annotations: serde_json::Value, more: serde_json::Value) -> Node {
    let mut node = json!({
        "metadata": {"name": "a1", "annotations": annotations},
        "spec": {"podCIDRs": ["fd00::/64", "10.42.1.0/24"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "a1"},
            {"type": "InternalIP", "address": "fd00::11"},
            {"type": "InternalIP", "address": "10.0.0.11"},
        ]},
    });
    merge(&mut node, more);
    serde_json::from_value(node).unwrap()
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(json!(null)), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn endpoint_of(annotations: serde_json::Value) -> Option<String> {
    let derived = derive(&node(annotations, json!({})), None, None).unwrap();
    assert_eq!(derived.invalid, []);
    derived.spec.public_endpoint
}

#[test]
fn a_bare_node_has_its_ipv4_addresses_and_no_public_endpoint_realm_or_encapsulation() {
    let derived = derive(&node(json!({}), json!({})), None, None).unwrap();
    assert_eq!(
        derived.spec,
        IpipNodeSpec {
            internal_ips: vec!["10.0.0.11".into()],
            pod_cidrs: vec!["10.42.1.0/24".into()],
            public_endpoint: None,
            realm: None,
            encapsulation: None,
            probe_key: None,
        }
    );
}

#[test]
fn our_annotation_beats_the_external_ip_which_beats_the_annotations_of_others() {
    let external = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": "10.0.0.11"},
        {"type": "ExternalIP", "address": "203.0.113.2"},
    ]}});
    let flannel = (
        "flannel.alpha.coreos.com/public-ip-overwrite",
        "203.0.113.3",
    );
    let all = json!({"ipip.dev/public-endpoint": "203.0.113.1", flannel.0: flannel.1});
    let found = |annotations, more| {
        let derived = derive(&node(annotations, more), None, None).unwrap();
        (
            derived.spec.public_endpoint.unwrap(),
            derived.endpoint_from.unwrap(),
        )
    };
    let (address, from) = found(all, external.clone());
    assert_eq!(
        (address.as_str(), from.as_str()),
        ("203.0.113.1", "annotation ipip.dev/public-endpoint")
    );
    let (address, from) = found(json!({flannel.0: flannel.1}), external);
    assert_eq!(
        (address.as_str(), from.as_str()),
        ("203.0.113.2", "ExternalIP")
    );
    let (address, _) = found(json!({flannel.0: flannel.1}), json!({}));
    assert_eq!(address, "203.0.113.3");
}

#[test]
fn annotations_of_flannel_k3s_and_calico_give_the_public_endpoint() {
    assert_eq!(
        endpoint_of(json!({
            "flannel.alpha.coreos.com/public-ip": "10.0.0.11",
            "flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.3",
        })),
        Some("203.0.113.3".into())
    );
    assert_eq!(
        endpoint_of(json!({"k3s.io/external-ip": "2001:db8::1,203.0.113.4"})),
        Some("203.0.113.4".into())
    );
    assert_eq!(
        endpoint_of(json!({"projectcalico.org/IPv4Address": "203.0.113.5/24"})),
        Some("203.0.113.5".into())
    );
}

#[test]
fn an_interface_address_that_a_program_detected_is_no_public_endpoint() {
    assert_eq!(
        endpoint_of(json!({"flannel.alpha.coreos.com/public-ip": "10.0.0.11"})),
        None
    );
    assert_eq!(
        endpoint_of(json!({"projectcalico.org/IPv4Address": "192.168.7.2/24"})),
        None
    );
    // A person may mean a private address, but not the node's own.
    let overwrite = "flannel.alpha.coreos.com/public-ip-overwrite";
    assert_eq!(
        endpoint_of(json!({overwrite: "192.168.7.2"})),
        Some("192.168.7.2".into())
    );
    assert_eq!(endpoint_of(json!({overwrite: "10.0.0.11"})), None);
}

/// A provider's annotation that cannot be read must not remove the endpoint that works.
#[test]
fn an_invalid_annotation_of_another_project_is_reported_and_the_last_good_value_stays() {
    let last = IpipNodeSpec {
        internal_ips: vec!["10.0.0.11".into()],
        pod_cidrs: vec!["10.42.1.0/24".into()],
        public_endpoint: Some("203.0.113.3".into()),
        realm: None,
        encapsulation: None,
        probe_key: None,
    };
    for (key, value) in [
        ("flannel.alpha.coreos.com/public-ip-overwrite", "203.0.113"),
        ("k3s.io/external-ip", "2001:db8::1,example.org"),
        ("flannel.alpha.coreos.com/public-ip", "127.0.0.1"),
        ("projectcalico.org/IPv4Address", "203.0.113.300/24"),
    ] {
        let derived = derive(&node(json!({key: value}), json!({})), None, Some(&last)).unwrap();
        assert_eq!(derived.spec, last, "{key}");
        let text = derived.invalid[0].to_string();
        assert!(text.contains(key) && text.contains(value), "{text}");
    }
    assert_eq!(
        endpoint_of(json!({"k3s.io/external-ip": "2001:db8::1"})),
        None
    );
}

#[test]
fn none_in_our_annotation_disables_the_annotations_of_others() {
    let annotations = json!({
        "ipip.dev/public-endpoint": "none",
        "flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.3",
    });
    assert_eq!(endpoint_of(annotations), None);
}

#[test]
fn an_invalid_value_is_reported_and_replaced_by_the_last_good_one_and_the_others_are_updated() {
    let annotations =
        json!({"ipip.dev/public-endpoint": "203.0.113", "ipip.dev/encapsulation": "gre"});
    let last = IpipNodeSpec {
        internal_ips: vec!["10.0.0.99".into()],
        pod_cidrs: vec!["10.42.1.0/24".into()],
        public_endpoint: Some("203.0.113.1".into()),
        realm: None,
        encapsulation: Some("udp".into()),
        probe_key: None,
    };
    let derived = derive(&node(annotations, json!({})), None, Some(&last)).unwrap();
    assert_eq!(derived.spec.public_endpoint, last.public_endpoint);
    assert_eq!(derived.spec.encapsulation, last.encapsulation);
    assert_eq!(derived.spec.internal_ips, ["10.0.0.11"]);
    let texts: Vec<String> = derived
        .invalid
        .iter()
        .map(InvalidValue::to_string)
        .collect();
    assert_eq!(
        texts,
        [
            "annotation ipip.dev/public-endpoint: \"203.0.113\" cannot be used; remedy: an IPv4 address that can be routed, like 203.0.113.11, or none",
            "annotation ipip.dev/encapsulation: \"gre\" cannot be used; remedy: ipip, udp or direct",
        ]
    );
}

#[test]
fn the_label_beats_provider_and_region() {
    let cloud = json!({
        "metadata": {"labels": {"topology.kubernetes.io/region": "us-east-1"}},
        "spec": {"providerID": "aws:///us-east-1a/i-0abc"},
    });
    let realm_of = |more| {
        derive(&node(json!({}), more), None, None)
            .unwrap()
            .spec
            .realm
    };
    assert_eq!(realm_of(cloud.clone()), Some("aws.us-east-1".into()));
    let mut labelled = cloud;
    merge(
        &mut labelled,
        json!({"metadata": {"labels": {"ipip.dev/realm": "office"}}}),
    );
    assert_eq!(realm_of(labelled.clone()), Some("office".into()));
    merge(
        &mut labelled,
        json!({"metadata": {"labels": {"ipip.dev/realm": ""}}}),
    );
    assert_eq!(realm_of(labelled), None);
    // Every k3s node has this provider ID, which contains no region.
    assert_eq!(realm_of(json!({"spec": {"providerID": "k3s://a1"}})), None);
}

#[test]
fn a_derived_realm_is_one_that_the_schema_accepts() {
    let realm_of = |provider: &str, region: &str| {
        let more = json!({
            "metadata": {"labels": {"topology.kubernetes.io/region": region}},
            "spec": {"providerID": format!("{provider}://x")},
        });
        derive(&node(json!({}), more), None, None)
            .unwrap()
            .spec
            .realm
            .unwrap()
    };
    let region = format!("{}-.-b", "r".repeat(57));
    assert_eq!(realm_of("aws", &region), format!("aws.{}", "r".repeat(57)));
    let region = format!("{}b", "r".repeat(62));
    assert_eq!(realm_of("", &region), region);
    assert_eq!(realm_of("-aws", "north"), "north");
}

fn with_internal_ips(last: &[&str], now: &[&str]) -> Derived {
    let addresses: Vec<_> = now
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .collect();
    let node = node(json!({}), json!({"status": {"addresses": addresses}}));
    let last = IpipNodeSpec {
        internal_ips: last.iter().map(|ip| (*ip).into()).collect(),
        pod_cidrs: vec!["10.42.1.0/24".into()],
        public_endpoint: None,
        realm: None,
        encapsulation: None,
        probe_key: None,
    };
    derive(&node, None, Some(&last)).unwrap()
}

#[test]
fn internal_ips_keep_their_published_order_and_new_ones_come_last() {
    let order = |last, now| with_internal_ips(last, now).spec.internal_ips;
    assert_eq!(
        order(&["10.0.0.1", "10.0.0.2"], &["10.0.0.2", "10.0.0.1"]),
        ["10.0.0.1", "10.0.0.2"]
    );
    assert_eq!(
        order(&["10.0.0.1", "10.0.0.2"], &["10.0.0.9", "10.0.0.2"]),
        ["10.0.0.2", "10.0.0.9"]
    );
    assert_eq!(
        order(&[], &["10.0.0.2", "10.0.0.1"]),
        ["10.0.0.2", "10.0.0.1"]
    );
}

#[test]
fn internal_ips_beyond_the_room_of_an_object_are_reported_and_the_first_ones_are_used() {
    let all: Vec<String> = (1..=70).map(|n| format!("10.0.0.{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let derived = with_internal_ips(&[all[69]], &all);
    assert_eq!(derived.spec.internal_ips.len(), MAX_INTERNAL_IPS);
    assert_eq!(derived.spec.internal_ips[..2], ["10.0.0.70", "10.0.0.1"]);
    assert_eq!(
        derived.invalid[0].to_string(),
        "status.addresses: \"10.0.0.64 and 5 more\" cannot be used; remedy: a node has at most 64 InternalIPs and 16 pod CIDRs, the others are not used"
    );
}

#[test]
fn a_node_without_pod_cidr_or_address_is_incomplete() {
    let late = node(json!({}), json!({"spec": {"podCIDRs": null}}));
    assert_eq!(derive(&late, None, None), Err(Incomplete::PodCidr));
    let new = node(json!({}), json!({"status": {"addresses": []}}));
    assert_eq!(derive(&new, None, None), Err(Incomplete::InternalIp));
}

#[test]
fn with_a_pool_the_claimed_block_replaces_the_pod_cidrs_of_the_node() {
    let claimed = ["10.50.3.0/24".to_owned()];
    let derive = |node: &Node, claimed| derive(node, Some(claimed), None);
    let derived = derive(&node(json!({}), json!({})), Ok(&claimed)).unwrap();
    assert_eq!(derived.spec.pod_cidrs, claimed);
    let without = node(json!({}), json!({"spec": {"podCIDRs": null}}));
    let derived = derive(&without, Ok(&claimed)).unwrap();
    assert_eq!(derived.spec.pod_cidrs, claimed);
    let refused = derive(&without, Err("no block is free".into()));
    assert_eq!(refused, Err(Incomplete::Block("no block is free".into())));
}

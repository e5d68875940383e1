use super::*;
use crate::nodes::{inventory::Node, kubernetes::crd::IpipNodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

fn object(name: &str, created: &str, ip: &str, cidr: &str) -> IpipNode {
    serde_json::from_value(json!({
        "apiVersion": "ipip.dev/v1alpha1",
        "kind": "IpipNode",
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"internalIPs": [ip], "podCIDRs": [cidr]},
    }))
    .unwrap()
}

/// The inventory if everything that is claimed is allowed.
fn inventory(index: &Index, own: &str) -> Inventory {
    index.inventory(own, |(claim, _)| Some(Cow::Borrowed(claim)), |_| true)
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-01-02T00:00:00Z";

/// The nodes that have an InternalIP.
fn names(index: &Index) -> Vec<String> {
    names_of(index, |node| !node.internal_ips.is_empty())
}

/// The nodes that have a pod CIDR.
fn with_pods(index: &Index) -> Vec<String> {
    names_of(index, |node| !node.pod_cidrs.is_empty())
}

fn names_of(index: &Index, is_wanted: fn(&Node) -> bool) -> Vec<String> {
    let nodes = inventory(index, "a").nodes.into_iter();
    nodes.filter(is_wanted).map(|node| node.name).collect()
}

#[test]
fn of_values_without_a_claim_that_of_the_older_object_wins_and_its_deletion_admits_the_younger() {
    let mut index = Index::default();
    index.apply(&object("a", NEW, "10.0.0.1", "10.42.1.0/24"));
    index.apply(&object("z", OLD, "10.0.0.1", "10.42.2.0/24"));
    assert_eq!(names(&index), ["z"]);
    assert!(inventory(&index, "a").left_out.contains_key("a"));
    assert!(index.delete("z"));
    assert_eq!(names(&index), ["a"]);
}

/// A claim of `values`, fields of an IpipClaim in JSON.
fn claim(name: &str, created: &str, uid: &str, values: serde_json::Value) -> IpipClaim {
    let mut spec = values;
    spec["node"] = name.split('.').next().unwrap().into();
    serde_json::from_value(json!({
        "apiVersion": "ipip.dev/v1alpha1",
        "kind": "IpipClaim",
        "metadata": {"name": name, "creationTimestamp": created, "uid": uid},
        "spec": spec,
    }))
    .unwrap()
}

fn address(ip: &str) -> serde_json::Value {
    json!({"internalIPs": [ip]})
}

#[test]
fn an_object_of_a_newer_version_is_used_without_what_this_version_does_not_know() {
    let newer: IpipNode = serde_json::from_value(json!({
        "apiVersion": "ipip.dev/v1alpha1",
        "kind": "IpipNode",
        "metadata": {"name": "b", "creationTimestamp": OLD},
        "spec": {
            "internalIPs": ["10.0.0.2"],
            "podCIDRs": ["10.42.2.0/24"],
            "encapsulation": "wireguard",
            "publicKey": "abc",
            "endpoints": [{"address": "203.0.113.2", "port": 51820}],
        },
        "status": {"agentVersion": "99.0.0", "paths": {"a": "probed"}},
    }))
    .unwrap();
    let mut index = Index::default();
    assert!(index.apply(&newer));
    let inventory = inventory(&index, "a");
    let [node] = &inventory.nodes[..] else {
        panic!("{:?}", inventory.nodes);
    };
    assert_eq!(node.internal_ips.len(), 1);
    assert_eq!(node.pod_cidrs.len(), 1);
    assert_eq!(node.encapsulation, None);
}

#[test]
fn an_older_claim_wins_also_after_its_nodes_object_was_created_again() {
    let mut index = Index::default();
    index.apply_claim(&claim("v.0", OLD, "1", address("10.0.0.1")));
    index.apply(&object("evil", OLD, "10.0.0.1", "10.42.2.0/24"));
    assert!(index.apply_claim(&claim("evil.0", NEW, "2", address("10.0.0.1"))));
    index.apply(&object("v", NEW, "10.0.0.1", "10.42.1.0/24"));
    assert_eq!(names(&index), ["v"]);
    // A value without a claim can be of any time.
    index.apply(&object(
        "w",
        "2025-01-01T00:00:00Z",
        "10.0.0.1",
        "10.42.3.0/24",
    ));
    assert_eq!(names(&index), ["v"]);
    assert!(index.delete_claim("v.0"));
    assert_eq!(names(&index), ["evil"]);
}

#[test]
fn a_changed_value_is_young_and_the_other_values_keep_their_age() {
    let mut index = Index::default();
    let values = json!({"internalIPs": ["10.0.0.1"], "podCIDRs": ["10.42.1.0/24"]});
    index.apply_claim(&claim("a.0", OLD, "1", values));
    index.apply_claim(&claim("b.0", NEW, "2", address("10.0.0.2")));
    index.apply(&object("b", NEW, "10.0.0.2", "10.42.1.0/24"));
    index.apply(&object("a", OLD, "10.0.0.1", "10.42.1.0/24"));
    assert_eq!(
        (names(&index).len(), with_pods(&index)),
        (2, vec!["a".to_owned()])
    );
    // `a` takes the address of `b`, which is younger than `a`, but not than this claim.
    index.apply(&object("a", OLD, "10.0.0.2", "10.42.1.0/24"));
    index.apply_claim(&claim(
        "a.1",
        "2026-01-03T00:00:00Z",
        "0",
        address("10.0.0.2"),
    ));
    assert_eq!(
        (names(&index), with_pods(&index)),
        (vec!["b".to_owned()], vec!["a".to_owned()])
    );
}

#[test]
fn a_claim_dates_internal_ips_in_its_realm_only() {
    let mut index = Index::default();
    let in_x = |mut object: IpipNode| {
        object.spec.realm = Some("x".into());
        object
    };
    index.apply_claim(&claim("evil.0", OLD, "1", address("10.0.0.1")));
    index.apply_claim(&claim(
        "v.0",
        NEW,
        "2",
        json!({"internalIPs": ["10.0.0.1"], "realm": "x"}),
    ));
    index.apply(&in_x(object("evil", OLD, "10.0.0.1", "10.42.1.0/24")));
    index.apply(&in_x(object("v", NEW, "10.0.0.1", "10.42.2.0/24")));
    assert_eq!(names(&index), ["v"]);
}

#[test]
fn of_two_claims_of_one_second_the_uid_decides_which_no_client_chooses() {
    let mut index = Index::default();
    for (node, uid) in [("a", "2"), ("b", "1")] {
        index.apply(&object(node, OLD, "10.0.0.1", &format!("10.42.{uid}.0/24")));
        index.apply_claim(&claim(&format!("{node}.0"), OLD, uid, address("10.0.0.1")));
    }
    assert_eq!(names(&index), ["b"]);
}

#[test]
fn an_object_that_is_being_deleted_does_not_count_whatever_its_finalizers() {
    let mut index = Index::default();
    index.apply(&object("a", NEW, "10.0.0.1", "10.42.1.0/24"));
    let mut old = object("b", OLD, "10.0.0.1", "10.42.2.0/24");
    index.apply(&old);
    let mut dated = claim("b.0", OLD, "1", address("10.0.0.1"));
    index.apply_claim(&dated);
    let mut held = block("b", OLD, "10.42.1.0/24");
    index.apply_block(&held);
    assert_eq!(
        (names(&index), with_pods(&index)),
        (vec!["b".to_owned()], vec!["b".to_owned()])
    );
    let end = |metadata: &mut ObjectMeta| {
        let time = "2026-01-02T00:00:00Z".parse().unwrap();
        metadata.deletion_timestamp = Some(Time(time));
        metadata.finalizers = Some(vec!["example.org/held".into()]);
    };
    end(&mut held.metadata);
    assert!(index.apply_block(&held));
    assert_eq!(with_pods(&index), ["b", "a"]);
    end(&mut dated.metadata);
    assert!(index.apply_claim(&dated));
    end(&mut old.metadata);
    assert!(index.apply(&old));
    assert_eq!(names(&index), ["a"]);
    assert_eq!(inventory(&index, "a").nodes.len(), 1);
}

#[test]
fn a_change_of_the_status_alone_is_no_change_of_the_claim() {
    let mut index = Index::default();
    let mut it = object("a", OLD, "10.0.0.1", "10.42.1.0/24");
    assert!(index.apply(&it));
    it.status = Some(Default::default());
    it.metadata.resource_version = Some("7".into());
    assert!(!index.apply(&it));
}

#[test]
fn what_other_nodes_report_about_the_own_addresses_is_part_of_the_inventory() {
    let mut index = Index::default();
    index.apply(&object("a", OLD, "10.0.0.1", "10.42.1.0/24"));
    let mut reporter = object("b", OLD, "10.0.0.2", "10.42.2.0/24");
    index.apply(&reporter);
    let reported = vec!["10.0.0.1".into(), "10.0.0.9".into(), "?".into()];
    reporter.status = Some(IpipNodeStatus {
        lan_conflicts: reported,
        ..IpipNodeStatus::default()
    });
    assert!(index.apply(&reporter));
    assert!(!index.apply(&reporter));
    let conflicts = inventory(&index, "a").lan_conflicts;
    let expected = BTreeSet::from(["b".to_owned()]);
    assert_eq!(
        conflicts,
        BTreeMap::from([([10, 0, 0, 1].into(), expected)])
    );
    assert_eq!(inventory(&index, "b").lan_conflicts, BTreeMap::new());
    reporter.status = None;
    assert!(index.apply(&reporter));
    assert_eq!(inventory(&index, "a").lan_conflicts, BTreeMap::new());
}

fn block(node: &str, created: &str, cidr: &str) -> IpipPodBlock {
    serde_json::from_value(json!({
        "apiVersion": "ipip.dev/v1alpha1",
        "kind": "IpipPodBlock",
        "metadata": {"name": cidr.replace(['.', '/'], "-"), "creationTimestamp": created},
        "spec": {"cidr": cidr, "node": node},
    }))
    .unwrap()
}

#[test]
fn a_block_keeps_its_range_for_its_node_until_it_is_deleted() {
    let mut index = Index::default();
    assert!(index.apply_block(&block("a", OLD, "10.42.1.0/24")));
    assert!(!index.apply_block(&block("a", OLD, "10.42.1.0/24")));
    index.apply(&object("b", NEW, "10.0.0.2", "10.42.1.0/24"));
    index.apply(&object("a", NEW, "10.0.0.1", "10.42.1.0/24"));
    assert_eq!(with_pods(&index), ["a"]);
    assert!(index.delete_block("10-42-1-0-24"));
    index.delete("a");
    assert_eq!(with_pods(&index), ["b"]);
}

#[test]
fn a_block_of_the_same_second_as_a_claim_is_the_older_one_and_an_invalid_block_has_no_effect() {
    let mut index = Index::default();
    index.apply(&object("b", OLD, "10.0.0.2", "10.42.1.0/24"));
    index.apply_claim(&claim(
        "b.0",
        OLD,
        "1",
        json!({"podCIDRs": ["10.42.1.0/24"]}),
    ));
    index.apply_block(&block("a", OLD, "10.42.1.0/24"));
    assert!(!index.apply_block(&block("a", OLD, "240.0.0.0/24")));
    assert_eq!(with_pods(&index), [""; 0]);
}

#[test]
fn an_invalid_value_of_an_object_is_left_out_and_everything_else_is_not() {
    let mut index = Index::default();
    index.apply(&object("a", OLD, "10.0.0.1", "240.0.0.0/24"));
    index.apply(&object("b", OLD, "10.0.0.2", "10.42.2.0/24"));
    let inventory = inventory(&index, "a");
    assert_eq!(names(&index), ["a", "b"]);
    assert_eq!(inventory.nodes[0].pod_cidrs, []);
    let why = inventory.left_out["a"][0].to_string();
    assert!(why.contains("240.0.0.0/24"), "{why}");
}

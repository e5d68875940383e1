//! Inventory files, and what holds for each inventory.

use ipip_agent::nodes::inventory::{Inventory, InventoryError, Node, parse};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The node whose agent reads the file.
pub const OWN: &str = "a1";

/// An inventory file, and behind `---` the next version of it: values that have become invalid keep their last ones.
pub fn inventory(text: &str) {
    let (first, next) = text.split_once("\n---\n").unwrap_or((text, ""));
    let first = read(first, None);
    if !next.is_empty() {
        read(next, first.as_ref());
    }
}

fn read(text: &str, last: Option<&Inventory>) -> Option<Inventory> {
    // YAML has three line ends.
    let lines = text.split(['\n', '\r']).count() as u64;
    match parse(text, OWN, last) {
        Ok(inventory) => {
            assert!(inventory.node(OWN).is_some());
            for left_out in inventory.left_out.values().flatten() {
                assert!(left_out.line.is_some_and(|it| it <= lines), "{left_out}");
            }
            expect_consistent(&inventory);
            expect_readable(&inventory);
            Some(inventory)
        }
        Err(InventoryError::Form { line, message, .. }) => {
            assert!(line <= lines && !message.is_empty());
            None
        }
        Err(InventoryError::OwnNodeMissing { .. }) => None,
    }
}

/// Fails if nodes contradict each other, or if a value that is left out is not explained.
pub fn expect_consistent(inventory: &Inventory) {
    let (mut names, mut internal_ips) = (BTreeSet::new(), BTreeSet::new());
    let mut holders = BTreeMap::new();
    let mut networks = Vec::new();
    for node in &inventory.nodes {
        assert!(names.insert(&node.name), "two nodes are {}", node.name);
        for ip in &node.internal_ips {
            assert!(internal_ips.insert((&node.realm, ip)), "{ip} twice");
        }
        if let Some(ip) = node.public_endpoint {
            let holder = holders.insert(ip, &node.name);
            assert_eq!(holder, None, "{ip} of {}", node.name);
        }
        networks.extend(node.pod_cidrs.iter().map(|it| (it, &node.name)));
    }
    for (index, (network, name)) in networks.iter().enumerate() {
        let overlapping = networks[..index].iter().find(|it| it.0.overlaps(**network));
        assert_eq!(overlapping, None, "{network} of {name}");
    }
    for node in &inventory.nodes {
        for ip in node.internal_ips.iter().chain(&node.public_endpoint) {
            let holding = networks.iter().find(|it| it.0.contains(*ip));
            assert_eq!(holding, None, "{ip} of {}", node.name);
        }
        for ip in &node.internal_ips {
            let holder = holders.get(ip);
            assert!(
                holder.is_none_or(|it| **it == node.name),
                "{ip} is the endpoint of {holder:?}"
            );
        }
    }
    for left_out in inventory.left_out.values().flatten() {
        let text = left_out.to_string();
        let named = format!("{}: {:?} ", left_out.field, left_out.value);
        assert!(text.contains(&named) && text.contains("remedy: "), "{text}");
    }
}

/// Fails if the nodes, written as a file, are not the same inventory.
fn expect_readable(inventory: &Inventory) {
    let nodes: Vec<Value> = inventory.nodes.iter().map(entry).collect();
    // JSON is YAML.
    let text = json!({ "nodes": nodes }).to_string();
    let again = parse(&text, OWN, None).unwrap();
    assert_eq!(again.nodes, inventory.nodes);
    assert_eq!(again.left_out, BTreeMap::new());
}

fn entry(node: &Node) -> Value {
    json!({
        "name": node.name,
        "internalIPs": node.internal_ips,
        "podCIDRs": node.pod_cidrs,
        "publicEndpoint": node.public_endpoint,
        "realm": node.realm,
        "encapsulation": node.encapsulation.map(|it| it.name()),
        "probeKey": node.probe_key.map(|it| it.to_string()),
    })
}

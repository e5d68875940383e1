//! Checks across nodes: contradicting names, addresses and networks, and sizes.

use super::{Fault, InvalidField, Inventory, InventoryError, Node, claim::ParsedNode};
use ipip_abi::maps;
use ipnetwork::Ipv4Network;
use std::collections::BTreeMap;

/// Checks that no two nodes have the same name.
pub fn check_names(entries: &[ParsedNode], invalid: &mut Vec<InvalidField>) {
    let mut lines = BTreeMap::new();
    for entry in entries {
        if let Some(first) = lines.insert(&entry.node.name, entry.name_line) {
            invalid.push(InvalidField {
                line: entry.name_line,
                field: "name",
                value: entry.node.name.clone(),
                fault: Fault::NameTaken(first),
            });
        }
    }
}

/// Checks that no two nodes claim the same address or overlapping networks, and that no network holds a
/// node's address.
pub fn check_together(entries: &[ParsedNode], invalid: &mut Vec<InvalidField>) {
    check_addresses(entries, invalid);
    check_networks(entries, invalid);
}

fn check_addresses(entries: &[ParsedNode], invalid: &mut Vec<InvalidField>) {
    let mut by_realm = BTreeMap::new();
    let mut by_ip = BTreeMap::new();
    for entry in entries {
        for (address, line) in entry.internal_ips() {
            let owner = (entry, line);
            by_ip.entry(address).or_insert_with(Vec::new).push(owner);
            if let Some((other, first)) = by_realm.insert((&entry.node.realm, address), owner) {
                invalid.push(InvalidField {
                    line,
                    field: "internalIPs",
                    value: address.to_string(),
                    fault: Fault::InternalIpTaken(other.node.name.clone(), first),
                });
            }
        }
    }
    let mut by_endpoint = BTreeMap::new();
    for entry in entries {
        let Some((address, line)) = entry.endpoint() else {
            continue;
        };
        let taken = by_endpoint
            .insert(address, (entry, line))
            .map(|(other, first)| Fault::EndpointTaken(other.node.name.clone(), first));
        let owners = by_ip.get(&address).into_iter().flatten();
        let internal = owners
            .filter(|(other, _)| other.node.name != entry.node.name)
            .map(|(other, first)| Fault::EndpointIsInternalIp(other.node.name.clone(), *first));
        invalid.extend(taken.into_iter().chain(internal).map(|fault| InvalidField {
            line,
            field: "publicEndpoint",
            value: address.to_string(),
            fault,
        }));
    }
}

fn check_networks(entries: &[ParsedNode], invalid: &mut Vec<InvalidField>) {
    // Two networks are either nested or disjoint. Sorted by (first address, prefix length), a network
    // that overlaps an earlier one is nested in the last of the disjoint networks so far.
    let mut networks: Vec<(Ipv4Network, Option<u64>, &ParsedNode)> = entries
        .iter()
        .flat_map(|entry| entry.pod_cidrs().map(move |(n, line)| (n, line, entry)))
        .collect();
    networks.sort_by_key(|(network, line, _)| (network.network(), network.prefix(), *line));
    let mut disjoint: Vec<(Ipv4Network, Option<u64>, &ParsedNode)> = Vec::new();
    for (network, line, entry) in networks {
        match disjoint.last() {
            Some((other, first, owner)) if other.contains(network.network()) => {
                invalid.push(InvalidField {
                    line,
                    field: "podCIDRs",
                    value: network.to_string(),
                    fault: Fault::Overlaps(*other, owner.node.name.clone(), *first),
                });
            }
            _ => disjoint.push((network, line, entry)),
        }
    }
    for owner in entries {
        for (address, address_line) in owner.internal_ips().chain(owner.endpoint()) {
            let after = disjoint.partition_point(|(network, ..)| network.network() <= address);
            let Some((network, line, _)) = after.checked_sub(1).map(|at| disjoint[at]) else {
                continue;
            };
            if network.contains(address) {
                invalid.push(InvalidField {
                    line,
                    field: "podCIDRs",
                    value: network.to_string(),
                    fault: Fault::HoldsNode(address, owner.node.name.clone(), address_line),
                });
            }
        }
    }
}

/// Checks that the maps can hold the inventory.
pub fn check_sizes(inventory: &Inventory) -> Result<(), InventoryError> {
    let sum = |each: fn(&Node) -> usize| inventory.nodes.iter().map(each).sum::<usize>();
    for (what, count, most) in [
        ("nodes", inventory.nodes.len(), maps::MAX_PEERS),
        (
            "pod CIDRs and InternalIPs",
            sum(|node| node.pod_cidrs.len() + node.internal_ips.len()),
            maps::MAX_ROUTES,
        ),
        (
            "InternalIPs and public endpoints",
            sum(|node| node.internal_ips.len() + usize::from(node.public_endpoint.is_some())),
            maps::MAX_NODE_ADDRS,
        ),
    ] {
        let most = most as usize;
        if count > most {
            return Err(InventoryError::TooMany { what, count, most });
        }
    }
    Ok(())
}

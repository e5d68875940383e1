//! Addresses that stay with this host's own network although a peer of another realm claims them. Pure.

use crate::{
    host::facts::{Facts, LocalUse},
    nodes::inventory::{Inventory, Node},
    problems::{Problem, Reason},
};
use ipnetwork::Ipv4Network;
use std::{collections::BTreeSet, net::Ipv4Addr};

/// Why the InternalIP `address` of `peer` gets no route into the tunnel; `None` if it gets one.
pub fn of_internal_ip(
    own: &Node,
    peer: &Node,
    address: Ipv4Addr,
    inventory: &Inventory,
    facts: &Facts,
) -> Option<LocalUse> {
    if facts.local.contains(&address) {
        return Some(LocalUse::Host);
    }
    let mut reserved = facts.reserved.iter();
    let reserved = reserved.find(|(network, _)| network.contains(address));
    let reserved = reserved.map(|(_, why)| *why);
    let is_resolver = reserved == Some(LocalUse::Resolver);
    if own.realm == peer.realm {
        // It is the same machine, for example a node that is the gateway. An address beside the node's first one could also
        // be claimed to read what the realm's pods send to that machine.
        let is_first = peer.internal_ips.first() == Some(&address);
        return reserved.filter(|_| !is_first);
    }
    if facts.gateways.contains(&address) {
        return Some(LocalUse::Gateway);
    }
    // A public address is that of the peer itself.
    if peer.public_endpoint == Some(address) && !is_resolver {
        return None;
    }
    if inventory.api_server.contains(&address) {
        return Some(LocalUse::ApiServer);
    }
    reserved
}

/// The address or network in the pod CIDR `network` that stays with this host's own network, and why. A pod CIDR inside of
/// a larger local network is more specific than that and does not count.
pub fn in_pod_cidr(
    network: Ipv4Network,
    inventory: &Inventory,
    facts: &Facts,
) -> Option<(Ipv4Network, LocalUse)> {
    let own = facts.local.difference(&facts.of_other_networks);
    let local = own.map(|it| (*it, LocalUse::Host));
    let gateways = facts.gateways.iter().map(|it| (*it, LocalUse::Gateway));
    let api_server = inventory.api_server.iter();
    let api_server = api_server.map(|it| (*it, LocalUse::ApiServer));
    let addresses = local.chain(gateways).chain(api_server);
    let addresses = addresses.map(|(it, why)| (Ipv4Network::from(it), why));
    let reserved = facts.reserved.iter().map(|(it, why)| (*it, *why));
    addresses
        .chain(reserved)
        .find(|(it, _)| network.is_supernet_of(*it))
}

/// The InternalIPs of other realms that lie in a network of an uplink, where another machine could have them, with the
/// uplink's index.
pub fn lan_candidates(
    own: &Node,
    inventory: &Inventory,
    facts: &Facts,
) -> BTreeSet<(u32, Ipv4Addr)> {
    let others = inventory.nodes.iter().filter(|it| it.realm != own.realm);
    let addresses = others.flat_map(|peer| peer.internal_ips.iter().map(move |ip| (peer, *ip)));
    let routed =
        addresses.filter(|(peer, ip)| of_internal_ip(own, peer, *ip, inventory, facts).is_none());
    let in_networks = routed.flat_map(|(_, ip)| {
        let networks = facts.on_link.iter();
        let networks = networks.filter(move |(_, network)| network.contains(ip));
        networks.map(move |(uplink, _)| (*uplink, ip))
    });
    in_networks.collect()
}

/// A problem for each machine of the local network that has an InternalIP of another realm.
fn lan_hosts(own: &Node, inventory: &Inventory, facts: &Facts) -> Vec<Problem> {
    if facts.lan_hosts.is_empty() {
        return Vec::new();
    }
    let owners = inventory.internal_ip_owners(&own.realm);
    let hosts = facts.lan_hosts.iter();
    let texts = hosts.filter_map(|(address, mac)| {
        let node = owners.get(address)?;
        Some(format!(
            "internalIPs: {address} of node {node} is also the address of a machine in this network ({mac}), which this node and its pods therefore do not reach; remedy: renumber one of the two, or add the address to localAddresses, so that it leads to that machine"
        ))
    });
    let problem = |text| Problem::new(Reason::LanConflict, text);
    texts.map(problem).collect()
}

/// A problem for each InternalIP of this node that a machine in the network of another node has, too.
fn lan_hosts_elsewhere(inventory: &Inventory) -> Vec<Problem> {
    const SHOWN: usize = 3;
    let conflicts = inventory.lan_conflicts.iter();
    let texts = conflicts.map(|(address, nodes)| {
        let shown: Vec<&str> = nodes.iter().take(SHOWN).map(String::as_str).collect();
        let more = match nodes.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "internalIPs: {address} of this node is also the address of a machine in the network of {}{more}, which those nodes do not reach; remedy: renumber one of the two, or set localAddresses there",
            shown.join(", ")
        )
    });
    let problem = |text| Problem::new(Reason::LanConflict, text);
    texts.map(problem).collect()
}

/// The problems of addresses that both the local network and another realm use.
pub fn problems(own: &Node, inventory: &Inventory, facts: &Facts) -> Vec<Problem> {
    let mut texts = Vec::new();
    for peer in inventory.nodes.iter().filter(|it| it.name != own.name) {
        for &address in &peer.internal_ips {
            if let Some(why) = of_internal_ip(own, peer, address, inventory, facts) {
                texts.push(format!(
                    "internalIPs: {address} of node {} is also {why}, which keeps it: this node and its pods do not reach that node by it; remedy: renumber one of the two",
                    peer.name
                ));
            }
        }
        for &network in &peer.pod_cidrs {
            if let Some((held, why)) = in_pod_cidr(network, inventory, facts) {
                let held = held.ip();
                texts.push(format!(
                    "podCIDRs: {network} of node {} holds {held}, {why}: its pods are not reached; remedy: use other pod CIDRs, or remove a leftover address or route",
                    peer.name
                ));
            }
        }
    }
    let problem = |text| Problem::new(Reason::AddressInUse, text);
    let mut problems: Vec<Problem> = texts.into_iter().map(problem).collect();
    problems.extend(lan_hosts(own, inventory, facts));
    problems.extend(lan_hosts_elsewhere(inventory));
    problems
}

//! Addresses that stay with this host's own network although a peer of another realm claims them. Pure.

use crate::{
    host::facts::{Facts, LocalUse},
    nodes::inventory::{Inventory, Node},
    problems::{Problem, Reason},
};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

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
    // Inside the own realm it is the same machine, for example a node that is the gateway.
    if own.realm == peer.realm {
        return None;
    }
    if facts.gateways.contains(&address) {
        return Some(LocalUse::Gateway);
    }
    // A public address is that of the peer itself.
    if peer.public_endpoint == Some(address) {
        return None;
    }
    if inventory.api_server.contains(&address) {
        return Some(LocalUse::ApiServer);
    }
    let mut reserved = facts.reserved.iter();
    let found = reserved.find(|(network, _)| network.contains(address));
    found.map(|(_, why)| *why)
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

/// A problem for each claim of a peer that gets no route because of this.
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
    texts.into_iter().map(problem).collect()
}

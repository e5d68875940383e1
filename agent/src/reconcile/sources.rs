//! The source addresses of this node's tunnel packets: which one a peer gets, and what is wrong with it. Pure.

use crate::{
    host::facts::{Facts, Hop, Uplink},
    nodes::inventory::Node,
    problems::{Problem, Reason},
};
use ipip_abi::Peer;
use std::{collections::BTreeSet, net::Ipv4Addr};

/// The source address of packets from `own` to a peer on the underlay, before any NAT. `in_realm` says whether they go to the
/// peer's InternalIP.
///
/// Inside a realm, the peer knows only the InternalIPs of this node, so one of them is the source, if possible one
/// of the uplink. If none is on an interface, NAT may translate the uplink's address to the InternalIP.
///
/// Between realms, the peer knows the public endpoint. If that is not on an interface, the gateway translates an address
/// of its own network to it: an InternalIP, if the uplink has one there, otherwise the address that this host uses on
/// the route.
pub fn source(
    own: &Node,
    in_realm: bool,
    facts: &Facts,
    hop: &Hop,
    uplink: &Uplink,
) -> Option<Ipv4Addr> {
    let find = |known: &dyn Fn(Ipv4Addr) -> bool| {
        let mut internal_ips = own.internal_ips.iter().copied();
        internal_ips.find(|address| known(*address))
    };
    if !in_realm {
        let is_local = |endpoint: &Ipv4Addr| facts.local.contains(endpoint);
        return own
            .public_endpoint
            .filter(is_local)
            .or_else(|| find(&|it| uplink.has_in_network_of(it, hop.next_hop)))
            .or(hop.source);
    }
    if own.internal_ips.is_empty() {
        return None;
    }
    find(&|it| hop.source == Some(it))
        .or_else(|| find(&|it| uplink.has(it)))
        .or_else(|| find(&|it| facts.local.contains(&it)))
        .or(hop.source)
}

/// What is wrong with the addresses of the node `own`, whose paths are `peers`.
pub fn problems<'a>(
    own: &Node,
    peers: impl IntoIterator<Item = &'a Peer>,
    facts: &Facts,
) -> Vec<Problem> {
    let absent = own
        .internal_ips
        .iter()
        .filter(|address| !facts.local.contains(address))
        .map(not_local);
    // A set, because many peers have the same uplink and source.
    let paths: BTreeSet<_> = peers
        .into_iter()
        .map(|peer| (peer.ifindex, Ipv4Addr::from(peer.source)))
        .collect();
    let of_others = paths.iter().filter_map(|(link, source)| {
        let holder = |uplink: &&Uplink| uplink.has(*source);
        let uplink = facts.uplinks.get(link).filter(|it| !holder(it))?;
        // An address of `lo` may leave through each uplink.
        let other = facts.uplinks.values().find(holder)?;
        Some(of_another_uplink(*source, &uplink.name, &other.name))
    });
    absent.chain(of_others).collect()
}

fn not_local(address: &Ipv4Addr) -> Problem {
    let text = format!(
        "the InternalIP {address} is on no interface of this node: pods are reached if NAT translates it, but packets between this node itself and remote pods are lost; remedy: let kubelet report an address of an interface (--node-ip), or correct internalIPs"
    );
    Problem::new(Reason::InternalIpNotLocal, text)
}

fn of_another_uplink(source: Ipv4Addr, uplink: &str, other: &str) -> Problem {
    let text = format!(
        "tunnel packets leave through {uplink} with the source {source}, which is an address of {other}: a network that filters sources drops them (`ipipctl dump peers` shows for which peers); remedy: let the routes to these peers lead through {other}, or, inside the realm, add an address of {uplink} to the InternalIPs of this node"
    );
    Problem::new(Reason::SourceOfAnotherUplink, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::COMMON_GSO_MAX;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    /// The reasons of a node with `internal_ip`, whose packets leave through eth0 with `source`. eth0 has 10.0.0.11,
    /// dmz has 10.9.0.11, and lo has 10.8.0.11.
    fn reasons(internal_ip: &str, source: &str) -> Vec<&'static str> {
        let uplink = |name: &str, address| Uplink {
            name: name.into(),
            mac: None,
            mtu: 1500,
            gso_max: COMMON_GSO_MAX,
            addresses: [ip(address).into()].into(),
        };
        let facts = Facts {
            local: ["10.0.0.11", "10.9.0.11", "10.8.0.11"].map(ip).into(),
            uplinks: [
                (2, uplink("eth0", "10.0.0.11")),
                (3, uplink("dmz", "10.9.0.11")),
            ]
            .into(),
            ..Facts::default()
        };
        let own = Node {
            is_found_near: false,
            name: "a1".into(),
            internal_ips: vec![ip(internal_ip)],
            pod_cidrs: Vec::new(),
            public_endpoint: None,
            realm: "a".into(),
            encapsulation: None,
            probe_key: None,
        };
        let peer = Peer {
            source: ip(source).into(),
            ifindex: 2,
            ..Peer::default()
        };
        let found = problems(&own, [&peer, &peer], &facts);
        found.iter().map(|it| it.reason.name()).collect()
    }

    #[test]
    fn a_source_of_another_uplink_and_an_absent_internal_ip_are_problems() {
        let none: [&str; 0] = [];
        assert_eq!(reasons("10.0.0.11", "10.0.0.11"), none);
        assert_eq!(reasons("10.8.0.11", "10.8.0.11"), none);
        assert_eq!(reasons("10.9.0.11", "10.9.0.11"), ["SourceOfAnotherUplink"]);
        assert_eq!(reasons("192.0.2.1", "10.0.0.11"), ["InternalIpNotLocal"]);
    }
}

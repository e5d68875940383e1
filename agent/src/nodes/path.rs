//! The path between two nodes, computed from the inventory. Pure.

use super::inventory::{Inventory, Node};
use ipip_abi::{Encapsulation, PeerState};
use std::{collections::BTreeSet, net::Ipv4Addr};

/// The address to which `own` sends packets for `peer`: inside a realm the first InternalIP,
/// between realms the public endpoint.
///
/// # Errors
/// The [`PeerState`] of a peer that lacks this address.
pub fn underlay(own: &Node, peer: &Node) -> Result<Ipv4Addr, PeerState> {
    if own.realm == peer.realm {
        let first = peer.internal_ips.first().copied();
        first.ok_or(PeerState::NoInternalIp)
    } else {
        peer.public_endpoint.ok_or(PeerState::NoPublicEndpoint)
    }
}

/// The address to which this node sends packets for a peer.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Underlay {
    /// The address.
    pub address: Ipv4Addr,
    /// Whether the peer is in this node's realm. It then accepts only InternalIPs of this node as the source.
    /// Between realms NAT replaces the source.
    pub in_realm: bool,
}

/// The underlay addresses of all peers of `own` that have one.
pub fn underlays(own: &Node, inventory: &Inventory) -> BTreeSet<Underlay> {
    let peers = inventory.nodes.iter().filter(|node| node.name != own.name);
    let found = peers.filter_map(|peer| {
        Some(Underlay {
            address: underlay(own, peer).ok()?,
            in_realm: own.realm == peer.realm,
        })
    });
    found.collect()
}

/// The encapsulation between `own` and `peer`; `default` is the configured one.
///
/// The function is symmetric, so both nodes compute the same answer. If either node asks for `udp`,
/// it is `udp`: a provider that drops protocol 4 drops it in both directions. `direct` needs one realm
/// and no node that asks for another encapsulation.
pub fn encapsulation(own: &Node, peer: &Node, default: Encapsulation) -> Encapsulation {
    use Encapsulation::{Direct, Ipip, Udp};
    let asked = [own.encapsulation, peer.encapsulation];
    let wants = |it| asked.contains(&Some(it));
    if wants(Udp) {
        return Udp;
    }
    if wants(Ipip) {
        return Ipip;
    }
    match if wants(Direct) { Direct } else { default } {
        Direct if own.realm == peer.realm => Direct,
        // `direct` does not apply between realms.
        _ if default == Udp => Udp,
        _ => Ipip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_stays_inside_one_realm_and_needs_both_nodes() {
        let node = |realm: &str, encapsulation| Node {
            name: "n".into(),
            internal_ips: Vec::new(),
            pod_cidrs: Vec::new(),
            public_endpoint: None,
            realm: realm.into(),
            encapsulation,
            probe_key: None,
        };
        use Encapsulation::{Direct, Ipip, Udp};
        for (own, peer, default, same_realm, expected) in [
            (None, None, Ipip, true, Ipip),
            (None, None, Udp, false, Udp),
            (Some(Udp), None, Ipip, true, Udp),
            (Some(Udp), Some(Ipip), Udp, true, Udp),
            (Some(Ipip), Some(Udp), Ipip, false, Udp),
            (Some(Ipip), Some(Direct), Udp, true, Ipip),
            (None, None, Direct, true, Direct),
            (None, None, Direct, false, Ipip),
            (None, Some(Direct), Udp, true, Direct),
            (None, Some(Direct), Udp, false, Udp),
            (Some(Udp), Some(Direct), Ipip, true, Udp),
            (Some(Direct), Some(Udp), Ipip, true, Udp),
        ] {
            let own = node("a", own);
            let peer = node(if same_realm { "a" } else { "b" }, peer);
            let found = encapsulation(&own, &peer, default);
            assert_eq!(
                found,
                encapsulation(&peer, &own, default),
                "{own:?} {peer:?}"
            );
            assert_eq!(found, expected, "{own:?} {peer:?} {default:?}");
        }
    }
}

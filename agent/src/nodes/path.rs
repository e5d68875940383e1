//! The path between two nodes, computed from the inventory. Pure.

use super::inventory::{Inventory, Node};
use ipip_abi::{Candidate, Encapsulation, PeerState};
use std::{
    collections::{BTreeSet, HashSet},
    net::Ipv4Addr,
};

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

/// A path that could be used to a peer, before this host's routes are known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way {
    /// Its number, which both nodes use.
    pub candidate: Candidate,
    /// The address to which packets go.
    pub underlay: Underlay,
}

/// The ways from `own` to `peer` that the configuration allows; `default` is the configured encapsulation.
///
/// Nobody has to configure anything, so addresses and encapsulations that nobody excludes are all ways, also the InternalIP of
/// another realm: a private route between two networks can appear at any time. `direct` is only used where it is asked for.
pub fn ways(own: &Node, peer: &Node, default: Encapsulation) -> impl Iterator<Item = Way> + use<> {
    use Candidate::{Direct, PrivateIpip, PrivateUdp, PublicIpip, PublicUdp};
    let chosen = encapsulation(own, peer, default);
    let asked = [own.encapsulation, peer.encapsulation];
    let is_only = chosen == Encapsulation::Direct
        || default == Encapsulation::Udp
        || asked.contains(&Some(chosen));
    // A machine with its public address on an interface: what goes there is billed.
    let is_private = |ip: &&Ipv4Addr| own.realm == peer.realm || Some(**ip) != peer.public_endpoint;
    let private = peer
        .internal_ips
        .first()
        .filter(is_private)
        .map(|ip| Underlay {
            address: *ip,
            in_realm: true,
        });
    let public = peer.public_endpoint.map(|ip| Underlay {
        address: ip,
        in_realm: false,
    });
    let all = [
        (PrivateIpip, private),
        (PrivateUdp, private),
        (PublicIpip, public),
        (PublicUdp, public),
        (Direct, private),
    ];
    let is_allowed = move |it: Encapsulation| match is_only {
        true => it == chosen,
        false => it != Encapsulation::Direct,
    };
    let allowed = all
        .into_iter()
        .filter(move |(candidate, _)| is_allowed(candidate.encapsulation()));
    allowed.filter_map(|(candidate, underlay)| {
        Some(Way {
            candidate,
            underlay: underlay?,
        })
    })
}

/// The addresses of all [`ways`], without those of `underlays`: the routes to these are known for another purpose.
pub fn further_underlays(
    own: &Node,
    inventory: &Inventory,
    default: Encapsulation,
    underlays: &BTreeSet<Underlay>,
) -> BTreeSet<Underlay> {
    let known: HashSet<Ipv4Addr> = underlays.iter().map(|it| it.address).collect();
    let peers = inventory.nodes.iter().filter(|node| node.name != own.name);
    let all = peers.flat_map(|peer| ways(own, peer, default));
    let all = all.map(|way| way.underlay);
    all.filter(|it| !known.contains(&it.address)).collect()
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
/// it is `udp`: a provider that drops protocol 4 drops it in both directions. `direct` needs one realm, which was stated,
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
        Direct if own.realm == peer.realm && !peer.is_found_near => Direct,
        // `direct` does not apply between realms.
        _ if default == Udp => Udp,
        _ => Ipip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Encapsulation::{Direct, Ipip, Udp};

    fn node(realm: &str, encapsulation: Option<Encapsulation>) -> Node {
        Node {
            name: "n".into(),
            internal_ips: Vec::new(),
            pod_cidrs: Vec::new(),
            public_endpoint: None,
            realm: realm.into(),
            encapsulation,
            is_found_near: false,
            probe_key: None,
        }
    }

    /// The names of the ways to `peer`, which has both addresses.
    fn names(own: &Node, peer: &Node, default: Encapsulation) -> Vec<&'static str> {
        let peer = Node {
            internal_ips: vec![[10, 0, 0, 12].into(), [10, 9, 0, 12].into()],
            public_endpoint: Some([203, 0, 113, 12].into()),
            ..peer.clone()
        };
        let ways = ways(own, &peer, default);
        ways.map(|way| {
            let last = if way.underlay.in_realm {
                "10.0.0.12"
            } else {
                "203.0.113.12"
            };
            assert_eq!(way.underlay.address.to_string(), last);
            way.candidate.name()
        })
        .collect()
    }

    const ALL: [&str; 4] = ["private-ipip", "private-udp", "public-ipip", "public-udp"];

    #[test]
    fn without_configuration_both_addresses_and_both_encapsulations_are_ways() {
        for (own, peer) in [("", ""), ("", "b"), ("a", ""), ("a", "a"), ("a", "b")] {
            assert_eq!(
                names(&node(own, None), &node(peer, None), Ipip),
                ALL,
                "{own:?} {peer:?}"
            );
        }
        let nothing = ways(&node("", None), &node("", None), Ipip);
        assert_eq!(nothing.count(), 0);
    }

    #[test]
    fn an_encapsulation_that_is_asked_for_is_the_only_one() {
        let only = |word: &str| {
            ALL.iter()
                .copied()
                .filter(|it| it.ends_with(word))
                .collect()
        };
        let (udp, ipip): (Vec<&str>, Vec<&str>) = (only("-udp"), only("-ipip"));
        for (own, peer, default, expected) in [
            (Some(Udp), None, Ipip, &udp[..]),
            (None, Some(Udp), Direct, &udp),
            (None, None, Udp, &udp),
            (Some(Udp), Some(Ipip), Ipip, &udp),
            (Some(Ipip), None, Ipip, &ipip),
            (None, Some(Ipip), Udp, &ipip),
            (None, None, Direct, &["direct"]),
            (Some(Direct), None, Ipip, &["direct"]),
            (None, Some(Direct), Udp, &["direct"]),
        ] {
            let (own, peer) = (node("a", own), node("a", peer));
            assert_eq!(
                names(&own, &peer, default),
                expected,
                "{own:?} {peer:?} {default:?}"
            );
        }
        // Between realms `direct` does not apply.
        for (asked, default, expected) in [
            (Some(Direct), Ipip, &ALL[..]),
            (None, Direct, &ALL),
            (Some(Direct), Udp, &udp),
        ] {
            let (own, peer) = (node("a", asked), node("b", None));
            assert_eq!(
                names(&own, &peer, default),
                expected,
                "{asked:?} {default:?}"
            );
        }
    }

    #[test]
    fn an_address_that_is_an_underlay_today_is_no_further_one() {
        let named = |name: &str, last: u8, realm| Node {
            name: name.into(),
            internal_ips: vec![[10, 0, 0, last].into()],
            public_endpoint: Some([203, 0, 113, last].into()),
            ..node(realm, None)
        };
        let nodes = vec![
            named("a1", 11, ""),
            named("a2", 12, ""),
            named("b1", 21, "b"),
        ];
        let inventory = Inventory {
            nodes,
            ..Inventory::default()
        };
        let own = &inventory.nodes[0];
        let today = underlays(own, &inventory);
        let further = further_underlays(own, &inventory, Ipip, &today);
        let texts = |all: BTreeSet<Underlay>| -> Vec<_> {
            let all = all.into_iter();
            all.map(|it| (it.address.to_string(), it.in_realm))
                .collect()
        };
        let (private, public) = (
            |ip: &str| (ip.to_owned(), true),
            |ip: &str| (ip.to_owned(), false),
        );
        assert_eq!(texts(today), [private("10.0.0.12"), public("203.0.113.21")]);
        assert_eq!(
            texts(further),
            [private("10.0.0.21"), public("203.0.113.12")]
        );
    }

    #[test]
    fn direct_stays_inside_one_realm_and_needs_both_nodes() {
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

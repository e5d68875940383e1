//! The public address of this node as peers see it: the outer source of its probes, which their answers state. Pure.
//!
//! One peer may be wrong, or stand where NAT shows another address. So two peers of different realms must agree, and no peer may
//! contradict them.

use super::{
    inventory::{Inventory, Node},
    seen::ELSEWHERE,
};
use crate::{
    config::LearnedEndpoint,
    problems::{Problem, Reason},
};
use ipip_abi::{Addr, is_never_a_pod_address};
use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// What a peer has seen counts for so long. In a cluster of 5,000 nodes a peer without traffic is probed every 17 minutes.
const EXPIRY: Duration = Duration::from_secs(30 * 60);
/// Former addresses that are remembered of a peer.
const FORMER: usize = 4;

/// What the peers see.
#[derive(Debug, Default)]
pub struct Views {
    /// By their names.
    peers: HashMap<String, View>,
    /// The peers that agreed last. They are named while they agree, so that a report does not change with each further peer.
    by: Option<[Witness; 2]>,
}

/// What a peer sees.
#[derive(Debug)]
struct View {
    address: Ipv4Addr,
    /// When it was seen last.
    at: Instant,
    /// What the peer saw before, and when that ended.
    former: Vec<(Ipv4Addr, Instant)>,
}

/// What follows from the views of all peers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Learned {
    /// Too little is known.
    #[default]
    Nothing,
    /// Peers of different realms see one address, and none sees another.
    Agreed {
        /// The address.
        address: Ipv4Addr,
        /// A peer of each of the first two realms.
        by: [Witness; 2],
    },
    /// They see an address that is the public endpoint of another node.
    OfAnother {
        /// The address.
        address: Ipv4Addr,
        /// The other node.
        node: String,
    },
    /// Peers see different addresses, or one that returns to a former one. Each with the first peer that sees it.
    Different(BTreeMap<Ipv4Addr, String>),
}

/// A peer, and the realm that it is in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Witness {
    /// The node's name.
    pub node: String,
    /// Its realm, as this node sees it.
    pub realm: String,
}

impl Views {
    /// Records that a peer has seen `address` as the source of a probe to its public endpoint. Private addresses say nothing: they
    /// were seen on a way without NAT, or behind another NAT.
    pub fn saw(&mut self, peer: &str, address: Ipv4Addr, now: Instant) {
        if !can_be_public(address) {
            return;
        }
        let Some(view) = self.peers.get_mut(peer) else {
            let view = View {
                address,
                at: now,
                former: Vec::new(),
            };
            self.peers.insert(peer.to_owned(), view);
            return;
        };
        view.at = now;
        let before = std::mem::replace(&mut view.address, address);
        if before == address {
            return;
        }
        view.former.retain(|(it, _)| *it != before);
        view.former.insert(0, (before, now));
        view.former.truncate(FORMER);
        // The address has probably changed for all. Those that still see the former one say so in their next answers.
        self.peers.retain(|_, it| it.address != before);
    }

    /// What the peers in `seen` have shown of the node `own`. It is the inventory as this node sees it: a peer that is
    /// reached by a private path is in this node's realm, and shows nothing.
    pub fn learned(&mut self, own: &Node, seen: &Inventory, now: Instant) -> Learned {
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < EXPIRY;
        self.peers.retain(|_, view| {
            view.former.retain(|(_, until)| is_fresh(*until));
            is_fresh(view.at)
        });
        let elsewhere = seen.nodes.iter().filter(|it| it.realm != own.realm);
        let views = elsewhere.filter_map(|it| Some((it, self.peers.get(&it.name)?)));
        // An InternalIP that is seen passes no NAT: peers reach the node there already.
        let views = views.filter(|(_, it)| !own.internal_ips.contains(&it.address));
        let mut addresses = BTreeMap::new();
        let mut realms = BTreeMap::new();
        let mut agreed_last = 0;
        for (peer, view) in views {
            let returns = view.former.iter().any(|(it, _)| *it == view.address);
            let former = view.former.iter().map(|(it, _)| *it);
            let all = former.filter(|_| returns).chain([view.address]);
            for address in all {
                first(&mut addresses, address, &peer.name);
            }
            first(&mut realms, &peer.realm, &peer.name);
            let is_peer = |it: &&Witness| it.node == peer.name && it.realm == peer.realm;
            agreed_last += self.by.iter().flatten().filter(is_peer).count();
        }
        if addresses.len() > 1 {
            let named = addresses.into_iter().map(|(it, peer)| (it, peer.into()));
            return Learned::Different(named.collect());
        }
        let mut witnesses = realms.into_iter().map(|(realm, node)| Witness {
            node: node.into(),
            realm: realm.into(),
        });
        let (Some((address, _)), Some(one), Some(other)) =
            (addresses.pop_first(), witnesses.next(), witnesses.next())
        else {
            return Learned::Nothing;
        };
        let mut others = seen.nodes.iter().filter(|it| it.name != own.name);
        match others.find(|it| it.public_endpoint == Some(address)) {
            Some(node) => Learned::OfAnother {
                address,
                node: node.name.clone(),
            },
            None => {
                let kept = self.by.take().filter(|by| by.len() == agreed_last);
                let by = kept.unwrap_or([one, other]);
                self.by = Some(by.clone());
                Learned::Agreed { address, by }
            }
        }
    }
}

/// What an operator of the node `own` should know about what was learned, with the remedy. The node's source states no public
/// endpoint.
pub fn problem(
    learned: &Learned,
    own: &Node,
    inventory: &Inventory,
    setting: LearnedEndpoint,
) -> Option<Problem> {
    let is_file = !inventory.is_published;
    let is_used = setting == LearnedEndpoint::Use && !is_file;
    let state = |value: &str| match is_file {
        true => format!(
            "write `publicEndpoint: {value}` for {} into the inventory",
            own.name
        ),
        false => format!(
            "`kubectl annotate node {} ipip.dev/public-endpoint={value}`",
            own.name
        ),
    };
    let ignore = match is_file {
        true => "set learnedPublicEndpoint: ignore".to_owned(),
        false => format!("`{}`", annotate_none(own)),
    };
    let text = match learned {
        Learned::Agreed { .. } if is_used => return None,
        Learned::Nothing => return None,
        Learned::Agreed { address, by } => {
            let [one, other] = by.each_ref().map(witness);
            let publish = match is_file {
                true => "",
                false => {
                    ", or set learnedPublicEndpoint: use, so that agents publish what peers see"
                }
            };
            format!(
                "publicEndpoint: nobody has stated one, and {one} and {other} see this node as {address}; remedy: {}{publish}; if other realms shall not reach it there, {ignore}",
                state(&address.to_string())
            )
        }
        Learned::OfAnother { address, node } => format!(
            "publicEndpoint: nobody has stated one, and peers see this node as {address}, which is the publicEndpoint of {node}: NAT lets both share it, so it leads to one of them; remedy: give this node a public address of its own, or {ignore}"
        ),
        Learned::Different(seen) => {
            let seen: Vec<_> = seen
                .iter()
                .map(|(it, peer)| format!("{it} ({peer})"))
                .collect();
            let kept = match own.public_endpoint.filter(|_| is_used) {
                Some(address) => format!("{address} stays published"),
                None => "none is suggested".into(),
            };
            format!(
                "publicEndpoint: nobody has stated one, and peers see this node at different addresses: {}; {kept}; remedy: if packets to one of them reach this node, {}, otherwise {ignore}",
                seen.join(", "),
                state("ADDRESS")
            )
        }
    };
    Some(Problem::new(Reason::PublicEndpoint, text))
}

fn annotate_none(own: &Node) -> String {
    format!(
        "kubectl annotate node {} ipip.dev/public-endpoint=none",
        own.name
    )
}

fn witness(it: &Witness) -> String {
    match it.realm.as_str() {
        "" | ELSEWHERE => format!("{} (without a realm)", it.node),
        realm => format!("{} (realm {realm:?})", it.node),
    }
}

/// Keeps the first name of each key, so that a text does not change with what arrives in another order.
fn first<'a, K: Ord>(names: &mut BTreeMap<K, &'a str>, key: K, name: &'a str) {
    let kept = names.entry(key).or_insert(name);
    *kept = name.min(*kept);
}

/// Whether a network that other realms reach can have this address. The ranges for documentation count: laboratories use them.
fn can_be_public(address: Ipv4Addr) -> bool {
    // 100.64.0.0/10 (RFC 6598): between a provider's NAT and its customers, or of a VPN.
    let is_shared = address.to_bits() >> 22 == Ipv4Addr::new(100, 64, 0, 0).to_bits() >> 22;
    !is_never_a_pod_address(Addr::from(address)) && !address.is_private() && !is_shared
}

#[cfg(test)]
mod tests;

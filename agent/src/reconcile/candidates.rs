//! What probes of a peer need: the secret of both nodes, and the paths that could be used. Pure.

use crate::{
    host::facts::Facts,
    nodes::{
        inventory::{Inventory, Node},
        path::{Way, ways},
        seen::is_stated_elsewhere,
    },
    paths::{candidate::Candidate, peers::Offer},
    probe_key::Secrets,
    reconcile::{path_entry, peer_ids::Ids},
};
use ipip_abi::{
    Encapsulation, Peer,
    probe::{ProbeSecret, candidate_index, candidate_indexes},
};
use std::collections::BTreeMap;

/// The secret of probes with `peer`, if it can be probed.
pub fn secret(peer: &Node, secrets: &Secrets) -> Option<ProbeSecret> {
    Some(ProbeSecret {
        address: peer.probe_address()?.into(),
        ..secrets.with(&peer.name, peer.probe_key?)?
    })
}

/// The peers that can be probed, by their indexes in the maps, as `inventory` states them: `candidates` and `secrets` are the
/// content of the maps, `ids` the index of each peer.
pub fn offers(
    own: &Node,
    inventory: &Inventory,
    ids: &Ids,
    candidates: &BTreeMap<u32, Peer>,
    secrets: &BTreeMap<u16, ProbeSecret>,
) -> BTreeMap<u16, Offer> {
    let peers = inventory.nodes.iter();
    let peers = peers.filter_map(|node| Some((*ids.get(&node.name)?, node)));
    let probed = peers.filter_map(|(id, node)| Some((id, node, secrets.get(&id)?)));
    let offers = probed.map(|(id, node, secret)| {
        let first = candidate_index(id, 0);
        let paths = candidates.range(candidate_indexes(id));
        let known = paths.filter_map(|(index, path)| {
            let number = u8::try_from(index - first).ok()?;
            let candidate = Candidate {
                number: number.try_into().ok()?,
                address: path.underlay.into(),
            };
            Some((candidate, path.mtu))
        });
        let offer = Offer {
            name: node.name.clone(),
            identity: secret.peer,
            candidates: known.collect(),
            other_realm: is_stated_elsewhere(own, node).then(|| node.realm.clone()),
        };
        (id, offer)
    });
    offers.collect()
}

/// The paths from `own` to `peer` that could be used on this host, with their numbers; `default` is the configured
/// encapsulation.
pub fn of_peer<'a>(
    own: &'a Node,
    peer: &Node,
    default: Encapsulation,
    facts: &'a Facts,
) -> impl Iterator<Item = (u8, Peer)> {
    // An own InternalIP that NAT translates is on no interface: packets to it would come back, or reach another machine.
    let is_own = |it: &Way| own.internal_ips.contains(&it.underlay.address);
    let ways = ways(own, peer, default).filter(move |it| !is_own(it));
    ways.filter_map(move |it| {
        let encapsulation = it.candidate.encapsulation();
        let path = path_entry::compute(own, facts, it.underlay, encapsulation).ok()?;
        Some((it.candidate as u8, path))
    })
}

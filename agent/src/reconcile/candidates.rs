//! What probes of a peer need: the secret of both nodes, and the paths that could be used. Pure.

use crate::{
    host::facts::Facts,
    nodes::{
        inventory::Node,
        path::{Way, ways},
    },
    probe_key::Secrets,
    reconcile::path_entry,
};
use ipip_abi::{Encapsulation, Peer, probe::ProbeSecret};

/// The secret of probes with `peer`, if it can be probed.
pub fn secret(peer: &Node, secrets: &Secrets) -> Option<ProbeSecret> {
    Some(ProbeSecret {
        address: peer.probe_address()?.into(),
        ..secrets.with(&peer.name, peer.probe_key?)?
    })
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

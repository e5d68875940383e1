//! The entry of a path in the maps. Pure.

use crate::{
    host::facts::Facts,
    nodes::{inventory::Node, path::Underlay},
    reconcile::sources,
};
use ipip_abi::{Addr, Encapsulation, Peer, PeerState};

/// The entry of the path from `own` to the peer at `underlay`.
///
/// # Errors
/// The [`PeerState`] of a peer that packets do not reach on this path.
pub fn compute(
    own: &Node,
    facts: &Facts,
    Underlay { address, in_realm }: Underlay,
    encapsulation: Encapsulation,
) -> Result<Peer, PeerState> {
    if facts.local.contains(&address) {
        return Err(PeerState::OwnAddress);
    }
    let hop = facts.hops.get(&address);
    let hop = hop.ok_or(PeerState::NoUnderlayRoute)?;
    let uplink = facts.uplinks.get(&hop.uplink);
    let uplink = uplink.ok_or(PeerState::NoUnderlayRoute)?;
    let source = sources::source(own, in_realm, facts, hop, uplink);
    let source = source.ok_or(PeerState::NoInternalIp)?;
    let (underlay, source) = (Addr::from(address), Addr::from(source));
    let macs = hop.mac.zip(uplink.mac);
    let (next_hop_mac, uplink_mac) = macs.unwrap_or_default();
    Ok(Peer {
        underlay,
        source,
        ifindex: hop.uplink,
        mtu: uplink.mtu.saturating_sub(encapsulation.overhead()),
        encapsulation: encapsulation as u8,
        flags: if macs.is_some() { Peer::MAC_KNOWN } else { 0 }
            | if in_realm { 0 } else { Peer::PUBLIC },
        next_hop_mac,
        uplink_mac,
        header_sum: Peer::partial_sum(source, underlay, encapsulation),
    })
}

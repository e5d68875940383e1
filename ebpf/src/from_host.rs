//! The program for packets that the host stack routes to peers. If the stack forwarded the packet, it has already
//! decremented the time to live. It has also answered packets that exceed the route's MTU.

use crate::{
    flow,
    ipv4::Ipv4,
    maps,
    packet::{HEADERS_LEN, Kind, Packet},
    probe,
    report::{self, count_frame},
    tunnel,
    verdict::PASS,
};
use core::hint::cold_path;
use ipip_abi::{Counter, DropReason, Peer, wire::ETH_LEN};

#[inline(always)]
pub fn try_from_host(packet: &Packet) -> Result<i32, DropReason> {
    if packet.kind() != Kind::Ipv4 {
        return Err(DropReason::NoRoute);
    }
    packet.pull(HEADERS_LEN);
    let ip = packet.ipv4(ETH_LEN).ok_or(DropReason::Truncated)?;
    let (mut index, mut peer) = peer_of(&ip)?;
    let is_probe = probe::is_own(&ip);
    if is_probe {
        cold_path();
        peer = probe::candidate(packet, index)?;
        // It is no traffic of the peer's path.
        index = report::UNCOUNTED;
    }
    // If a pod's packet took the slow path (to a Service, for example), its reply must take it too.
    if maps::pod(ip.source).is_some() {
        flow::record(packet, ETH_LEN, &ip);
    }
    let len = packet.len();
    match tunnel::send(packet, &ip, index, peer, packet.arrived_in())? {
        Some(verdict) => {
            let counter = match is_probe {
                true => Counter::ProbeSent,
                false => Counter::HostToTunnel,
            };
            count_frame(len, counter);
            Ok(verdict)
        }
        // The kernel segments the packet, because `ipip0` has no segmentation offloads. `from_far_end` sends the
        // segments.
        None => Ok(PASS),
    }
}

/// The peer that a packet is routed to, with its index in `PEERS`.
#[inline(always)]
pub fn peer_of(ip: &Ipv4) -> Result<(u16, &'static Peer), DropReason> {
    match maps::route(ip.destination) {
        Some(route) if route.peer != 0 => {
            let peer = maps::peer(route.peer).ok_or(DropReason::PeerUnreachable)?;
            Ok((route.peer, peer))
        }
        _ => Err(DropReason::NoRoute),
    }
}

//! What the host stack routed to peers: it already decremented the time to live where it
//! forwarded, and answered packets that are too big (the route's MTU).

use crate::{
    flow, maps,
    packet::{ETH_LEN, IPV4_LEN, Kind, Packet},
    report::count,
    tunnel,
};
use ipip_abi::{Counter, DropReason};

#[inline(always)]
pub fn try_from_host(packet: &Packet) -> Result<i32, DropReason> {
    if packet.kind() != Kind::Ipv4 {
        return Err(DropReason::NoRoute);
    }
    let _ = packet.pull(ETH_LEN + IPV4_LEN + 8);
    let ip = packet.ipv4(ETH_LEN).ok_or(DropReason::Truncated)?;
    let route = match maps::route(ip.destination) {
        Some(route) if route.peer != 0 => route,
        _ => return Err(DropReason::NoRoute),
    };
    let peer = maps::peer(route.peer).ok_or(DropReason::PeerUnreachable)?;
    // A pod's packet that took the stack (a Service): its reply must take it too.
    if maps::pod(ip.source).is_some() {
        flow::record(packet, ETH_LEN, &ip);
    }
    count(packet, Counter::HostToTunnel);
    tunnel::send(packet, &ip, route.peer, peer)
}

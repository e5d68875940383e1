//! The program for packets that the host stack routes to peers. If the stack forwarded the packet, it has already
//! decremented the time to live. It has also answered packets that exceed the route's MTU.

use crate::{
    flow, maps,
    packet::{HEADERS_LEN, Kind, Packet},
    report::count,
    tunnel,
};
use ipip_abi::{Counter, DropReason, wire::ETH_LEN};

#[inline(always)]
pub fn try_from_host(packet: &Packet) -> Result<i32, DropReason> {
    if packet.kind() != Kind::Ipv4 {
        return Err(DropReason::NoRoute);
    }
    let _ = packet.pull(HEADERS_LEN);
    let ip = packet.ipv4(ETH_LEN).ok_or(DropReason::Truncated)?;
    let route = match maps::route(ip.destination) {
        Some(route) if route.peer != 0 => route,
        _ => return Err(DropReason::NoRoute),
    };
    let peer = maps::peer(route.peer).ok_or(DropReason::PeerUnreachable)?;
    // If a pod's packet took the slow path (to a Service, for example), its reply must take it too.
    if maps::pod(ip.source).is_some() {
        flow::record(packet, ETH_LEN, &ip);
    }
    count(packet, Counter::HostToTunnel);
    tunnel::send(packet, &ip, route.peer, peer)
}

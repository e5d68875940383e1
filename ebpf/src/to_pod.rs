//! What the host stack sends to a pod: remembers flows whose reply would otherwise go past it.

use crate::{
    flow, maps,
    packet::{ETH_LEN, IPV4_LEN, Kind, Packet},
};

#[inline(always)]
pub fn remember(packet: &Packet) {
    if packet.kind() != Kind::Ipv4 {
        return;
    }
    let _ = packet.pull(ETH_LEN + IPV4_LEN + 8);
    let Some(ip) = packet.ipv4(ETH_LEN) else {
        return;
    };
    // Replies to anyone else take the host stack anyway.
    let has_fast_path = match maps::route(ip.source) {
        Some(route) => route.peer != 0 || maps::pod(ip.source).is_some(),
        None => false,
    };
    if has_fast_path {
        flow::record(packet, ETH_LEN, &ip);
    }
}

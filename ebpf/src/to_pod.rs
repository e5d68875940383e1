//! The program for packets that the host stack sends to a pod. It records the flows whose replies would otherwise
//! bypass the stack.

use crate::{
    flow, maps,
    packet::{HEADERS_LEN, Kind, Packet},
};
use ipip_abi::wire::ETH_LEN;

#[inline(always)]
pub fn record_flow(packet: &Packet) {
    if packet.kind() != Kind::Ipv4 {
        return;
    }
    packet.pull(HEADERS_LEN);
    let Some(ip) = packet.ipv4(ETH_LEN) else {
        return;
    };
    // Replies to all other sources take the host stack anyway.
    let has_fast_path = match maps::route(ip.source) {
        Some(route) => route.peer != 0 || maps::pod(ip.source).is_some(),
        None => false,
    };
    if has_fast_path {
        flow::record(packet, ETH_LEN, &ip);
    }
}

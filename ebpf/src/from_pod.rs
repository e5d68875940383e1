//! The program for packets that a pod sends.

use crate::{
    arp, deliver, flow,
    ipv4::{Ipv4, is_tunnel_protocol},
    maps,
    packet::{HEADERS_LEN, Kind, Packet, write_ok},
    report::{count, count_frame, count_rare},
    tunnel,
    verdict::PASS,
};
use core::hint::cold_path;
use ipip_abi::{
    Counter, DropReason, Encapsulation,
    wire::{ETH_LEN, PROTO_UDP},
};

#[inline(always)]
pub fn try_from_pod(packet: &Packet) -> Result<i32, DropReason> {
    // The tag would survive the encapsulation, so that the pod would choose a VLAN of the uplink.
    if packet.is_tagged() {
        return Err(DropReason::PodNotIpv4);
    }
    match packet.kind() {
        Kind::Ipv4 => {}
        Kind::Arp => return Ok(arp::from_pod(packet.skb)),
        Kind::Other => return Err(DropReason::PodNotIpv4),
    }
    packet.pull(HEADERS_LEN);
    let ip = packet.ipv4(ETH_LEN).ok_or(DropReason::Truncated)?;
    if ip.version() != 4 {
        return Err(DropReason::PodNotIpv4);
    }
    let own = match maps::pod(ip.source) {
        Some(own) if own.ifindex == packet.ifindex() => own,
        _ => return Err(DropReason::PodSourceSpoofed),
    };
    if may_enter_a_tunnel(packet, &ip) && maps::node_addr(ip.destination).is_some() {
        return Err(DropReason::PodSendsTunnel);
    }

    let Some(route) = maps::route(ip.destination) else {
        return to_stack(packet, Counter::PodToStack);
    };
    if ip.is_fragment() {
        return to_stack(packet, Counter::FragmentToStack);
    }
    if ip.ttl <= 1 {
        return to_stack(packet, Counter::TtlToStack);
    }
    if route.peer == 0 {
        // If no pod has this address of the node's own range, the host's `unreachable` route answers.
        let Some(pod) = maps::pod(ip.destination) else {
            return to_stack(packet, Counter::PodToStack);
        };
        if own.takes_host_stack() || pod.takes_host_stack() {
            return to_stack(packet, Counter::LimitedToStack);
        }
        if flow::came_from_stack(packet, ETH_LEN, &ip) {
            return Ok(PASS);
        }
        count(packet, Counter::PodToPod);
        return deliver::to_pod(packet, &ip, pod);
    }

    if is_tunnel_protocol(ip.protocol) {
        return Err(DropReason::NestedTunnel);
    }
    if own.takes_host_stack() {
        return to_stack(packet, Counter::LimitedToStack);
    }
    if flow::came_from_stack(packet, ETH_LEN, &ip) {
        return Ok(PASS);
    }
    let peer = maps::peer(route.peer).ok_or(DropReason::PeerUnreachable)?;
    if peer.mtu != 0 && !tunnel::fits(packet, &ip, peer.mtu) {
        return to_stack(packet, Counter::OversizeToStack);
    }
    write_ok(packet.decrement_ttl(ETH_LEN, &ip))?;
    let len = packet.len();
    match tunnel::send(packet, &ip, route.peer, peer, Encapsulation::None as u16)? {
        Some(verdict) => {
            count_frame(len, Counter::PodToTunnel);
            Ok(verdict)
        }
        None => {
            // The host stack decrements the time to live itself.
            write_ok(packet.restore_ttl(ETH_LEN, &ip))?;
            Ok(PASS)
        }
    }
}

#[inline(always)]
fn to_stack(packet: &Packet, counter: Counter) -> Result<i32, DropReason> {
    cold_path();
    count_rare(packet.skb, counter);
    Ok(PASS)
}

/// Whether a node that receives this packet without encapsulation, after SNAT on the way, could mistake it for a
/// tunnel packet of this node.
#[inline(always)]
fn may_enter_a_tunnel(packet: &Packet, ip: &Ipv4) -> bool {
    if ip.protocol != PROTO_UDP {
        return is_tunnel_protocol(ip.protocol);
    }
    tunnel::is_for_our_port(packet, ip)
}

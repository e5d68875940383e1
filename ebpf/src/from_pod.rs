//! What a pod sends.

use crate::{
    PASS, deliver, flow, maps,
    packet::{ETH_LEN, IPV4_LEN, Ipv4, Kind, Packet},
    report::count,
    tunnel,
};
use core::hint::cold_path;
use ipip_abi::{Counter, DropReason, PROTO_IPIP};

const PROTO_UDP: u8 = 17;
const PROTO_IPV6: u8 = 41;
const PROTO_GRE: u8 = 47;
/// Ethernet, IPv4 and the ports: what the fast path reads.
const HEADERS: usize = ETH_LEN + IPV4_LEN + 8;

#[inline(always)]
pub fn try_from_pod(packet: &Packet) -> Result<i32, DropReason> {
    // The tag would outlive the encapsulation, and the pod would choose a VLAN of the uplink.
    if packet.is_tagged() {
        return Err(DropReason::PodNotIpv4);
    }
    match packet.kind() {
        Kind::Ipv4 => {}
        // The pod's neighbour entries are permanent; if someone flushed them, the host answers.
        Kind::Arp => return Ok(PASS),
        Kind::Other => return Err(DropReason::PodNotIpv4),
    }
    // A packet shorter than all headers is still judged by its IP header.
    let _ = packet.pull(HEADERS);
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
        // An address of our range that no pod has: the host's `unreachable` route answers.
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
    count(packet, Counter::PodToTunnel);
    tunnel::written(packet.decrement_ttl(ETH_LEN, &ip))?;
    tunnel::send(packet, &ip, route.peer, peer)
}

#[inline(always)]
fn to_stack(packet: &Packet, counter: Counter) -> Result<i32, DropReason> {
    cold_path();
    count(packet, counter);
    Ok(PASS)
}

#[inline(always)]
pub fn is_tunnel_protocol(protocol: u8) -> bool {
    matches!(protocol, PROTO_IPIP | PROTO_IPV6 | PROTO_GRE)
}

/// Whether a node that takes this packet un-encapsulated, masqueraded on the way, could take it
/// for a tunnel packet of this node.
#[inline(always)]
fn may_enter_a_tunnel(packet: &Packet, ip: &Ipv4) -> bool {
    if ip.protocol != PROTO_UDP {
        return is_tunnel_protocol(ip.protocol);
    }
    if ip.is_later_fragment() {
        return false;
    }
    let port = if ip.header_len() == IPV4_LEN {
        packet.read(ETH_LEN + IPV4_LEN + 2)
    } else {
        let mut port = [0_u8; 2];
        packet
            .load(ETH_LEN + ip.header_len() + 2, &mut port)
            .then_some(port)
    };
    match (port, maps::config()) {
        (Some(port), Some(config)) => port == config.udp_port,
        _ => false,
    }
}

//! The packet inside the tunnel: validation, then delivery.

use crate::{
    deliver, flow,
    ipv4::{Ipv4, is_tunnel_protocol},
    maps, mss,
    packet::{Packet, write_ok},
    probe,
    report::{count, count_rare, count_rx},
    tunnel,
};
use core::hint::cold_path;
use ipip_abi::{
    Counter, DropReason, NodeAddr, Pod, is_never_a_pod_address,
    wire::{ETH_LEN, IPV4_LEN, OUTER_IP_UDP_LEN},
};

/// The two ECN bits of the byte that DSCP and ECN share, and their code points (RFC 3168).
const ECN: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const CE: u8 = 0b11;

/// Validates the inner packet behind `HEAD` bytes of outer headers, which came from `node`, and delivers it. `HEAD`
/// is 0 for a packet of a `direct` peer: `outer` is then the packet itself.
#[inline(always)]
pub fn accept<const HEAD: usize>(
    packet: &Packet,
    outer: &Ipv4,
    node: NodeAddr,
) -> Result<i32, DropReason> {
    let mut ip = packet.ipv4(ETH_LEN + HEAD).ok_or(DropReason::Truncated)?;
    let bytes = packet.ip_len(ETH_LEN + HEAD, &ip);
    check_header::<HEAD>(packet, outer, &ip, bytes)?;
    check_addresses(&ip)?;
    // Without outer headers the caller has found the peer by the inner source.
    if HEAD != 0 && maps::route(ip.source).is_none_or(|route| route.peer != node.peer) {
        return probe::unless_probe(packet, HEAD, DropReason::InnerSourceNotOfPeer);
    }

    let pod = maps::pod(ip.destination);
    if pod.is_none() && !is_own(&ip) {
        return probe::unless_probe(packet, HEAD, DropReason::InnerDestinationNotLocal);
    }
    if HEAD != 0 {
        let ecn = inner_ecn(outer.tos & ECN, ip.tos & ECN).ok_or(DropReason::EcnNotCapable)?;
        if ecn != ip.tos & ECN {
            let tos = (ip.tos & !ECN) | ecn;
            write_ok(packet.set_tos(ETH_LEN + HEAD, &mut ip, tos))?;
        }
    }
    if mss::may_be_syn(packet, ETH_LEN + HEAD, &ip) {
        cold_path();
        // The sender's node knows only the MTU of its own direction.
        let mtu = maps::peer(node.peer).map_or(0, |path| path.mtu);
        mss::clamp(packet, ETH_LEN + HEAD, mtu);
    }
    count_rx(node.peer, node.is_public(), packet.wire_len(bytes));

    let Some(pod) = pod else {
        count(packet, Counter::TunnelToHost);
        tunnel::pop(packet, HEAD)?;
        return deliver::to_host::<HEAD>(packet);
    };
    if is_for_stack(packet, &ip, pod) || flow::came_from_stack(packet, ETH_LEN + HEAD, &ip) {
        tunnel::pop(packet, HEAD)?;
        return deliver::to_host::<HEAD>(packet);
    }
    count(packet, Counter::TunnelToPod);
    tunnel::pop(packet, HEAD)?;
    deliver::to_pod(packet, &ip, pod)
}

/// Whether the packet to a pod takes the host stack, whatever its flow. Counts such a packet.
#[inline(always)]
fn is_for_stack(packet: &Packet, ip: &Ipv4, pod: &Pod) -> bool {
    let counter = if ip.is_fragment() {
        // A fragment has no ports, so its flow is unknown here. The host stack reassembles the packet first.
        Counter::FragmentToStack
    } else if ip.ttl == 1 {
        // The host stack answers: it is a router on the packet's path.
        Counter::TtlToStack
    } else if pod.takes_host_stack() {
        Counter::LimitedToStack
    } else {
        return false;
    };
    cold_path();
    count_rare(packet.skb, counter);
    true
}

#[inline(always)]
fn is_own(ip: &Ipv4) -> bool {
    const ROLES: u8 = NodeAddr::OWN | NodeAddr::TUNNEL_ONLY;
    maps::node_addr(ip.destination).is_some_and(|node| node.flags & ROLES == NodeAddr::OWN)
}

#[inline(always)]
fn check_header<const HEAD: usize>(
    packet: &Packet,
    outer: &Ipv4,
    ip: &Ipv4,
    bytes: usize,
) -> Result<(), DropReason> {
    if ip.version() != 4 {
        return Err(DropReason::InnerNotIpv4);
    }
    if ip.header_len() < IPV4_LEN || bytes < ip.header_len() {
        return Err(DropReason::InnerHeaderTooShort);
    }
    let outer_bytes = packet.ip_len(ETH_LEN, outer);
    if bytes + HEAD > outer_bytes || packet.len() < ETH_LEN + HEAD + bytes {
        return Err(DropReason::InnerLengthBeyondOuter);
    }
    // If GRO on the interface merged datagrams (rx-udp-gro-forwarding), this header describes only the first one.
    if HEAD == OUTER_IP_UDP_LEN && bytes + HEAD != outer_bytes {
        return Err(DropReason::InnerShorterThanDatagram);
    }
    if !packet.checksum_is_right(ETH_LEN + HEAD, ip) {
        return Err(DropReason::InnerBadChecksum);
    }
    if ip.ttl == 0 {
        return Err(DropReason::TtlExpired);
    }
    if is_tunnel_protocol(ip.protocol) {
        return Err(DropReason::NestedTunnel);
    }
    Ok(())
}

#[inline(always)]
fn check_addresses(ip: &Ipv4) -> Result<(), DropReason> {
    if is_never_a_pod_address(ip.source) || is_never_a_pod_address(ip.destination) {
        return Err(DropReason::InnerMartian);
    }
    if ip.source == ip.destination {
        return Err(DropReason::InnerSourceIsDestination);
    }
    Ok(())
}

/// The ECN bits of the inner packet after decapsulation (RFC 6040, figure 4). None means that the packet must
/// be dropped.
#[inline(always)]
fn inner_ecn(outer: u8, inner: u8) -> Option<u8> {
    match (outer, inner) {
        (CE, NOT_ECT) => None,
        (_, NOT_ECT) => Some(NOT_ECT),
        (CE, _) => Some(CE),
        (ECT_1, CE) => Some(CE),
        (ECT_1, _) => Some(ECT_1),
        (_, inner) => Some(inner),
    }
}

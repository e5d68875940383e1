//! What a pod sends, and what the host stack sends to peers.

use super::{Outer, Sent, TUNNELS, Treatment, UDP, drops, mss, pass, unless, unusable};
use crate::{
    ipv4::{Arp, Ipv4, with_ttl},
    world::{self, POD, POD_MAC, owner, peer},
};
use ipip_abi::{
    Addr, Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, POD_GATEWAY, POD_GATEWAY_MAC,
    Program,
};

pub fn from_pod(bytes: &[u8], is_gso: bool) -> Vec<Treatment> {
    let Some(packet) = Ipv4::read(bytes) else {
        return drops([DropReason::Truncated, DropReason::PodNotIpv4]);
    };
    if packet.version() != 4 {
        return drops([DropReason::PodNotIpv4]);
    }
    let (source, destination) = (packet.source(), packet.destination());
    let to = owner(destination);
    let mut faults = Vec::new();
    if source != POD {
        faults.push(DropReason::PodSourceSpoofed);
    }
    let port_is_ours = packet.udp_destination() == Some(DEFAULT_UDP_PORT);
    let is_tunnel = TUNNELS.contains(&packet.protocol());
    if world::is_node(destination) && (is_tunnel || port_is_ours) {
        faults.push(DropReason::PodSendsTunnel);
    }
    if is_tunnel && to.is_some_and(|(index, _)| index != 0) {
        faults.push(DropReason::NestedTunnel);
    }
    if !packet.is_valid() {
        // It harms only its sender and its receiver, whose kernels discard it.
        return if faults.iter().all(|it| *it == DropReason::NestedTunnel) {
            anything()
        } else {
            faults.extend([DropReason::Truncated, DropReason::PodNotIpv4]);
            drops(faults)
        };
    }
    // Not a datagram (RFC 768): whether the bytes after it are taken for its port is open.
    let is_cut = packet.protocol() == UDP && packet.payload().len() < 8;
    let mut valid = unless(faults.clone(), || accepted_from_pod(&packet, to, is_gso));
    if is_cut && world::is_node(destination) && faults.is_empty() {
        valid.extend(drops([DropReason::PodSendsTunnel]));
    }
    // The peer refuses it too, so the way there is open.
    if faults == [DropReason::NestedTunnel] {
        valid.extend(slow_path(&packet));
    }
    valid
}

/// The reasons for which the host stack takes a packet over.
fn slow_path(packet: &Ipv4) -> Vec<Treatment> {
    let mut valid = Vec::new();
    if packet.ttl() <= 1 {
        valid.extend(pass(&[Counter::TtlToStack]));
    }
    if packet.is_fragment() {
        valid.extend(pass(&[Counter::FragmentToStack]));
    }
    if packet.destination() == world::LIMITED {
        valid.extend(pass(&[Counter::LimitedToStack]));
    }
    valid
}

fn accepted_from_pod(packet: &Ipv4, to: Option<(u16, u8)>, is_gso: bool) -> Vec<Treatment> {
    let destination = packet.destination();
    let is_local = world::is_pod(destination);
    let path = match to {
        _ if is_local => None,
        Some((index, _)) if index != 0 => Some(peer(index)),
        // An address of the node's own range: the host answers.
        Some(_) => return [slow_path(packet), pass(&[Counter::PodToStack])].concat(),
        None => return pass(&[Counter::PodToStack]),
    };
    let mut valid = slow_path(packet);
    if path.is_some_and(|peer| peer.path.is_none()) {
        valid.push(unreachable());
        return valid;
    }
    let mtu = usize::from(world::MTU);
    let fits = packet.total_len() <= mtu;
    // Whether bytes after the packet count is open.
    let may_fit = fits || is_gso;
    let may_not = packet.all().len() > mtu || is_gso;
    if path.is_some() && may_not {
        valid.extend(pass(&[Counter::OversizeToStack]));
    }
    if valid.is_empty() || path.is_some() && may_fit && may_not {
        valid.push(match path {
            Some(peer) => to_peer(packet, peer, Counter::PodToTunnel, 1),
            None => Treatment::Send(Sent {
                counters: vec![Counter::PodToPod],
                macs: (Some(POD_MAC), Some(world::HOST_MAC)),
                outer: None,
                packet: with_ttl(packet.all(), packet.ttl() - 1),
            }),
        });
    }
    valid
}

pub fn from_host(bytes: &[u8], program: Program) -> Vec<Treatment> {
    let Some(packet) = Ipv4::read(bytes) else {
        return drops([DropReason::Truncated, DropReason::NoRoute]);
    };
    let to = owner(packet.destination()).filter(|(index, _)| *index != 0);
    let Some((index, _)) = to else {
        return match packet.is_valid() {
            true => drops([DropReason::NoRoute]),
            false => unusable(),
        };
    };
    if !packet.is_valid() {
        return anything();
    }
    let peer = peer(index);
    if peer.path.is_none() {
        return vec![unreachable()];
    }
    // No peer has a candidate that a probe could name.
    if packet.source() == world::PROBE && program == Program::FromHost {
        return [drops([DropReason::Truncated]), vec![unreachable()]].concat();
    }
    // The host has decremented the TTL and compared the length with the route's MTU.
    let mut valid = vec![to_peer(&packet, peer, Counter::HostToTunnel, 0)];
    if packet.all().len() > usize::from(world::MTU) {
        valid.extend(drops([
            DropReason::LengthOverflow,
            DropReason::RewriteFailed,
        ]));
    }
    if TUNNELS.contains(&packet.protocol()) {
        valid.extend(drops([DropReason::NestedTunnel]));
    }
    valid
}

/// Encapsulation towards a peer with a path.
fn to_peer(packet: &Ipv4, peer: &world::Peer, counter: Counter, hops: u8) -> Treatment {
    let (destination, encapsulation) = peer.path.expect("a path");
    let mut counters = vec![counter];
    if !peer.mac_known {
        counters.push(Counter::NeighbourFallback);
    }
    let lowered = mss::lowered(packet);
    if lowered.is_some() {
        counters.push(Counter::MssClamped);
    }
    let bytes = lowered.unwrap_or_else(|| packet.all().to_vec());
    Treatment::Send(Sent {
        counters,
        macs: match peer.mac_known {
            true => (Some(world::NEXT_HOP_MAC), Some(world::UPLINK_MAC)),
            false => (None, None),
        },
        outer: (encapsulation != Encapsulation::Direct).then_some(Outer {
            destination,
            encapsulation,
            tos: packet.tos(),
        }),
        packet: with_ttl(&bytes, packet.ttl().wrapping_sub(hops)),
    })
}

/// The peer of the destination has no path.
fn unreachable() -> Treatment {
    Treatment::Drop(DropReason::PeerUnreachable)
}

/// A malformed packet whose addresses are right.
fn anything() -> Vec<Treatment> {
    Vec::new()
}

pub fn arp(bytes: &[u8]) -> Vec<Treatment> {
    let Some(arp) = Arp::read(bytes) else {
        return drops([DropReason::Truncated, DropReason::PodArp]);
    };
    let refused = drops([DropReason::PodArp]);
    // RFC 1812, 3.3.2: no host's address is zero or a group's.
    if !arp.is_ipv4_over_ethernet() || !arp.sender_is_a_station() {
        return refused;
    }
    let (sender, target) = (arp.sender(), arp.target());
    let learned = (sender == POD && arp.sender_mac() != POD_MAC).then_some(Counter::PodMacLearned);
    let counted = |counter| {
        [Some(counter), learned]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    let is_about_itself = sender == target || (sender == Addr::ZERO && target != POD_GATEWAY);
    match arp.operation() {
        1 if is_about_itself => vec![Treatment::Ignore(counted(Counter::ArpIgnored))],
        2 if sender == target => vec![Treatment::Ignore(counted(Counter::ArpIgnored))],
        1 if target == POD_GATEWAY => {
            let mac = if sender == POD {
                world::HOST_MAC
            } else {
                POD_GATEWAY_MAC
            };
            vec![Treatment::Send(Sent {
                counters: counted(Counter::ArpAnswered),
                macs: (Some(arp.sender_mac()), Some(mac)),
                outer: None,
                packet: arp.answer(mac),
            })]
        }
        2 if sender == POD => vec![Treatment::Pass(learned.into_iter().collect())],
        _ if learned.is_some() => {
            vec![Treatment::Refused(
                vec![Counter::PodMacLearned],
                DropReason::PodArp,
            )]
        }
        _ => refused,
    }
}

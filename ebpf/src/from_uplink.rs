//! The program for packets that arrive on an uplink. Tunnel packets of peers are validated and decapsulated. Other
//! packets pass unchanged, unless their source is a pod's address or only a tunnel leads to their destination.

use crate::{
    inner,
    ipv4::{Ipv4, fold},
    maps, mtu_hint,
    packet::{Kind, Packet, UDP_TUNNEL_HEADERS_LEN},
    probe,
    report::count_rare,
    tunnel, tuple,
    verdict::{PASS, verdict},
    vlan,
};
use aya_ebpf::bindings::__sk_buff;
use core::hint::cold_path;
use ipip_abi::{
    Addr, Config, Counter, DropReason, Encapsulation, NodeAddr, Program, Route,
    wire::{
        ETH_LEN, IPV4_LEN, OUTER_IP_LEN, OUTER_IP_UDP_LEN, OUTER_VERSION_IHL, PROTO_ICMP,
        PROTO_IPIP, PROTO_UDP,
    },
};

/// What [`in_udp`] returns for a packet of another tunnel, or a datagram of a pod to the tunnel's port number.
const NOT_OURS: i32 = i32::MIN;

#[inline(always)]
pub fn try_from_uplink(packet: &Packet) -> Result<i32, DropReason> {
    if packet.is_tagged() {
        cold_path();
        if vlan::is_of_a_vlan(packet)? {
            return Ok(PASS);
        }
    }
    if packet.kind() != Kind::Ipv4 {
        return Ok(PASS);
    }
    // Pull all headers of a tunnel packet at once: Ethernet, outer, inner and the inner ports. The first check that
    // lacks a header drops the packet.
    packet.pull(UDP_TUNNEL_HEADERS_LEN);
    let Some(outer) = packet.ipv4(ETH_LEN) else {
        return Ok(PASS);
    };
    match outer.protocol {
        PROTO_IPIP => from_peer::<OUTER_IP_LEN>(packet, outer),
        PROTO_UDP if tunnel::is_for_our_port(packet, &outer) => match in_udp(packet.skb) {
            // Not decided there, because the functions' stacks add up.
            NOT_OURS => Ok(not_ours(packet, Counter::NotOurTunnelAddress)),
            verdict => Ok(verdict),
        },
        _ => Ok(without_tunnel(packet.skb)),
    }
}

/// A packet of the `udp` encapsulation. Not inlined, so that the path of the default encapsulation stays short.
#[inline(never)]
fn in_udp(skb: *mut __sk_buff) -> i32 {
    decide(skb, from_peer::<OUTER_IP_UDP_LEN>)
}

/// A packet that does not belong to the ipip tunnel. Not inlined, so that the path of the default encapsulation
/// stays short.
#[inline(never)]
fn without_tunnel(skb: *mut __sk_buff) -> i32 {
    decide(skb, try_without_tunnel)
}

#[inline(always)]
fn decide(skb: *mut __sk_buff, decide: fn(&Packet, Ipv4) -> Result<i32, DropReason>) -> i32 {
    let packet = &Packet { skb };
    let Some(outer) = packet.ipv4(ETH_LEN) else {
        return PASS;
    };
    verdict(packet, Program::FromUplink, decide(packet, outer))
}

/// A tunnel packet with `HEAD` bytes of outer headers.
#[inline(always)]
fn from_peer<const HEAD: usize>(packet: &Packet, outer: Ipv4) -> Result<i32, DropReason> {
    match maps::node_addr(outer.destination) {
        Some(own) if own.flags & NodeAddr::OWN != 0 => {}
        _ if HEAD == OUTER_IP_UDP_LEN => return Ok(NOT_OURS),
        // A packet of another tunnel.
        _ => return Ok(not_ours(packet, Counter::NotOurTunnelAddress)),
    }
    let node = match maps::node_addr(outer.source) {
        Some(node) if node.flags & NodeAddr::UNDERLAY != 0 => *node,
        _ => return from_unknown_peer::<HEAD>(packet, &outer),
    };
    check_outer::<HEAD>(packet, &outer)?;
    inner::accept::<HEAD>(packet, &outer, node)
}

/// The checks that the kernel's IP would make, because the packet does not reach it, and that no node sends what
/// complicates them.
#[inline(always)]
fn check_outer<const HEAD: usize>(packet: &Packet, outer: &Ipv4) -> Result<(), DropReason> {
    if outer.version_ihl != OUTER_VERSION_IHL {
        let has_options = outer.version() == 4 && outer.header_len() > IPV4_LEN;
        return Err(match has_options {
            true => DropReason::OuterOptions,
            false => DropReason::OuterHeaderInvalid,
        });
    }
    if outer.is_fragment() {
        return Err(DropReason::OuterFragment);
    }
    if fold(outer.sum()) != 0xffff {
        return Err(DropReason::OuterHeaderInvalid);
    }
    let outer_len = packet.ip_len(ETH_LEN, outer);
    if packet.len() < ETH_LEN + outer_len || outer_len < HEAD + IPV4_LEN {
        return Err(DropReason::Truncated);
    }
    Ok(())
}

/// A packet whose outer source is not yet that of a peer: an authentic probe is answered.
#[inline(always)]
fn from_unknown_peer<const HEAD: usize>(packet: &Packet, outer: &Ipv4) -> Result<i32, DropReason> {
    if check_outer::<HEAD>(packet, outer).is_ok() {
        match probe::unless_probe(packet, HEAD, DropReason::UnknownPeer) {
            Err(DropReason::UnknownPeer) => {}
            decided => return decided,
        }
    }
    let pass = maps::config().is_some_and(|config| config.flags & Config::FOREIGN_IPIP_PASS != 0);
    if HEAD == OUTER_IP_LEN && pass {
        return Ok(not_ours(packet, Counter::ForeignIpipPassed));
    }
    Err(DropReason::UnknownPeer)
}

/// A packet of a tunnel that is not ours. It passes and is counted, unless an outer address is a pod's.
#[inline(always)]
fn not_ours(packet: &Packet, counter: Counter) -> i32 {
    let verdict = without_tunnel(packet.skb);
    if verdict == PASS {
        count_rare(packet.skb, counter);
    }
    verdict
}

/// A packet without a tunnel of ours. It passes unless its source is a pod's address, or its destination is an address
/// that only this program or a tunnel reaches.
#[inline(always)]
fn try_without_tunnel(packet: &Packet, ip: Ipv4) -> Result<i32, DropReason> {
    let behind = Behind::of(ip.destination);
    let is_for_pod = behind == Behind::Veth;
    let peer = match maps::route(ip.source) {
        Some(route) if (route.kind == Route::PODS || is_for_pod) && is_direct(route.peer) => {
            route.peer
        }
        Some(route) if route.kind == Route::PODS => {
            return probe::unless_probe(packet, 0, DropReason::UnencapsulatedPodSource);
        }
        _ => match behind {
            Behind::Neither => {
                if ip.protocol == PROTO_ICMP {
                    mtu_hint::record(packet.skb);
                }
                return Ok(PASS);
            }
            Behind::Veth => {
                direct_peer_of_error(packet, &ip).ok_or(DropReason::UnencapsulatedToPod)?
            }
            // Its sender uses this node as a router, and would reach the peer with this node's identity.
            Behind::Tunnel => return Err(DropReason::UnencapsulatedToPeer),
        },
    };
    inner::accept::<0>(packet, &ip, NodeAddr::new(peer, 0))
}

/// What an address is behind, as seen from this node.
#[derive(PartialEq)]
enum Behind {
    /// A local pod's veth.
    Veth,
    /// The tunnel to a peer: the host routes the address into `ipip0`.
    Tunnel,
    /// This node itself, a peer's underlay address, or none of ours.
    Neither,
}

impl Behind {
    #[inline(always)]
    fn of(address: Addr) -> Self {
        const NATIVE: u8 = NodeAddr::OWN | NodeAddr::UNDERLAY;
        if maps::node_addr(address).is_some_and(|node| node.flags & NATIVE != 0) {
            return Self::Neither;
        }
        if maps::pod(address).is_some() {
            return Self::Veth;
        }
        match maps::route(address) {
            Some(route) if route.peer != 0 => Self::Tunnel,
            _ => Self::Neither,
        }
    }
}

/// The peer without an outer header to which the packet's destination sent the packet that this ICMP error quotes: routers
/// on the way know no tunnel.
#[inline(always)]
fn direct_peer_of_error(packet: &Packet, ip: &Ipv4) -> Option<u16> {
    if ip.protocol != PROTO_ICMP || ip.is_fragment() {
        return None;
    }
    let quoted = tuple::quoted_addresses(packet, ETH_LEN, ip)?;
    if quoted.source != ip.destination {
        return None;
    }
    let peer = maps::route(quoted.destination)?.peer;
    is_direct(peer).then_some(peer)
}

/// Whether the packets of a peer come without an outer header.
#[inline(always)]
fn is_direct(peer: u16) -> bool {
    peer != 0
        && maps::peer(peer).is_some_and(|peer| peer.encapsulation == Encapsulation::Direct as u8)
}

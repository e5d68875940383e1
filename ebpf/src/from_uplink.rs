//! What arrives on an uplink: tunnel packets of peers are checked and taken, whatever is not
//! ours passes untouched.

use crate::{
    PASS, inner, maps,
    packet::{ETH_LEN, IPV4_LEN, Ipv4, Kind, Packet},
    report::{self, count},
};
use aya_ebpf::bindings::__sk_buff;
use ipip_abi::{
    Config, Counter, DropReason, Encapsulation, Hook, IPIP_OVERHEAD, NodeAddr, PROTO_IPIP, Route,
    UDP_OVERHEAD,
};

const PROTO_UDP: u8 = 17;
const IPIP_LEN: usize = IPIP_OVERHEAD as usize;
const UDP_LEN: usize = UDP_OVERHEAD as usize;

#[inline(always)]
pub fn try_from_uplink(packet: &Packet) -> Result<i32, DropReason> {
    // A tagged frame belongs to a VLAN interface above this one, whose own program sees it.
    if packet.kind() != Kind::Ipv4 || packet.is_tagged() {
        return Ok(PASS);
    }
    // The whole head of a tunnel packet at once: Ethernet, outer, inner and its ports. A shorter
    // packet is pulled as far as the check that needs it.
    let _ = packet.pull(ETH_LEN + UDP_LEN + IPV4_LEN + 8)
        || packet.pull(ETH_LEN + IPV4_LEN + 8)
        || packet.pull(ETH_LEN + IPV4_LEN);
    let Some(outer) = packet.ipv4(ETH_LEN) else {
        return Ok(PASS);
    };
    match outer.protocol {
        PROTO_IPIP => from_peer::<IPIP_LEN>(packet, outer),
        PROTO_UDP if is_for_our_port(packet, &outer) => Ok(in_udp(packet.skb)),
        _ => Ok(without_tunnel(packet.skb)),
    }
}

/// Not in line, as the next one: the packets of the default encapsulation should not carry the code.
#[inline(never)]
fn in_udp(skb: *mut __sk_buff) -> i32 {
    judged(skb, from_peer::<UDP_LEN>)
}

/// A packet that is in no tunnel of ours.
#[inline(never)]
fn without_tunnel(skb: *mut __sk_buff) -> i32 {
    judged(skb, try_without_tunnel)
}

#[inline(always)]
fn judged(skb: *mut __sk_buff, judge: fn(&Packet, Ipv4) -> Result<i32, DropReason>) -> i32 {
    let packet = &Packet { skb };
    let Some(outer) = packet.ipv4(ETH_LEN) else {
        return PASS;
    };
    report::verdict(packet, Hook::FromUplink, judge(packet, outer))
}

#[inline(always)]
fn is_for_our_port(packet: &Packet, outer: &Ipv4) -> bool {
    if outer.is_later_fragment() {
        return false;
    }
    let mut port = [0_u8; 2];
    if outer.header_len() == IPV4_LEN {
        port = packet.read(ETH_LEN + IPV4_LEN + 2).unwrap_or_default();
    } else {
        let _ = packet.load(ETH_LEN + outer.header_len() + 2, &mut port);
    }
    maps::config().is_some_and(|config| config.udp_port == port)
}

/// A tunnel packet with `HEAD` bytes before the inner header.
#[inline(always)]
fn from_peer<const HEAD: usize>(packet: &Packet, outer: Ipv4) -> Result<i32, DropReason> {
    match maps::node_addr(outer.destination) {
        Some(own) if own.flags & NodeAddr::OWN != 0 => {}
        _ => {
            // Somebody else's tunnel, or a pod's datagram to a port of this number.
            return Ok(not_ours(packet, Counter::NotOurTunnelAddress));
        }
    }
    let peer = match maps::node_addr(outer.source) {
        Some(node) if node.flags & NodeAddr::UNDERLAY != 0 => node.peer,
        _ => return from_stranger::<HEAD>(packet),
    };
    if outer.header_len() != IPV4_LEN {
        return Err(DropReason::OuterOptions);
    }
    if outer.is_fragment() {
        return Err(DropReason::OuterFragment);
    }
    let outer_len = packet.ip_len(ETH_LEN, &outer);
    if packet.len() < ETH_LEN + outer_len || outer_len < HEAD + IPV4_LEN {
        return Err(DropReason::Truncated);
    }
    inner::accept::<HEAD>(packet, &outer, peer)
}

#[inline(always)]
fn from_stranger<const HEAD: usize>(packet: &Packet) -> Result<i32, DropReason> {
    let pass = maps::config().is_some_and(|config| config.flags & Config::FOREIGN_IPIP_PASS != 0);
    if HEAD == IPIP_LEN && pass {
        return Ok(not_ours(packet, Counter::ForeignIpipPassed));
    }
    Err(DropReason::UnknownPeer)
}

/// A packet in a tunnel that is none of ours: counted if it passes, yet it may not name a pod.
#[inline(always)]
fn not_ours(packet: &Packet, counter: Counter) -> i32 {
    let verdict = without_tunnel(packet.skb);
    if verdict == PASS {
        count(packet, counter);
    }
    verdict
}

/// A packet that is in no tunnel: ours only where a pod's address stands in it.
#[inline(always)]
fn try_without_tunnel(packet: &Packet, ip: Ipv4) -> Result<i32, DropReason> {
    let is_for_pod = maps::pod(ip.destination).is_some();
    if let Some(route) = maps::route(ip.source) {
        let is_from_pod = route.kind == Route::PODS;
        if (is_from_pod || is_for_pod) && is_direct(route.peer) {
            return inner::accept::<0>(packet, &ip, route.peer);
        }
        if is_from_pod {
            return Err(DropReason::UnencapsulatedPodSource);
        }
    }
    if is_for_pod {
        return Err(DropReason::UnencapsulatedToPod);
    }
    Ok(PASS)
}

/// Whether the packets of a peer come without an outer header.
#[inline(always)]
fn is_direct(peer: u16) -> bool {
    peer != 0
        && maps::peer(peer).is_some_and(|peer| peer.encapsulation == Encapsulation::Direct as u8)
}

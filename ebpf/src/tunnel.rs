//! Encapsulates a packet and sends it to a peer: outer header, next hop, uplink. Also decapsulates.

use crate::{
    ipv4::{Ipv4, fold},
    maps,
    packet::{Packet, write_ok},
    report::{count_rare, count_tx},
};
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
    },
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room},
};
use core::hint::cold_path;
use ipip_abi::{
    Addr, Counter, DropReason, Encapsulation, Peer,
    wire::{
        ETH_LEN, IPV4_LEN, MAX_IPV4_LEN, OUTER_FRAGMENT, OUTER_IP_LEN, OUTER_IP_UDP_LEN, OUTER_TTL,
        OUTER_VERSION_IHL, PROTO_IPIP, PROTO_UDP, TCP_LEN, UDP_LEN,
    },
};

/// `-EALREADY`: the kernel considers the packet as already encapsulated.
const EALREADY: i64 = -114;
/// No error of the kernel: the packet must be segmented before it is encapsulated.
const NOT_WHOLE: i64 = 1;
const AF_INET: u32 = 2;

/// Flags for `bpf_skb_adjust_room`: segments keep their size, and checksum offloads stay valid.
const KEEP: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;
const ENCAP_IPIP: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64;
const ENCAP_UDP: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP) as u64;

/// The outer IPv4 header (RFC 791), aligned so that it is written as five words.
#[repr(C, align(4))]
struct OuterIpv4 {
    version_ihl: u8,
    tos: u8,
    total_len: [u8; 2],
    /// 0, because packets with DF need no identification (RFC 6864).
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: Addr,
    destination: Addr,
}

/// The UDP header of the `udp` encapsulation. The checksum is 0, which means none (RFC 768): the inner packet has
/// its own.
#[repr(C, align(4))]
struct OuterUdp {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    len: [u8; 2],
    checksum: [u8; 2],
}

/// Whether the UDP packet, whose IPv4 header `ip` follows the Ethernet header, is for the port of the `udp`
/// encapsulation.
#[inline(always)]
pub fn is_for_our_port(packet: &Packet, ip: &Ipv4) -> bool {
    let Some(port) = packet.udp_port(ETH_LEN, ip) else {
        return false;
    };
    maps::config().is_some_and(|config| config.udp_port == port)
}

/// Whether the packet fits into `mtu` bytes; for a GSO packet, whether each of its segments fits.
#[inline(always)]
pub fn fits(packet: &Packet, ip: &Ipv4, mtu: u16) -> bool {
    let mtu = usize::from(mtu);
    let gso_size = packet.gso_size();
    if gso_size == 0 {
        return ip.total_len() <= mtu;
    }
    gso_size + IPV4_LEN + transport_header_len(packet, ip) <= mtu
}

/// Bytes of the transport header that each segment of a GSO packet repeats.
#[inline(always)]
fn transport_header_len(packet: &Packet, ip: &Ipv4) -> usize {
    if ip.protocol == PROTO_UDP {
        return UDP_LEN;
    }
    let mut data_offset = 0_u8;
    if ip.header_len() == IPV4_LEN {
        data_offset = packet.read(ETH_LEN + IPV4_LEN + 12).unwrap_or(0);
    }
    (((data_offset >> 4) as usize) << 2).max(TCP_LEN)
}

/// Sends the packet, whose inner header is `ip`, to `peer`, whose index in `PEERS` is `index`. `arrived_in` is the
/// encapsulation in which the packet came to this node, or `None`.
///
/// Without a verdict, the packet is unchanged: it is a GSO packet that the kernel cannot encapsulate whole, so the caller
/// must have it segmented.
#[inline(always)]
pub fn send(
    packet: &Packet,
    ip: &Ipv4,
    index: u16,
    peer: &Peer,
    arrived_in: u16,
) -> Result<Option<i32>, DropReason> {
    const IPIP: u8 = Encapsulation::Ipip as u8;
    const UDP: u8 = Encapsulation::Udp as u8;
    const DIRECT: u8 = Encapsulation::Direct as u8;
    let bytes = packet.ip_len(ETH_LEN, ip);
    let is_whole = match peer.encapsulation {
        IPIP => push_ipip(packet, ip.tos, bytes, peer, arrived_in == u16::from(IPIP))?,
        UDP => push_udp(packet, ip, bytes, peer, arrived_in == u16::from(UDP))?,
        DIRECT => true,
        _ => return Err(DropReason::PeerUnreachable),
    };
    if !is_whole {
        return Ok(None);
    }
    count_tx(index, bytes);
    let next_hop = (peer.encapsulation == DIRECT).then_some(peer.underlay);
    to_uplink(packet, peer, next_hop).map(Some)
}

/// False if [`push`] made no room.
#[inline(always)]
fn push_ipip(
    packet: &Packet,
    tos: u8,
    bytes: usize,
    peer: &Peer,
    again: bool,
) -> Result<bool, DropReason> {
    let Some(total_len) = push(packet, bytes, OUTER_IP_LEN, ENCAP_IPIP, again)? else {
        return Ok(false);
    };
    let outer = outer_ipv4(tos, total_len, PROTO_IPIP, peer);
    write_ok(packet.write(ETH_LEN, outer)).map(|()| true)
}

/// False if [`push`] made no room.
#[inline(always)]
fn push_udp(
    packet: &Packet,
    ip: &Ipv4,
    bytes: usize,
    peer: &Peer,
    again: bool,
) -> Result<bool, DropReason> {
    // If such a packet arrives whole, the receiver's kernel takes the inner UDP header for that of the tunnel.
    if ip.protocol == PROTO_UDP && packet.gso_size() != 0 {
        cold_path();
        return Ok(push_without_type(packet.skb, 0, 0, false) == 0);
    }
    // The hash is that of the inner flow, so it is taken before the headers change. The port is in the lower
    // half of RFC 6335's dynamic range, because some clouds reserve ports of the upper half.
    let source_port = 0xc000 | (packet.hash() as u16 & 0x1fff);
    let destination_port = match maps::config() {
        Some(config) => config.udp_port,
        None => return Err(DropReason::RewriteFailed),
    };
    let Some(total_len) = push(packet, bytes, OUTER_IP_UDP_LEN, ENCAP_UDP, again)? else {
        return Ok(false);
    };
    let outer = outer_ipv4(ip.tos, total_len, PROTO_UDP, peer);
    let udp = OuterUdp {
        source_port: source_port.to_be_bytes(),
        destination_port,
        len: total_len.saturating_sub(IPV4_LEN as u16).to_be_bytes(),
        checksum: [0; 2],
    };
    write_ok(packet.write(ETH_LEN, outer) && packet.write(ETH_LEN + IPV4_LEN, udp)).map(|()| true)
}

/// Makes room for `room` bytes of outer headers between the Ethernet header and the `bytes` of the inner packet.
/// Returns the outer total length, or 0 (as the kernel writes) for a GSO packet above 65,535 bytes. Returns `None`
/// and changes nothing for a GSO packet that cannot be encapsulated whole. `again` says that the packet arrived in the
/// same encapsulation.
#[inline(always)]
fn push(
    packet: &Packet,
    bytes: usize,
    room: usize,
    encap: u64,
    again: bool,
) -> Result<Option<u16>, DropReason> {
    let mut total_len = bytes + room;
    if total_len > MAX_IPV4_LEN {
        cold_path();
        if packet.gso_size() == 0 {
            return Err(DropReason::LengthOverflow);
        }
        total_len = 0;
    }
    let room = room as i32;
    // SAFETY: the helper gets the kernel's context; if it fails, the packet is unchanged.
    let mut result =
        unsafe { bpf_skb_adjust_room(packet.skb, room, BPF_ADJ_ROOM_MAC, KEEP | encap) };
    if result != 0 {
        cold_path();
        result = push_without_type(packet.skb, room, result, again);
    }
    if result == NOT_WHOLE {
        return Ok(None);
    }
    write_ok(result == 0)?;
    Ok(Some(total_len as u16))
}

/// Makes the room that the kernel refused with `error`, if the packet needs no GSO type for it. Returns 0, an error or
/// [`NOT_WHOLE`]. Not inlined, because it is rare.
#[inline(never)]
fn push_without_type(skb: *mut __sk_buff, room: i32, error: i64, again: bool) -> i64 {
    let packet = &Packet { skb };
    let is_gso = packet.gso_size() != 0;
    // The kernel considers the packet as already encapsulated: `skb->encapsulation` and the tunnel's GSO type survive
    // decapsulation on this node, and a pod's own tunnel sets them too. The kernel segments by that type, so a GSO
    // packet may only get outer headers of the same type.
    let needs_no_type = error == EALREADY && (again || !is_gso);
    if !needs_no_type && !is_gso {
        return error;
    }
    // The helper also refuses GSO packets that are neither TCP nor UDP.
    let counter = if needs_no_type {
        Counter::Reencapsulated
    } else {
        Counter::LargeSegmented
    };
    count_rare(skb, counter);
    if !needs_no_type {
        return NOT_WHOLE;
    }
    // SAFETY: the helper gets the kernel's context; if it fails, the packet is unchanged.
    unsafe { bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, KEEP) }
}

#[inline(always)]
fn outer_ipv4(tos: u8, total_len: u16, protocol: u8, peer: &Peer) -> OuterIpv4 {
    let sum = u64::from(peer.header_sum) + u64::from(tos) + u64::from(total_len);
    OuterIpv4 {
        version_ihl: OUTER_VERSION_IHL,
        tos,
        total_len: total_len.to_be_bytes(),
        id: [0; 2],
        fragment: OUTER_FRAGMENT.to_be_bytes(),
        ttl: OUTER_TTL,
        protocol,
        checksum: (!fold(sum)).to_be_bytes(),
        source: peer.source,
        destination: peer.underlay,
    }
}

#[inline(always)]
fn to_uplink(packet: &Packet, peer: &Peer, next_hop: Option<Addr>) -> Result<i32, DropReason> {
    if peer.flags & Peer::MAC_KNOWN != 0 && maps::next_hops_are_current() {
        write_ok(packet.set_macs(peer.next_hop_mac, peer.uplink_mac))?;
        // SAFETY: the helper only stores the target interface for after the program's end.
        return Ok(unsafe { bpf_redirect(peer.ifindex, 0) } as i32);
    }
    count_rare(packet.skb, Counter::NeighbourFallback);
    let mut neighbour = bpf_redir_neigh {
        nh_family: AF_INET,
        // SAFETY: the struct is plain integers and bytes, for which zero is valid.
        ..unsafe { core::mem::zeroed() }
    };
    let (params, len) = match next_hop {
        // A packet without an outer header has the pod's address as its destination. Without this next hop the
        // kernel would look that address up and find the route through ipip0.
        Some(address) => {
            neighbour.__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(address.0);
            (&raw mut neighbour, size_of::<bpf_redir_neigh>())
        }
        None => (core::ptr::null_mut(), 0),
    };
    // SAFETY: `params` is null or points to `neighbour`, which lives until the end of the call.
    Ok(unsafe { bpf_redirect_neigh(peer.ifindex, params, len as i32, 0) } as i32)
}

/// Removes `head` bytes of outer headers.
#[inline(always)]
pub fn pop(packet: &Packet, head: usize) -> Result<(), DropReason> {
    if head == 0 {
        return Ok(());
    }
    // SAFETY: the helper gets the kernel's context; if it fails, the packet is unchanged.
    let result = unsafe { bpf_skb_adjust_room(packet.skb, -(head as i32), BPF_ADJ_ROOM_MAC, KEEP) };
    write_ok(result == 0)
}

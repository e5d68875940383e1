//! Encapsulates a packet and sends it to a peer: outer header, next hop, uplink. Also decapsulates.

use crate::{
    ipv4::{Ipv4, fold},
    maps, mss,
    packet::{Packet, write_ok},
    report::{count_rare, count_tx, tell_agent},
};
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
    },
    helpers::{bpf_csum_level, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room},
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

/// A UDP header (RFC 768). That of the `udp` encapsulation has the checksum 0, which means none: the inner packet has its
/// own.
#[derive(Clone, Copy, Default)]
#[repr(C, align(4))]
pub struct Udp {
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
    pub len: [u8; 2],
    pub checksum: [u8; 2],
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
    gso_size + ip.header_len() + transport_header_len(packet, ip) <= mtu
}

/// Bytes of the transport header that each segment of a GSO packet repeats.
#[inline(always)]
fn transport_header_len(packet: &Packet, ip: &Ipv4) -> usize {
    if ip.protocol == PROTO_UDP {
        return UDP_LEN;
    }
    const DATA_OFFSET: usize = 12;
    let mut data_offset = 0_u8;
    if ip.header_len() == IPV4_LEN
        && let Some(read) = packet.read(ETH_LEN + IPV4_LEN + DATA_OFFSET)
    {
        data_offset = read;
    } else {
        cold_path();
        // A packet that ends before this byte has no segments.
        let _ = packet.load(ETH_LEN + ip.header_len() + DATA_OFFSET, &mut data_offset);
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
    if mss::may_be_syn(packet, ETH_LEN, ip) {
        cold_path();
        mss::clamp(packet, ETH_LEN, peer.mtu);
    }
    let bytes = packet.ip_len(ETH_LEN, ip);
    // Also without a path: then one is searched sooner.
    tell_agent(index, bytes);
    let is_whole = match peer.encapsulation {
        IPIP | UDP => encapsulate(packet, ip, bytes, peer, arrived_in)?,
        DIRECT => true,
        _ => return Err(DropReason::PeerUnreachable),
    };
    if !is_whole {
        return Ok(None);
    }
    count_tx(index, peer.is_public(), packet.wire_len(bytes));
    let next_hop = (peer.encapsulation == DIRECT).then_some(peer.underlay);
    to_uplink(packet, peer, next_hop).map(Some)
}

/// Puts the outer headers between the Ethernet header and the `bytes` of the inner packet. False, with nothing changed, for
/// a GSO packet that cannot be encapsulated whole.
#[inline(always)]
fn encapsulate(
    packet: &Packet,
    ip: &Ipv4,
    bytes: usize,
    peer: &Peer,
    arrived_in: u16,
) -> Result<bool, DropReason> {
    let is_udp = peer.encapsulation == Encapsulation::Udp as u8;
    // If such a packet arrives whole, the receiver's kernel takes the inner UDP header for that of the tunnel.
    if is_udp && ip.protocol == PROTO_UDP && packet.gso_size() != 0 {
        cold_path();
        return Ok(push_without_type(packet.skb, 0, 0, false) == 0);
    }
    let (room, encap, protocol) = match is_udp {
        true => (OUTER_IP_UDP_LEN, ENCAP_UDP, PROTO_UDP),
        false => (OUTER_IP_LEN, ENCAP_IPIP, PROTO_IPIP),
    };
    // A GSO packet above 65,535 bytes (BIG TCP) has total length 0, as the kernel writes.
    let mut total_len = bytes + room;
    if total_len > MAX_IPV4_LEN {
        cold_path();
        if packet.gso_size() == 0 {
            return Err(DropReason::LengthOverflow);
        }
        total_len = 0;
    }
    let total_len = total_len as u16;
    // The port is that of the inner flow, so it is made before the headers change.
    let mut udp = Udp::default();
    if is_udp {
        udp = outer_udp(packet, total_len)?;
    }
    let again = arrived_in == u16::from(peer.encapsulation);
    if !make_room(packet, room as i32, encap, again)? {
        return Ok(false);
    }
    let outer = outer_ipv4(ip.tos, total_len, protocol, peer);
    write_ok(packet.write(ETH_LEN, outer))?;
    if is_udp {
        write_ok(packet.write(ETH_LEN + IPV4_LEN, udp))?;
    }
    Ok(true)
}

/// Makes room for outer headers. False, with nothing changed, for a GSO packet that cannot be encapsulated whole. `again`
/// says that the packet arrived in the same encapsulation.
#[inline(always)]
fn make_room(packet: &Packet, room: i32, encap: u64, again: bool) -> Result<bool, DropReason> {
    // SAFETY: the helper gets the kernel's context; if it fails, the packet is unchanged.
    let mut result =
        unsafe { bpf_skb_adjust_room(packet.skb, room, BPF_ADJ_ROOM_MAC, KEEP | encap) };
    if result != 0 {
        cold_path();
        result = push_without_type(packet.skb, room, result, again);
    }
    if result == NOT_WHOLE {
        return Ok(false);
    }
    write_ok(result == 0).map(|()| true)
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

/// The UDP header of an outer packet of `total_len` bytes.
#[inline(always)]
fn outer_udp(packet: &Packet, total_len: u16) -> Result<Udp, DropReason> {
    let config = maps::config().ok_or(DropReason::RewriteFailed)?;
    Ok(Udp {
        source_port: source_port(packet.hash()),
        destination_port: config.udp_port,
        len: total_len.saturating_sub(IPV4_LEN as u16).to_be_bytes(),
        checksum: [0; 2],
    })
}

/// The outer source port of a flow with this hash: in the lower half of RFC 6335's dynamic range, because some clouds
/// reserve ports of the upper half.
#[inline(always)]
pub fn source_port(hash: u32) -> [u8; 2] {
    (0xc000 | (hash as u16 & 0x1fff)).to_be_bytes()
}

#[inline(always)]
fn outer_ipv4(tos: u8, total_len: u16, protocol: u8, peer: &Peer) -> Ipv4 {
    let sum = u64::from(peer.header_sum) + u64::from(tos) + u64::from(total_len);
    Ipv4 {
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

/// Sends the frame on a path's uplink. Without an outer header, `next_hop` is the path's underlay address.
#[inline(always)]
pub fn to_uplink(packet: &Packet, peer: &Peer, next_hop: Option<Addr>) -> Result<i32, DropReason> {
    if peer.flags & Peer::MAC_KNOWN != 0 && maps::next_hops_are_current() {
        write_ok(packet.set_macs(peer.next_hop_mac, peer.uplink_mac))?;
        // SAFETY: the helper only stores the target interface for after the program's end.
        return Ok(unsafe { bpf_redirect(peer.ifindex, 0) } as i32);
    }
    Ok(by_neighbour(packet, peer.ifindex, next_hop))
}

/// Sends the frame on an uplink to the next hop that the kernel finds: the one of the packet's destination, unless
/// `next_hop` names another.
#[inline(always)]
pub fn by_neighbour(packet: &Packet, ifindex: u32, next_hop: Option<Addr>) -> i32 {
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
    unsafe { bpf_redirect_neigh(ifindex, params, len as i32, 0) as i32 }
}

/// Removes `head` bytes of outer headers.
#[inline(always)]
pub fn pop(packet: &Packet, head: usize) -> Result<(), DropReason> {
    if head == 0 {
        return Ok(());
    }
    // SAFETY: the helper gets the kernel's context; if it fails, the packet is unchanged.
    let result = unsafe { bpf_skb_adjust_room(packet.skb, -(head as i32), BPF_ADJ_ROOM_MAC, KEEP) };
    write_ok(result == 0)?;
    if head == OUTER_IP_UDP_LEN {
        // A network card or GRO has counted the outer datagram among the valid checksums, although it has none. Without
        // this, the pod's kernel would take the inner packet for validated (`__skb_decr_checksum_unnecessary` of
        // linux/skbuff.h).
        // SAFETY: the helper gets the kernel's context. It fails if nothing is validated.
        unsafe { bpf_csum_level(packet.skb, BPF_CSUM_LEVEL_DEC.into()) };
    }
    Ok(())
}

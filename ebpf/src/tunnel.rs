//! Sends a packet to a peer: outer header, next hop, uplink. And takes outer headers off.

use crate::{
    maps,
    packet::{ETH_LEN, IPV4_LEN, Ipv4, MAX_IPV4_LEN, Packet, fold},
    report::{count, sent_to},
};
use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
    },
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room},
};
use core::hint::cold_path;
use ipip_abi::{
    Addr, Counter, DropReason, Encapsulation, IPIP_OVERHEAD, PROTO_IPIP, Peer, UDP_OVERHEAD,
};

/// Time to live of outer headers, as Linux gives it to its own packets (RFC 1700).
const OUTER_TTL: u8 = 64;
const PROTO_UDP: u8 = 17;
/// `-EALREADY`: the kernel takes the packet for encapsulated already.
const EALREADY: i64 = -114;
const AF_INET: u32 = 2;

const KEEP: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;
const ENCAP_IPIP: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64;
const ENCAP_UDP: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP) as u64;

/// The outer header as it stands on the wire (RFC 791), written as five words.
#[repr(C, align(4))]
struct OuterIpv4 {
    version_ihl: u8,
    tos: u8,
    total_len: [u8; 2],
    /// 0: packets with DF need no identification (RFC 6864).
    id: [u8; 2],
    /// DF: a path that is too small must say so.
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: Addr,
    destination: Addr,
}

/// UDP header of the `udp` encapsulation; checksum 0 as RFC 6935 allows inside IPv4.
#[repr(C, align(4))]
struct OuterUdp {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    len: [u8; 2],
    checksum: [u8; 2],
}

/// Whether the packet, each segment of it, fits `mtu`.
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
    const TCP_LEN: usize = 20;
    if ip.protocol == PROTO_UDP {
        return 8;
    }
    let mut data_offset = 0_u8;
    if ip.header_len() == IPV4_LEN {
        data_offset = packet.read(ETH_LEN + IPV4_LEN + 12).unwrap_or(0);
    }
    (((data_offset >> 4) as usize) << 2).max(TCP_LEN)
}

/// Sends the packet, whose inner header is `ip`, to `peer`.
#[inline(always)]
pub fn send(packet: &Packet, ip: &Ipv4, index: u16, peer: &Peer) -> Result<i32, DropReason> {
    const IPIP: u8 = Encapsulation::Ipip as u8;
    const UDP: u8 = Encapsulation::Udp as u8;
    const DIRECT: u8 = Encapsulation::Direct as u8;
    let bytes = packet.ip_len(ETH_LEN, ip);
    match peer.encapsulation {
        IPIP => push_ipip(packet, ip.tos, bytes, peer)?,
        UDP => push_udp(packet, ip.tos, bytes, peer)?,
        DIRECT => {}
        _ => return Err(DropReason::PeerUnreachable),
    }
    sent_to(index, bytes);
    let next_hop = (peer.encapsulation == DIRECT).then_some(peer.underlay);
    to_uplink(packet, peer, next_hop)
}

#[inline(always)]
fn push_ipip(packet: &Packet, tos: u8, bytes: usize, peer: &Peer) -> Result<(), DropReason> {
    let total_len = push(packet, bytes, IPIP_OVERHEAD, ENCAP_IPIP)?;
    let outer = outer_ipv4(tos, total_len, PROTO_IPIP, peer);
    written(packet.write(ETH_LEN, outer))
}

#[inline(always)]
fn push_udp(packet: &Packet, tos: u8, bytes: usize, peer: &Peer) -> Result<(), DropReason> {
    // Of the inner flow, hence before the headers change. The lower half of RFC 6335's dynamic range:
    // some clouds keep ports of the upper one for themselves.
    let source_port = 0xc000 | (packet.hash() as u16 & 0x1fff);
    let destination_port = match maps::config() {
        Some(config) => config.udp_port,
        None => return Err(DropReason::RewriteFailed),
    };
    let total_len = push(packet, bytes, UDP_OVERHEAD, ENCAP_UDP)?;
    let outer = outer_ipv4(tos, total_len, PROTO_UDP, peer);
    let udp = OuterUdp {
        source_port: source_port.to_be_bytes(),
        destination_port,
        len: total_len.saturating_sub(IPV4_LEN as u16).to_be_bytes(),
        checksum: [0; 2],
    };
    written(packet.write(ETH_LEN, outer) && packet.write(ETH_LEN + IPV4_LEN, udp))
}

/// Makes room for the outer header behind the Ethernet header, before `bytes` of inner packet. The outer
/// header's total length: 0 where that cannot say it, as the kernel does ([`Packet::ip_len`]), of a packet
/// that is to be segmented later.
#[inline(always)]
fn push(packet: &Packet, bytes: usize, room: u16, encap: u64) -> Result<u16, DropReason> {
    let mut total_len = bytes + usize::from(room);
    if total_len > MAX_IPV4_LEN {
        cold_path();
        if packet.gso_size() == 0 {
            return Err(DropReason::LengthOverflow);
        }
        total_len = 0;
    }
    let room = i32::from(room);
    // SAFETY: the kernel's context; on failure the packet is unchanged.
    let mut result =
        unsafe { bpf_skb_adjust_room(packet.skb, room, BPF_ADJ_ROOM_MAC, KEEP | encap) };
    if result == EALREADY {
        // `skb->encapsulation` outlives decapsulation: this packet came out of a tunnel here.
        // SAFETY: as above.
        result = unsafe { bpf_skb_adjust_room(packet.skb, room, BPF_ADJ_ROOM_MAC, KEEP) };
        count(packet, Counter::Reencapsulated);
    }
    written(result == 0)?;
    Ok(total_len as u16)
}

#[inline(always)]
fn outer_ipv4(tos: u8, total_len: u16, protocol: u8, peer: &Peer) -> OuterIpv4 {
    let sum = u64::from(peer.header_sum) + u64::from(tos) + u64::from(total_len);
    OuterIpv4 {
        version_ihl: 0x45,
        tos,
        total_len: total_len.to_be_bytes(),
        id: [0; 2],
        fragment: [0x40, 0],
        ttl: OUTER_TTL,
        protocol,
        checksum: (!fold(sum)).to_be_bytes(),
        source: peer.source,
        destination: peer.underlay,
    }
}

#[inline(always)]
fn to_uplink(packet: &Packet, peer: &Peer, next_hop: Option<Addr>) -> Result<i32, DropReason> {
    if peer.flags & Peer::MAC_KNOWN != 0 {
        written(packet.set_macs(peer.next_hop_mac, peer.uplink_mac))?;
        // SAFETY: the helper only notes where the packet goes.
        return Ok(unsafe { bpf_redirect(peer.ifindex, 0) } as i32);
    }
    count(packet, Counter::NeighbourFallback);
    let mut neighbour = bpf_redir_neigh {
        nh_family: AF_INET,
        // SAFETY: plain bytes.
        ..unsafe { core::mem::zeroed() }
    };
    let (params, len) = match next_hop {
        // Without an outer header a route lookup would find the pod's route, into ipip0.
        Some(address) => {
            neighbour.__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(address.0);
            (&raw mut neighbour, size_of::<bpf_redir_neigh>())
        }
        None => (core::ptr::null_mut(), 0),
    };
    // SAFETY: `neighbour` lives through the call.
    Ok(unsafe { bpf_redirect_neigh(peer.ifindex, params, len as i32, 0) } as i32)
}

/// Takes `head` bytes of outer headers off.
#[inline(always)]
pub fn pop(packet: &Packet, head: usize) -> Result<(), DropReason> {
    if head == 0 {
        return Ok(());
    }
    // SAFETY: the kernel's context; on failure the packet is unchanged.
    let result = unsafe { bpf_skb_adjust_room(packet.skb, -(head as i32), BPF_ADJ_ROOM_MAC, KEEP) };
    written(result == 0)
}

/// The kernel refuses a change only where it lacks memory or the packet is too short.
#[inline(always)]
pub fn written(done: bool) -> Result<(), DropReason> {
    if done {
        Ok(())
    } else {
        Err(DropReason::RewriteFailed)
    }
}

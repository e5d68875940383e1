//! ICMP errors that say that an outer packet of this node was too large for a link (RFC 1191). They never set an MTU: what
//! they quote holds no secret, so anybody can forge them. The agent probes the path when there is one.

use crate::{ipv4::Ipv4, maps, packet::Packet, report::count_rare};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_ktime_get_ns};
use ipip_abi::{
    Counter, MtuHint, NodeAddr,
    wire::{ETH_LEN, OUTER_VERSION_IHL, PROTO_IPIP, PROTO_UDP},
};

/// Destination unreachable: fragmentation needed and DF set.
const TYPE_AND_CODE: [u8; 2] = [3, 4];

/// An ICMP error with the first bytes of the packet that it quotes.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Error {
    type_and_code: [u8; 2],
    checksum: [u8; 2],
    unused: [u8; 2],
    mtu: [u8; 2],
    quoted: Ipv4,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// Remembers what the ICMP packet, which is not in a tunnel, says of the path to a peer. Not inlined, because ICMP is rare.
#[inline(never)]
pub fn record(skb: *mut __sk_buff) {
    let packet = &Packet { skb };
    // SAFETY: the struct is plain bytes and integers, for which zero is valid.
    let mut error: Error = unsafe { core::mem::zeroed() };
    let Some(ip) = packet.ipv4(ETH_LEN) else {
        return;
    };
    let is_read = !ip.is_fragment() && packet.load(ETH_LEN + ip.header_len(), &mut error);
    if !is_read || error.type_and_code != TYPE_AND_CODE {
        return;
    }
    if let Some(peer) = quoted_peer(&error)
        && let Some(hint) = maps::mtu_hint(peer)
    {
        // SAFETY: the pointer is to a map's value. Two CPUs that write at once may leave the MTU of the other error.
        unsafe {
            *hint = MtuHint {
                at_ns: bpf_ktime_get_ns(),
                mtu: u16::from_be_bytes(error.mtu),
                _pad: [0; 6],
            };
        }
        count_rare(skb, Counter::MtuHint);
    }
}

/// The peer that the quoted packet was sent to in a tunnel of this node.
#[inline(always)]
fn quoted_peer(error: &Error) -> Option<u16> {
    let quoted = &error.quoted;
    let is_ours = match quoted.protocol {
        PROTO_IPIP => true,
        PROTO_UDP => maps::config().is_some_and(|it| it.udp_port == error.destination_port),
        _ => false,
    };
    if !is_ours || quoted.version_ihl != OUTER_VERSION_IHL {
        return None;
    }
    maps::node_addr(quoted.source).filter(|own| own.flags & NodeAddr::OWN != 0)?;
    let peer = maps::node_addr(quoted.destination)?;
    (peer.flags & NodeAddr::UNDERLAY != 0).then_some(peer.peer)
}

//! TCP's maximum segment size: lowers the one that a SYN states to what the path between two nodes carries, in both
//! directions, because the ends may know different MTUs. A SYN without this option means 536 bytes (RFC 9293) and stays.

use crate::{ipv4::Ipv4, packet::Packet, report::count_rare};
use aya_ebpf::bindings::__sk_buff;
use core::hint::black_box;
use ipip_abi::{
    Counter,
    wire::{IPV4_LEN, PROTO_TCP, TCP_LEN},
};

/// Offsets in the TCP header (RFC 9293).
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;
const SYN: u8 = 2;

/// Bytes of options at most, and so the number of options.
const MAX_OPTIONS: usize = 40;
/// Kinds of options. The first two have no length.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
/// Bytes of that option: kind, length and value.
const MSS_LEN: usize = 4;

/// What an MSS leaves of an MTU: headers without options (RFC 6691).
const HEADERS: u16 = (IPV4_LEN + TCP_LEN) as u16;

/// Whether the packet, whose IPv4 header `ip` is at a constant `offset`, may be a SYN. [`clamp`] is only for such packets.
#[inline(always)]
pub fn may_be_syn(packet: &Packet, offset: usize, ip: &Ipv4) -> bool {
    // `clamp` reads the flags itself if they are behind IP options or outside of the linear part.
    ip.protocol == PROTO_TCP
        && (ip.header_len() != IPV4_LEN
            || packet
                .read(offset + IPV4_LEN + FLAGS)
                .is_none_or(|flags: u8| flags & SYN != 0))
}

/// Lowers the MSS of a SYN, whose IPv4 header is at `offset`, to that of a path with this MTU.
#[inline(always)]
pub fn clamp(packet: &Packet, offset: usize, mtu: u16) {
    clamp_mss(packet.skb, offset as u32, mtu.into());
}

/// [`clamp`] as a global function, which verifiers verify once, with any arguments: as a part of its callers they would follow
/// the options once more for each state in which these arrive here. It has arguments and a result of C, because BTF describes
/// it to the verifier.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn clamp_mss(skb: *mut __sk_buff, offset: u32, mtu: u32) -> u32 {
    let packet = &Packet { skb };
    u32::from(lower(packet, offset as usize, mtu as u16).is_some())
}

/// Some if the MSS is lower now.
#[inline(always)]
fn lower(packet: &Packet, offset: usize, mtu: u16) -> Option<()> {
    // No kernel makes a GSO packet of a SYN.
    if packet.gso_size() != 0 {
        return None;
    }
    let mut ip = Ipv4::default();
    if !packet.load(offset, &mut ip) {
        return None;
    }
    let segment = offset + ip.header_len();
    let at = find(packet, segment, offset + packet.ip_len(offset, &ip), &ip)?;
    let mut stated = [0_u8; 2];
    let most = mtu.saturating_sub(HEADERS);
    // A path without an MTU limits nothing.
    if most == 0 || !packet.load(at, &mut stated) || u16::from_be_bytes(stated) <= most {
        return None;
    }
    let lowered = most.to_be_bytes();
    if !packet.store(at, &lowered) {
        return None;
    }
    // The sum is that of words, and behind an odd number of bytes the value is in two of them.
    let is_odd = !(at - segment).is_multiple_of(2);
    let word = |[first, second]: [u8; 2]| match is_odd {
        true => u16::from_ne_bytes([second, first]),
        false => u16::from_ne_bytes([first, second]),
    };
    packet.replace_in_sum(segment + CHECKSUM, word(stated), word(lowered));
    count_rare(packet.skb, Counter::MssClamped);
    Some(())
}

/// The offset of the MSS in a SYN whose TCP header is at `segment` and whose IP packet ends at `end`. None if there is no
/// such option, or if any option is malformed. If there are several, the last one counts, as for Linux.
#[inline(always)]
fn find(packet: &Packet, segment: usize, end: usize, ip: &Ipv4) -> Option<usize> {
    let mut word = [0_u8; 2];
    if ip.is_later_fragment() || !packet.load(segment + DATA_OFFSET, &mut word) {
        return None;
    }
    let [data_offset, flags] = word;
    let header_len = (data_offset >> 4) as usize * 4;
    let options_end = segment + header_len;
    if flags & SYN == 0 || header_len < TCP_LEN || options_end > end {
        return None;
    }
    // 0 is none: the Ethernet header is before it.
    let mut found = 0;
    let mut left = header_len - TCP_LEN;
    // The bound is constant because old verifiers need that. All branches leave the loop, because verifiers would follow
    // each sequence of kinds.
    for _ in 0..MAX_OPTIONS {
        let at = options_end - left;
        let mut kind = END;
        if left == 0 {
            break;
        }
        if !packet.load(at, &mut kind) {
            return None;
        }
        if kind == END {
            break;
        }
        let mut len = 0_u8;
        // If the packet ends here, the length is 0, which is too short.
        let _ = packet.load(at + 1, &mut len);
        let (is_bare, is_mss) = (equal(kind, NO_OPERATION), equal(kind, MSS));
        let len = choose(is_bare, 1, len.into());
        let is_other_mss = (len ^ MSS_LEN) * is_mss;
        if len < 2 - is_bare || len > left || is_other_mss != 0 {
            return None;
        }
        found = choose(is_mss, at + 2, found);
        left -= len;
    }
    (found != 0).then_some(found)
}

/// 1 if the kinds are equal, otherwise 0. Computed without a branch, which the compiler must not make of it.
#[inline(always)]
fn equal(one: u8, other: u8) -> usize {
    let difference = black_box(usize::from(one ^ other));
    black_box(difference.wrapping_sub(1) >> (usize::BITS - 1))
}

/// `one` if `is_one` is 1, `other` if it is 0. Not with a mask, at which the verifier of Linux 6.18 branches.
#[inline(always)]
fn choose(is_one: usize, one: usize, other: usize) -> usize {
    is_one * one + (1 - is_one) * other
}

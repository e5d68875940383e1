//! Packet access: the only file with raw packet pointers.
//!
//! A helper that changes the packet invalidates every pointer into it, so no function here returns one:
//! headers are read as copies and written field by field.

use crate::ipv4::{Ipv4, fold};
use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{
        bpf_get_hash_recalc, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use ipip_abi::{
    DropReason, Mac,
    wire::{ETH_LEN, IPV4_LEN, MAX_IPV4_LEN, OUTER_IP_UDP_LEN, TCP_LEN},
};

/// Bytes of a transport header that the programs pull: all of UDP's, and TCP's up to the sequence number.
const TRANSPORT_LEN: usize = 8;
/// Ethernet, IPv4 and transport header: the bytes that the programs pull of a packet without a tunnel.
pub const HEADERS_LEN: usize = ETH_LEN + IPV4_LEN + TRANSPORT_LEN;
/// The same headers of a packet inside the `udp` encapsulation, with the outer ones.
pub const UDP_TUNNEL_HEADERS_LEN: usize = HEADERS_LEN + OUTER_IP_UDP_LEN;
/// The headers that each segment of a GSO packet repeats, if it is TCP with timestamps (RFC 7323), as Linux sends it.
const SEGMENT_HEADERS_LEN: usize = IPV4_LEN + TCP_LEN + 12;
/// Offset of the destination port in a UDP header.
const UDP_DESTINATION_PORT: usize = 2;
/// `skb->protocol` of IPv4, in network byte order as the kernel has it.
const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
/// `skb->protocol` of ARP.
const ETH_P_ARP: u32 = (0x0806_u16).to_be() as u32;

/// Makes the numbers that we write to `skb->tc_index` differ from those of other software.
const ARRIVED_IN: u16 = 0xf550;

/// Bytes that one call of `bpf_skb_adjust_room` may remove, and calls that remove a jumbo frame.
const SHRINK_BYTES: usize = 0xfff;
const SHRINK_CALLS: usize = 3;

/// A packet's protocol, by the EtherType of its frame.
#[derive(PartialEq)]
pub enum Kind {
    Ipv4,
    Arp,
    Other,
}

/// The packet that a program was called with.
pub struct Packet {
    pub skb: *mut __sk_buff,
}

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }

    #[inline(always)]
    pub fn kind(&self) -> Kind {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
        match unsafe { (*self.skb).protocol } {
            ETH_P_IP => Kind::Ipv4,
            ETH_P_ARP => Kind::Arp,
            _ => Kind::Other,
        }
    }

    /// Whether the frame has a VLAN tag (IEEE 802.1Q). The kernel keeps the tag beside the packet, so the
    /// frame itself reads as untagged.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// Length of the frame in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
        unsafe { (*self.skb).len as usize }
    }

    /// Index of the interface on which the program runs.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
        unsafe { (*self.skb).ifindex }
    }

    /// Payload bytes of each segment of a GSO packet; 0 for a plain one.
    #[inline(always)]
    pub fn gso_size(&self) -> usize {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
        unsafe { (*self.skb).gso_size as usize }
    }

    /// The [`Encapsulation`](ipip_abi::Encapsulation) in which the packet arrived at this node, if
    /// [`Self::set_arrived_in`] recorded one; otherwise a number that no encapsulation has.
    #[inline(always)]
    pub fn arrived_in(&self) -> u16 {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
        unsafe { (*self.skb).tc_index as u16 ^ ARRIVED_IN }
    }

    /// Records the encapsulation in which the packet arrived. The record stays with the packet in the host stack.
    #[inline(always)]
    pub fn set_arrived_in(&self, encapsulation: u16) {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
        unsafe { (*self.skb).tc_index = u32::from(encapsulation ^ ARRIVED_IN) }
    }

    /// Length in bytes of the IPv4 packet whose header is at `offset`. BIG TCP packets (GSO or GRO, over 65,535 bytes)
    /// have total length 0; as in `iph_totlen()` of linux/ip.h, the frame's length is used then. A zero in a
    /// smaller frame is malformed.
    #[inline(always)]
    pub fn ip_len(&self, offset: usize, header: &Ipv4) -> usize {
        match header.total_len() {
            0 => len_by_frame(self.skb, offset),
            len => len,
        }
    }

    /// Bytes of the frame on the wire, without the Ethernet header. `inner` are those of the packet without outer headers. Each
    /// segment of a GSO packet has the outer headers, and headers of its own.
    #[inline(always)]
    pub fn wire_len(&self, inner: usize) -> usize {
        let mut len = self.len() - ETH_LEN;
        let gso_size = self.gso_size();
        if gso_size != 0 {
            let outer = len - inner;
            let further = inner.saturating_sub(SEGMENT_HEADERS_LEN + 1) as u32 / gso_size as u32;
            len += further as usize * (outer + SEGMENT_HEADERS_LEN);
        }
        len
    }

    /// The flow's hash, which the kernel's own tunnels use too.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // SAFETY: the helper gets the kernel's context, which is valid for the whole run of the program.
        unsafe { bpf_get_hash_recalc(self.skb) }
    }

    /// Makes the first `len` bytes, or all bytes of a shorter packet, readable and writable in place. A longer packet
    /// needs a helper call only if it is non-linear (GRO or paged data).
    #[inline(always)]
    pub fn pull(&self, len: usize) {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program; the helper
        // checks `len` against the packet.
        unsafe {
            let (data, end) = ((*self.skb).data as usize, (*self.skb).data_end as usize);
            if data + len > end {
                // If the kernel has no memory, the checks of the headers drop the packet.
                bpf_skb_pull_data(self.skb, (*self.skb).len.min(len as u32));
            }
        }
    }

    #[inline(always)]
    fn pointer<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        let at = data + offset;
        (at + size_of::<T>() <= end).then_some(at as *mut T)
    }

    /// A copy of the `T` at a constant `offset` of the linear part.
    #[inline(always)]
    pub fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        // The kernel aligns the IP header to a word (NET_IP_ALIGN), or runs on a CPU where unaligned words are
        // as fast. `read_unaligned` would become one load per byte.
        // SAFETY: `pointer` checked the bounds, and callers read types for which all bytes are valid.
        self.pointer::<T>(offset).map(|at| unsafe { *at })
    }

    /// Writes at a constant `offset` of the linear part; false if it is shorter.
    #[inline(always)]
    pub fn write<T>(&self, offset: usize, value: T) -> bool {
        match self.pointer::<T>(offset) {
            // SAFETY: `pointer` checked the bounds. The kernel aligns the IP header to a word (NET_IP_ALIGN), or
            // runs on a CPU where unaligned words are as fast.
            Some(at) => unsafe {
                *at = value;
                true
            },
            None => false,
        }
    }

    /// A copy of the `T` at any `offset`, linear or not. Slower than `read`, because it is a helper call.
    #[inline(always)]
    pub fn load<T: Copy>(&self, offset: usize, into: &mut T) -> bool {
        // SAFETY: the helper writes exactly `size_of::<T>()` bytes or fails.
        unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                (&raw mut *into).cast(),
                size_of::<T>() as u32,
            ) == 0
        }
    }

    /// Writes at any `offset`, linear or not; false if the packet is shorter. Slower than `write`, because it is a helper
    /// call.
    #[inline(always)]
    pub fn store<T: Copy>(&self, offset: usize, value: &T) -> bool {
        // SAFETY: the helper reads exactly `size_of::<T>()` bytes, or fails.
        unsafe {
            let value = (&raw const *value).cast();
            bpf_skb_store_bytes(self.skb, offset as u32, value, size_of::<T>() as u32, 0) == 0
        }
    }

    /// Replaces a word, given as its bytes are in memory, in the TCP checksum at any `offset` (RFC 1624). The kernel leaves
    /// the field alone if an interface is still to fill it in (`CHECKSUM_PARTIAL`).
    #[inline(always)]
    pub fn replace_in_sum(&self, offset: usize, from: u16, to: u16) {
        // SAFETY: the helper gets the kernel's context. It fails only if the packet ends before the field.
        unsafe { bpf_l4_csum_replace(self.skb, offset as u32, from.into(), to.into(), 2) };
    }

    /// Removes `by` bytes behind the Ethernet header. `bpf_skb_change_tail` would refuse packets that a network card, or the
    /// sender on the same machine, has marked as encapsulated.
    #[inline(always)]
    pub fn shrink(&self, by: usize) -> bool {
        let mut left = by;
        for _ in 0..SHRINK_CALLS {
            let step = left.min(SHRINK_BYTES);
            left -= step;
            // SAFETY: the helper gets the kernel's context; if it fails, the packet is unchanged.
            let is_done = step == 0
                || unsafe {
                    bpf_skb_adjust_room(self.skb, -(step as i32), BPF_ADJ_ROOM_MAC, 0) == 0
                };
            if !is_done {
                return false;
            }
        }
        left == 0
    }

    /// The IPv4 header at a constant `offset`.
    #[inline(always)]
    pub fn ipv4(&self, offset: usize) -> Option<Ipv4> {
        self.read(offset)
    }

    /// The destination port, in network byte order, of the UDP packet whose IPv4 header `ip` is at a constant
    /// `offset`. None if the packet ends before the port or is a later fragment.
    #[inline(always)]
    pub fn udp_port(&self, offset: usize, ip: &Ipv4) -> Option<[u8; 2]> {
        if ip.is_later_fragment() {
            return None;
        }
        if ip.header_len() == IPV4_LEN {
            return self.read(offset + IPV4_LEN + UDP_DESTINATION_PORT);
        }
        let mut port = [0_u8; 2];
        self.load(offset + ip.header_len() + UDP_DESTINATION_PORT, &mut port)
            .then_some(port)
    }

    /// Whether the checksum of the header at `offset`, options included, is right.
    #[inline(always)]
    pub fn checksum_is_right(&self, offset: usize, header: &Ipv4) -> bool {
        let mut sum = header.sum();
        if header.header_len() > IPV4_LEN {
            sum += sum_of_options(self.skb, offset + IPV4_LEN, header.header_len() - IPV4_LEN);
        }
        fold(sum) == 0xffff
    }

    /// Decrements the time to live and updates the checksum (RFC 1624). The caller has checked that the time to
    /// live is above 1.
    #[inline(always)]
    pub fn decrement_ttl(&self, offset: usize, header: &Ipv4) -> bool {
        let checksum = u32::from(u16::from_be_bytes(header.checksum)) + 0x0100;
        let checksum = (checksum + (checksum >> 16)) as u16;
        self.write(offset + 8, header.ttl - 1) && self.write(offset + 10, checksum.to_be_bytes())
    }

    /// Takes back [`Self::decrement_ttl`].
    #[inline(always)]
    pub fn restore_ttl(&self, offset: usize, header: &Ipv4) -> bool {
        self.write(offset + 8, header.ttl) && self.write(offset + 10, header.checksum)
    }

    /// Replaces DSCP and ECN, and updates the checksum, in the packet and in `header`.
    #[inline(always)]
    pub fn set_tos(&self, offset: usize, header: &mut Ipv4, tos: u8) -> bool {
        // RFC 1624, eqn. 3: HC' = ~(~HC + ~m + m').
        let sum = u64::from(!u16::from_be_bytes(header.checksum))
            + u64::from(!u16::from_be_bytes([header.version_ihl, header.tos]))
            + u64::from(u16::from_be_bytes([header.version_ihl, tos]));
        header.checksum = (!fold(sum)).to_be_bytes();
        header.tos = tos;
        self.write(offset + 1, tos) && self.write(offset + 10, header.checksum)
    }

    /// Sets both Ethernet addresses.
    #[inline(always)]
    pub fn set_macs(&self, destination: Mac, source: Mac) -> bool {
        let [a, b, c, d, e, f] = destination.0;
        let [g, h, i, j, k, l] = source.0;
        // Written as three words: the kernel aligns them on CPUs where alignment matters.
        self.write(0, [[a, b, c, d], [e, f, g, h], [i, j, k, l]])
    }
}

/// The result of writing to a packet. A write fails only if the kernel has no memory or the packet is too short.
#[inline(always)]
pub fn write_ok(done: bool) -> Result<(), DropReason> {
    if done {
        Ok(())
    } else {
        Err(DropReason::RewriteFailed)
    }
}

/// Bytes of the frame from `offset` on, if they exceed IPv4's total length field; otherwise 0. Not inlined, because BIG
/// TCP is rare.
#[inline(never)]
fn len_by_frame(skb: *mut __sk_buff, offset: usize) -> usize {
    let rest = Packet { skb }.len().saturating_sub(offset);
    if rest > MAX_IPV4_LEN { rest } else { 0 }
}

/// Sum of the words of an IP header's options. Not inlined, because options are rare.
#[inline(never)]
fn sum_of_options(skb: *mut __sk_buff, mut offset: usize, len: usize) -> u64 {
    let mut sum = 0;
    // At most 10 words of options (RFC 791). The bound is constant because old verifiers need that.
    for word in 0..10 {
        if word * 4 < len {
            let mut value = 0_u32;
            // Cannot fail: the caller checked that the packet is as long as its header states.
            let _ = Packet { skb }.load(offset, &mut value);
            sum += u64::from(value);
            offset += 4;
        }
    }
    sum
}

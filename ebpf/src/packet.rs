//! Packet access: the only file with raw packet pointers.
//!
//! A helper that changes the packet makes every pointer into it void, so nothing here hands one
//! out: headers are read as copies and written field by field.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_hash_recalc, bpf_skb_load_bytes, bpf_skb_pull_data},
    programs::TcContext,
};
use ipip_abi::{Addr, Mac};

/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Longest packet that IPv4's total length can say.
pub const MAX_IPV4_LEN: usize = 65_535;
/// `skb->protocol` of IPv4, in network byte order as the kernel has it.
const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
/// `skb->protocol` of ARP.
const ETH_P_ARP: u32 = (0x0806_u16).to_be() as u32;

/// An IPv4 header without options (RFC 791), as words so that BPF loads it in five reads.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
pub struct Ipv4 {
    version_ihl: u8,
    /// DSCP and ECN (RFC 2474, RFC 3168).
    pub tos: u8,
    total_len: [u8; 2],
    _id: [u8; 2],
    fragment: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    checksum: [u8; 2],
    pub source: Addr,
    pub destination: Addr,
}

impl Ipv4 {
    #[inline(always)]
    pub fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Length of the header in bytes, 0 to 60.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        ((self.version_ihl & 0xf) as usize) << 2
    }

    #[inline(always)]
    pub fn total_len(&self) -> usize {
        u16::from_be_bytes(self.total_len) as usize
    }

    /// Whether this is any fragment of a larger packet, the first one included.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff != 0
    }

    /// Whether the transport header is elsewhere, in the first fragment.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x1fff != 0
    }

    /// Sum of the header's words; 0xffff in a header whose checksum is right.
    #[inline(always)]
    fn sum(&self) -> u64 {
        // SAFETY: the struct is 20 initialised bytes, aligned to 4.
        let words = unsafe { &*(&raw const *self).cast::<[u32; 5]>() };
        u64::from(words[0])
            + u64::from(words[1])
            + u64::from(words[2])
            + u64::from(words[3])
            + u64::from(words[4])
    }
}

/// Folds a sum of 16- or 32-bit words to 16 bits (RFC 1071).
#[inline(always)]
pub fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What a packet is by the type in its frame.
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
        // SAFETY: the kernel's context of this very call.
        match unsafe { (*self.skb).protocol } {
            ETH_P_IP => Kind::Ipv4,
            ETH_P_ARP => Kind::Arp,
            _ => Kind::Other,
        }
    }

    /// Whether the frame has a VLAN tag (IEEE 802.1Q); the kernel keeps it beside the packet, so that
    /// the frame reads as untagged.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// Length of the frame.
    #[inline(always)]
    pub fn len(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.skb).len as usize }
    }

    /// Interface on which the packet was seen.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).ifindex }
    }

    /// Payload bytes of each segment of a GSO packet; 0 for a plain one.
    #[inline(always)]
    pub fn gso_size(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.skb).gso_size as usize }
    }

    /// Bytes of the packet from the header at `offset` on, by that header. Where it cannot say them, in a TCP
    /// packet that is to be segmented later or was merged (BIG TCP), the kernel writes 0 and goes by the
    /// frame (`iph_totlen` of linux/ip.h); a shorter frame with a 0 is a wrong one.
    #[inline(always)]
    pub fn ip_len(&self, offset: usize, header: &Ipv4) -> usize {
        match header.total_len() {
            0 => len_by_frame(self.skb, offset),
            len => len,
        }
    }

    /// The flow's hash, as the kernel's own tunnels use it.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // SAFETY: as above.
        unsafe { bpf_get_hash_recalc(self.skb) }
    }

    /// Makes the first `len` bytes readable and writable in place. Only a non-linear packet
    /// (GRO or paged data) costs the helper's call. False if the packet is shorter than that.
    #[inline(always)]
    pub fn pull(&self, len: usize) -> bool {
        // SAFETY: the kernel's context; the helper checks `len` against the packet.
        unsafe {
            let (data, end) = ((*self.skb).data as usize, (*self.skb).data_end as usize);
            data + len <= end || bpf_skb_pull_data(self.skb, len as u32) == 0
        }
    }

    #[inline(always)]
    fn pointer<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: the kernel's context.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        let at = data + offset;
        (at + size_of::<T>() <= end).then_some(at as *mut T)
    }

    /// A copy of what lies at a constant `offset` of the linear part.
    #[inline(always)]
    pub fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        // The kernel lays the IP header on a word (NET_IP_ALIGN) or runs where unaligned words
        // are as fast; an unaligned read would become one load per byte.
        // SAFETY: the bounds were just checked, any bytes are a valid header.
        self.pointer::<T>(offset).map(|at| unsafe { *at })
    }

    /// Writes at a constant `offset` of the linear part; false if it is shorter.
    #[inline(always)]
    pub fn write<T>(&self, offset: usize, value: T) -> bool {
        match self.pointer::<T>(offset) {
            // SAFETY: the bounds were just checked; alignment as for `read`.
            Some(at) => unsafe {
                *at = value;
                true
            },
            None => false,
        }
    }

    /// A copy of what lies at any `offset`, linear or not. Slower than `read`: a helper call.
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

    /// The IPv4 header at a constant `offset`.
    #[inline(always)]
    pub fn ipv4(&self, offset: usize) -> Option<Ipv4> {
        self.read(offset)
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

    /// Takes one hop off the time to live, checksum kept (RFC 1624). The caller saw that it is
    /// above 1.
    #[inline(always)]
    pub fn decrement_ttl(&self, offset: usize, header: &Ipv4) -> bool {
        let checksum = u32::from(u16::from_be_bytes(header.checksum)) + 0x0100;
        let checksum = (checksum + (checksum >> 16)) as u16;
        self.write(offset + 8, header.ttl - 1) && self.write(offset + 10, checksum.to_be_bytes())
    }

    /// Replaces DSCP and ECN, checksum kept.
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
        // Three words: a frame begins at an even address, so that they are aligned as the kernel
        // wants them wherever alignment matters.
        self.write(0, [[a, b, c, d], [e, f, g, h], [i, j, k, l]])
    }
}

/// Bytes from `offset` on, if they are more than a header can say; else 0. Not in line: as below.
#[inline(never)]
fn len_by_frame(skb: *mut __sk_buff, offset: usize) -> usize {
    let rest = Packet { skb }.len().saturating_sub(offset);
    if rest > MAX_IPV4_LEN { rest } else { 0 }
}

/// Sum of the words of an IP header's options. Not in line: hardly a packet has any.
#[inline(never)]
fn sum_of_options(skb: *mut __sk_buff, mut offset: usize, len: usize) -> u64 {
    let mut sum = 0;
    // 10 words of options at most (RFC 791); a constant bound for old verifiers.
    for word in 0..10 {
        if word * 4 < len {
            let mut value = 0_u32;
            // Cannot fail: the packet is as long as its header says, which was checked.
            let _ = Packet { skb }.load(offset, &mut value);
            sum += u64::from(value);
            offset += 4;
        }
    }
    sum
}

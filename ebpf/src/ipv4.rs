//! The IPv4 header as the programs read and write it.

use ipip_abi::{
    Addr,
    wire::{PROTO_GRE, PROTO_IPIP, PROTO_IPV6},
};

/// An IPv4 header without options (RFC 791), aligned so that BPF loads and writes it as five words.
#[derive(Clone, Copy, Default)]
#[repr(C, align(4))]
pub struct Ipv4 {
    pub version_ihl: u8,
    /// DSCP and ECN (RFC 2474, RFC 3168).
    pub tos: u8,
    pub total_len: [u8; 2],
    /// 0 in the headers that the programs write, because packets with DF need none (RFC 6864).
    pub id: [u8; 2],
    pub fragment: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
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

    /// Whether this is a fragment without the transport header, which is in the first fragment.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x1fff != 0
    }

    /// Sum of the header's words; it folds to 0xffff if the checksum is right.
    #[inline(always)]
    pub fn sum(&self) -> u64 {
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

/// Whether packets of this protocol carry another IP packet, which the programs cannot validate.
#[inline(always)]
pub fn is_tunnel_protocol(protocol: u8) -> bool {
    matches!(protocol, PROTO_IPIP | PROTO_IPV6 | PROTO_GRE)
}

//! Addresses in the form that packets have.

use core::{fmt, net::Ipv4Addr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 address in network byte order, aligned so that a program loads it as one word.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
)]
#[repr(C, align(4))]
pub struct Addr(pub [u8; 4]);

impl Addr {
    /// 0.0.0.0.
    pub const ZERO: Self = Self([0; 4]);

    /// The address as a number in host byte order, for ranges and prefixes.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        u32::from_be_bytes(self.0)
    }

    /// The address as the CPU loads it, for comparisons. BPF compares arrays byte by byte.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        u32::from_ne_bytes(self.0)
    }

    /// Length of a block's prefix.
    pub const BLOCK_BITS: u32 = 24;

    /// The first address of the block (/24) that holds this one, as `ROUTE_CACHE` stores it.
    #[inline(always)]
    pub const fn block(self) -> Self {
        let [a, b, c, _] = self.0;
        Self([a, b, c, 0])
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.octets())
    }
}

impl From<Addr> for Ipv4Addr {
    fn from(address: Addr) -> Self {
        Self::from(address.0)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(*self).fmt(f)
    }
}

/// An Ethernet address.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The gateway of every pod: a link-local address (RFC 3927), which is never routed.
pub const POD_GATEWAY: Addr = Addr([169, 254, 1, 1]);
/// The gateway's MAC: that of the host side of each new pod's veth. It is the same on every node, so that a virtual
/// machine that migrates keeps a valid neighbour entry. Locally administered, then "ipip" and 1.
pub const POD_GATEWAY_MAC: Mac = Mac([0x02, 0x69, 0x70, 0x69, 0x70, 0x01]);

/// The ranges, each with the length of its prefix, that no pod address and no address of a packet inside a
/// tunnel may be in: this network (RFC 791), loopback (RFC 1122), link-local (RFC 3927), multicast
/// (RFC 5771), reserved (RFC 1112) with limited broadcast (RFC 919).
pub const NEVER_POD_RANGES: [(Addr, u8); 5] = [
    (Addr([0, 0, 0, 0]), 8),
    (Addr([127, 0, 0, 0]), 8),
    (Addr([169, 254, 0, 0]), 16),
    (Addr([224, 0, 0, 0]), 4),
    (Addr([240, 0, 0, 0]), 4),
];

/// Whether `address` is in one of [`NEVER_POD_RANGES`].
#[inline(always)]
pub const fn is_never_a_pod_address(address: Addr) -> bool {
    overlaps_never_pod_range(address, 32)
}

/// Whether the prefix `network`/`prefix_len` has an address in common with one of [`NEVER_POD_RANGES`].
#[inline(always)]
pub const fn overlaps_never_pod_range(network: Addr, prefix_len: u8) -> bool {
    let mut index = 0;
    while index < NEVER_POD_RANGES.len() {
        let (range, range_len) = NEVER_POD_RANGES[index];
        let shorter = if range_len < prefix_len {
            range_len
        } else {
            prefix_len
        };
        let mask = match u32::MAX.checked_shl(u32::BITS - shorter as u32) {
            Some(mask) => mask,
            None => 0,
        };
        if (network.to_bits() ^ range.to_bits()) & mask == 0 {
            return true;
        }
        index += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_of_addresses_that_no_pod_can_have_is_recognised_at_its_edges() {
        for inside in [
            [0, 0, 0, 0],
            [0, 255, 255, 255],
            [127, 0, 0, 1],
            [169, 254, 0, 0],
            [169, 254, 255, 255],
            [224, 0, 0, 0],
            [240, 0, 0, 1],
            [255, 255, 255, 255],
        ] {
            assert!(is_never_a_pod_address(Addr(inside)), "{}", Addr(inside));
        }
        for outside in [
            [1, 0, 0, 0],
            [126, 255, 255, 255],
            [128, 0, 0, 0],
            [169, 253, 255, 255],
            [169, 255, 0, 0],
            [223, 255, 255, 255],
            [10, 42, 0, 1],
        ] {
            assert!(!is_never_a_pod_address(Addr(outside)), "{}", Addr(outside));
        }
    }

    #[test]
    fn a_network_is_recognised_if_any_of_its_addresses_is_in_such_a_range() {
        for (network, len) in [
            ([0, 0, 0, 0], 0),
            ([126, 0, 0, 0], 7),
            ([127, 1, 2, 0], 24),
            ([169, 254, 0, 0], 16),
            ([169, 0, 0, 0], 8),
            ([128, 0, 0, 0], 1),
            ([255, 255, 255, 255], 32),
        ] {
            assert!(
                overlaps_never_pod_range(Addr(network), len),
                "{network:?}/{len}"
            );
        }
        for (network, len) in [
            ([10, 0, 0, 0], 8),
            ([169, 253, 0, 0], 16),
            ([192, 0, 0, 0], 4),
        ] {
            assert!(
                !overlaps_never_pod_range(Addr(network), len),
                "{network:?}/{len}"
            );
        }
    }
}

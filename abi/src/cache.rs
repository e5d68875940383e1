//! Direct-mapped caches: arrays that a program reads without a helper call, because the verifier inlines
//! lookups in arrays. An entry's index is computed from its address.
//!
//! Each cache stands in front of a map that has all entries. Each index has room for one entry. If
//! two addresses have the same index, the cache holds one of them, and a lookup of the other one reads the map.

use crate::{Addr, NodeAddr, Pod, Route, maps::MAX_FLOW_PAIRS};

/// Entries of each cache: a power of two.
pub const CACHE_LEN: u32 = 1 << CACHE_BITS;
const CACHE_BITS: u32 = 16;

/// An element of a cache.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Cached<V> {
    /// The address whose entry this is, or the first address of the block; 0.0.0.0 if the element is empty.
    pub address: Addr,
    /// A copy of the entry in the map.
    pub value: V,
}

const _: () = assert!(
    size_of::<Cached<Pod>>() == size_of::<Addr>() + size_of::<Pod>()
        && size_of::<Cached<NodeAddr>>() == size_of::<Addr>() + size_of::<NodeAddr>()
        && size_of::<Cached<Route>>() == size_of::<Addr>() + size_of::<Route>()
);
// SAFETY: `Addr` and `Pod` are plain bytes, and the assertion above proves that there is no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Cached<Pod> {}
// SAFETY: `Addr` and `NodeAddr` are plain bytes, and the assertion above proves that there is no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Cached<NodeAddr> {}
// SAFETY: `Addr` and `Route` are plain bytes, and the assertion above proves that there is no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Cached<Route> {}

impl<V> Cached<V> {
    /// The value, if this is the entry of `address`.
    #[inline(always)]
    pub fn get(&self, address: Addr) -> Option<&V> {
        // 0.0.0.0 marks an empty element, and no map has an entry for it.
        (self.address.word() == address.word() && address.word() != 0).then_some(&self.value)
    }
}

impl Addr {
    /// The address's index in `POD_CACHE` and `NODE_CACHE`.
    #[inline(always)]
    pub const fn cache_index(self) -> u32 {
        scatter(self.to_bits())
    }

    /// The index in `ROUTE_CACHE` of the block that holds the address.
    #[inline(always)]
    pub const fn block_cache_index(self) -> u32 {
        scatter(self.to_bits() >> (u32::BITS - Self::BLOCK_BITS))
    }
}

/// The index in `FLOW_PAIRS` of a pair of addresses, the same in both orders.
#[inline(always)]
pub const fn flow_pair_index(one: Addr, other: Addr) -> u32 {
    const BITS: u32 = MAX_FLOW_PAIRS.trailing_zeros();
    let mixed = one.to_bits().wrapping_mul(GOLDEN) ^ other.to_bits().wrapping_mul(GOLDEN);
    mixed >> (u32::BITS - BITS)
}

/// Fibonacci hashing: consecutive numbers get different indexes, because multiples of the golden ratio are
/// spread evenly (Knuth, The Art of Computer Programming 3, 6.4).
#[inline(always)]
const fn scatter(number: u32) -> u32 {
    number.wrapping_mul(GOLDEN) >> (u32::BITS - CACHE_BITS)
}

/// 2^32 divided by the golden ratio, made odd.
const GOLDEN: u32 = 0x9e37_79b1;

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::collections::BTreeSet;

    #[test]
    fn addresses_of_a_node_and_blocks_of_a_cluster_rarely_share_an_index() {
        let pods = (0..4096_u32).map(|host| Addr((0x0a2a_0000 + host).to_be_bytes()).cache_index());
        assert_eq!(pods.collect::<BTreeSet<_>>().len(), 4096);
        let blocks = (0..5000_u32)
            .map(|number| Addr((0x0a00_0000 + (number << 8)).to_be_bytes()).block_cache_index());
        assert_eq!(blocks.collect::<BTreeSet<_>>().len(), 5000);
    }

    #[test]
    fn a_pair_has_one_index_in_both_directions_and_few_pairs_share_one() {
        let address = |high: u32, low: u32| Addr((0x0a2a_0000 + (high << 8) + low).to_be_bytes());
        let pairs = (0..100_u32).flat_map(|pod| (0..100).map(move |peer| (pod, peer)));
        let indexes: BTreeSet<u32> = pairs
            .map(|(pod, peer)| {
                let (pod, peer) = (address(1, pod), address(2 + peer, 7));
                assert_eq!(flow_pair_index(pod, peer), flow_pair_index(peer, pod));
                flow_pair_index(pod, peer)
            })
            .collect();
        assert!(indexes.len() > 9_500, "{} of 10,000", indexes.len());
    }

    #[test]
    fn an_empty_element_has_no_entry_and_a_used_one_only_its_own() {
        let empty = Cached::<Route>::default();
        assert_eq!(empty.get(Addr::ZERO), None);
        let address = Addr([10, 42, 1, 2]);
        let used = Cached {
            address,
            value: Route::new(3, Route::PODS),
        };
        assert_eq!(used.get(address), Some(&used.value));
        assert_eq!(used.get(Addr([10, 42, 1, 3])), None);
    }
}

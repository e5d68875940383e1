//! Tables that a program reads without calling the kernel: arrays, whose lookups the verifier puts
//! in line, with an entry's place computed from its address.
//!
//! Each stands in front of a map that knows all entries. A place holds one entry; another one
//! with the same place is found in that map alone.

use crate::{Addr, NodeAddr, Pod, Route, maps::MAX_FLOW_PAIRS};

/// Places of a table: a power of two.
pub const SLOTS: u32 = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 16;

/// A place of a table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Slot<V> {
    /// Whose entry this is; 0.0.0.0 where the place is free.
    pub address: Addr,
    /// What the map behind has of it.
    pub value: V,
}

const _: () = assert!(
    size_of::<Slot<Pod>>() == size_of::<Addr>() + size_of::<Pod>()
        && size_of::<Slot<NodeAddr>>() == size_of::<Addr>() + size_of::<NodeAddr>()
        && size_of::<Slot<Route>>() == size_of::<Addr>() + size_of::<Route>()
);
// SAFETY: both fields are plain bytes, and there is no padding, as asserted above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Slot<Pod> {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Slot<NodeAddr> {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Slot<Route> {}

impl<V> Slot<V> {
    /// The entry of `address`, if it is here.
    #[inline(always)]
    pub fn of(&self, address: Addr) -> Option<&V> {
        // 0.0.0.0 has no entry anywhere; what reads so is a free place.
        (self.address.word() == address.word() && address.word() != 0).then_some(&self.value)
    }
}

impl Addr {
    /// Its place in `POD_SLOTS` and `NODE_SLOTS`.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        scatter(self.to_bits())
    }

    /// The place of its block in `ROUTE_BLOCKS`.
    #[inline(always)]
    pub const fn block_slot(self) -> u32 {
        scatter(self.to_bits() >> (u32::BITS - Self::BLOCK_BITS))
    }
}

/// The place in `FLOW_PAIRS` of what two addresses, in either order, have to do with each other.
#[inline(always)]
pub const fn pair_slot(one: Addr, other: Addr) -> u32 {
    const BITS: u32 = MAX_FLOW_PAIRS.trailing_zeros();
    let mixed = one.to_bits().wrapping_mul(GOLDEN) ^ other.to_bits().wrapping_mul(GOLDEN);
    mixed >> (u32::BITS - BITS)
}

/// Neighbours go to places of their own: the golden ratio's multiples are spread evenly (Knuth, The Art
/// of Computer Programming 3, 6.4).
#[inline(always)]
const fn scatter(number: u32) -> u32 {
    number.wrapping_mul(GOLDEN) >> (u32::BITS - SLOT_BITS)
}

/// 2^32 divided by the golden ratio, made odd.
const GOLDEN: u32 = 0x9e37_79b1;

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::collections::BTreeSet;

    #[test]
    fn addresses_of_a_node_and_blocks_of_a_cluster_rarely_share_a_place() {
        let pods = (0..4096_u32).map(|host| Addr((0x0a2a_0000 + host).to_be_bytes()).slot());
        assert_eq!(pods.collect::<BTreeSet<_>>().len(), 4096);
        let blocks = (0..5000_u32)
            .map(|number| Addr((0x0a00_0000 + (number << 8)).to_be_bytes()).block_slot());
        assert_eq!(blocks.collect::<BTreeSet<_>>().len(), 5000);
    }

    #[test]
    fn a_pair_has_one_place_in_both_directions_and_few_pairs_share_one() {
        let address = |high: u32, low: u32| Addr((0x0a2a_0000 + (high << 8) + low).to_be_bytes());
        let pairs = (0..100_u32).flat_map(|pod| (0..100).map(move |peer| (pod, peer)));
        let places: BTreeSet<u32> = pairs
            .map(|(pod, peer)| {
                let (pod, peer) = (address(1, pod), address(2 + peer, 7));
                assert_eq!(pair_slot(pod, peer), pair_slot(peer, pod));
                pair_slot(pod, peer)
            })
            .collect();
        assert!(places.len() > 9_500, "{} of 10,000", places.len());
    }

    #[test]
    fn a_free_place_holds_no_entry_and_a_taken_one_only_its_own() {
        let free = Slot::<Route>::default();
        assert_eq!(free.of(Addr::ZERO), None);
        let address = Addr([10, 42, 1, 2]);
        let taken = Slot {
            address,
            value: Route::new(3, Route::PODS),
        };
        assert_eq!(taken.of(address), Some(&taken.value));
        assert_eq!(taken.of(Addr([10, 42, 1, 3])), None);
    }
}

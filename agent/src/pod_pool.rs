//! The pool of pod addresses for clusters whose Nodes have no pod CIDRs: disjoint networks, cut into blocks of one
//! size. Pure.

use ipnetwork::Ipv4Network;
use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Networks that are cut into blocks; each node gets one block.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodPool {
    networks: Vec<Ipv4Network>,
    mask_size: u8,
}

impl PodPool {
    /// The pool of `networks`, which are disjoint and not smaller than a block of prefix length `mask_size`. `None`
    /// without networks.
    pub fn new(networks: &[Ipv4Network], mask_size: u8) -> Option<Self> {
        (!networks.is_empty()).then(|| Self {
            networks: networks.to_vec(),
            mask_size,
        })
    }

    /// The number of blocks.
    pub fn count(&self) -> u64 {
        self.networks.iter().map(|it| self.blocks_in(it)).sum()
    }

    /// Whether `network` lies in the pool.
    pub fn holds(&self, network: &Ipv4Network) -> bool {
        self.networks
            .iter()
            .any(|it| overlap(it, network) && it.prefix() <= network.prefix())
    }

    /// The network of the pool that has an address in common with `network`.
    pub fn overlapping(&self, network: &Ipv4Network) -> Option<&Ipv4Network> {
        self.networks.iter().find(|it| overlap(it, network))
    }

    /// All blocks, in the order in which the node `name` tries them: from a block that depends on the name, so that
    /// nodes that start at the same time try different blocks.
    pub fn blocks_for(&self, name: &str) -> impl Iterator<Item = Ipv4Network> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let count = self.count();
        let first = hasher.finish() % count.max(1);
        (first..count)
            .chain(0..first)
            .filter_map(|index| self.block(index))
    }

    fn block(&self, mut index: u64) -> Option<Ipv4Network> {
        for network in &self.networks {
            let count = self.blocks_in(network);
            if index < count {
                let offset = u32::try_from(index << (32 - self.mask_size)).ok()?;
                let first = network.network().to_bits() + offset;
                return Ipv4Network::new(first.into(), self.mask_size).ok();
            }
            index -= count;
        }
        None
    }

    fn blocks_in(&self, network: &Ipv4Network) -> u64 {
        1 << self.mask_size.saturating_sub(network.prefix())
    }
}

impl fmt::Display for PodPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<String> = self.networks.iter().map(ToString::to_string).collect();
        f.write_str(&networks.join(","))
    }
}

/// Whether two networks have an address in common: one of them then holds the other.
pub fn overlap(one: &Ipv4Network, other: &Ipv4Network) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn network(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn pool(networks: &[&str], mask_size: u8) -> PodPool {
        let networks: Vec<_> = networks.iter().map(|it| network(it)).collect();
        PodPool::new(&networks, mask_size).unwrap()
    }

    #[test]
    fn a_pool_has_each_of_its_blocks_once_for_every_node() {
        let pool = pool(&["10.42.0.0/22", "10.50.7.0/24", "10.60.0.0/23"], 24);
        let expected = [
            "10.42.0.0/24",
            "10.42.1.0/24",
            "10.42.2.0/24",
            "10.42.3.0/24",
            "10.50.7.0/24",
            "10.60.0.0/24",
            "10.60.1.0/24",
        ];
        let expected = BTreeSet::from(expected.map(network));
        assert_eq!(pool.count(), 7);
        for node in ["a1", "b1", "node.example"] {
            let blocks: Vec<_> = pool.blocks_for(node).collect();
            assert_eq!(blocks.len(), 7, "{node}");
            assert_eq!(BTreeSet::from_iter(blocks), expected, "{node}");
        }
    }

    #[test]
    fn nodes_begin_at_different_blocks_and_each_at_the_same_block_every_time() {
        let pool = pool(&["10.42.0.0/16"], 24);
        let first = |node: &str| pool.blocks_for(node).next().unwrap();
        let starts: BTreeSet<_> = (0..64).map(|n| first(&format!("node-{n}"))).collect();
        // 64 nodes in 256 blocks: 56.7 different blocks are expected.
        assert!(starts.len() > 40, "{starts:?}");
        assert_eq!(first("a1"), first("a1"));
    }

    #[test]
    fn the_largest_pool_has_its_last_block() {
        let pool = pool(&["128.0.0.0/1"], 28);
        assert_eq!(
            pool.block(pool.count() - 1),
            Some(network("255.255.255.240/28"))
        );
        assert_eq!(pool.block(pool.count()), None);
    }

    #[test]
    fn a_network_that_only_reaches_into_the_pool_is_not_held_by_it() {
        let pool = pool(&["10.42.0.0/16", "10.44.0.0/16"], 24);
        for (text, held, overlaps) in [
            ("10.42.3.0/24", true, true),
            ("10.44.0.0/16", true, true),
            ("10.42.3.128/25", true, true),
            ("10.40.0.0/14", false, true),
            ("10.43.0.0/24", false, false),
        ] {
            assert_eq!(pool.holds(&network(text)), held, "{text}");
            assert_eq!(
                pool.overlapping(&network(text)).is_some(),
                overlaps,
                "{text}"
            );
        }
    }
}

//! The routes: a trie that has every prefix, and in front of it a direct-mapped cache of blocks (/24).
//!
//! A trie of 5,000 peers is about fourteen nodes deep, and each node is in another CPU cache line. By
//! default Kubernetes gives a node a /24, so nearly every lookup hits the cache. A block is cached only if no longer
//! prefix lies inside it. Lookups in all other blocks, and in a block that is being changed, read the trie.

use crate::{Error, Pins, batch, cache::Cache, open_map};
use aya::maps::{LpmTrie, MapData, MapError, lpm_trie::Key};
use ipip_abi::{Addr, Route, maps};
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

/// `ROUTES` with its `ROUTE_CACHE`. There may be one writer at a time.
pub struct Routes {
    trie: LpmTrie<MapData, Addr, Route>,
    cache: Cache<Route>,
    /// The prefixes in the trie, for deciding which blocks may be cached; `None` before the first write.
    known: Option<Known>,
}

/// The prefixes of 24 bits or more. They decide which blocks may be cached.
#[derive(Debug, Default)]
struct Known {
    /// Every /24.
    whole: BTreeMap<Addr, Route>,
    /// Longer prefixes, by the /24 that they lie in.
    longer: BTreeMap<Addr, BTreeSet<(u32, Addr)>>,
}

impl Routes {
    pub(crate) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            trie: open_map(pins, &maps::ROUTES)?,
            cache: Cache::new(open_map(pins, &maps::ROUTE_CACHE)?, Addr::block_cache_index),
            known: None,
        })
    }

    /// Every prefix with its route.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Key<Addr>, Route), MapError>> {
        self.trie.iter()
    }

    /// Every prefix with its route, many by one system call.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> Result<Vec<(Key<Addr>, Route)>, MapError> {
        // Before Linux 5.13, the kernel reads only single entries of a trie.
        batch::entries(&self.trie, || self.trie.iter())
    }

    /// Every cached block, by its first address.
    pub fn cached_blocks(&self) -> impl Iterator<Item = Result<(Addr, Route), MapError>> {
        self.cache.iter()
    }

    /// Adds or replaces a route.
    ///
    /// # Errors
    /// The kernel's errors. The block is then not cached, so lookups in it read the trie.
    pub fn insert(
        &mut self,
        key: &Key<Addr>,
        route: impl Borrow<Route>,
        flags: u64,
    ) -> Result<(), MapError> {
        self.clear_block(key)?;
        self.trie.insert(key, route.borrow(), flags)?;
        self.learn()?.insert(key, *route.borrow());
        self.fill_block(key)
    }

    /// Removes a route.
    ///
    /// # Errors
    /// The kernel's errors, including that there is no such route. The block is then not cached, so lookups in it read
    /// the trie.
    pub fn remove(&mut self, key: &Key<Addr>) -> Result<(), MapError> {
        self.clear_block(key)?;
        self.trie.remove(key)?;
        self.learn()?.remove(key);
        self.fill_block(key)
    }

    /// Clears the block's cache entry before the trie changes. If the writer is killed in between, no cached
    /// block contradicts the trie.
    fn clear_block(&mut self, key: &Key<Addr>) -> Result<(), MapError> {
        self.learn()?;
        match block(key) {
            Some(block) => self.cache.clear(block),
            None => Ok(()),
        }
    }

    /// Caches the block after the trie has changed, if one /24 alone decides it.
    fn fill_block(&mut self, key: &Key<Addr>) -> Result<(), MapError> {
        let Some(block) = block(key) else {
            return Ok(());
        };
        if let Some(route) = self.learn()?.of_block(block) {
            self.cache.fill(block, route)?;
        }
        Ok(())
    }

    /// The prefixes in the trie. The first call also repairs the cached blocks of an earlier writer that was
    /// killed.
    fn learn(&mut self) -> Result<&mut Known, MapError> {
        if self.known.is_none() {
            let mut known = Known::default();
            for (key, route) in self.entries()? {
                known.insert(&key, route);
            }
            let found: BTreeMap<Addr, Route> = self.cache.iter().collect::<Result<_, _>>()?;
            for (block, route) in &found {
                if known.of_block(*block) != Some(*route) {
                    self.cache.clear(*block)?;
                }
            }
            for block in known.whole.keys() {
                if let Some(route) = known.of_block(*block)
                    && found.get(block) != Some(&route)
                {
                    self.cache.fill(*block, route)?;
                }
            }
            self.known = Some(known);
        }
        Ok(self.known.get_or_insert_default())
    }
}

impl Known {
    fn insert(&mut self, key: &Key<Addr>, route: Route) {
        match (block(key), key.prefix_len()) {
            (Some(block), Addr::BLOCK_BITS) => drop(self.whole.insert(block, route)),
            (Some(block), len) => drop(
                self.longer
                    .entry(block)
                    .or_default()
                    .insert((len, key.data())),
            ),
            (None, _) => {}
        }
    }

    fn remove(&mut self, key: &Key<Addr>) {
        match (block(key), key.prefix_len()) {
            (Some(block), Addr::BLOCK_BITS) => drop(self.whole.remove(&block)),
            (Some(block), len) => {
                if let Some(longer) = self.longer.get_mut(&block) {
                    longer.remove(&(len, key.data()));
                    if longer.is_empty() {
                        self.longer.remove(&block);
                    }
                }
            }
            (None, _) => {}
        }
    }

    /// The route of the block, if a /24 is its only prefix of 24 bits or more.
    fn of_block(&self, block: Addr) -> Option<Route> {
        let is_split = self.longer.contains_key(&block);
        self.whole.get(&block).copied().filter(|_| !is_split)
    }
}

/// The block that the prefix is or lies in; none if the prefix is larger than a block.
fn block(key: &Key<Addr>) -> Option<Addr> {
    (key.prefix_len() >= Addr::BLOCK_BITS).then(|| key.data().block())
}

//! The routes: a trie that knows every prefix, and in front of it slots for the blocks that a lookup may
//! find without walking the trie.
//!
//! A trie of 5,000 peers is some fourteen nodes deep, each in another cache line. Kubernetes gives a
//! node a /24, so one slot answers for nearly every packet. A /24 has a slot only where no
//! longer prefix lies inside; the trie alone answers for all others, and for all while one changes.

use crate::{Error, Pins, maps, slots::Slots};
use aya::maps::{LpmTrie, MapData, MapError, lpm_trie::Key};
use ipip_abi::{Addr, Route, maps as specs};
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

/// `ROUTES` with its `ROUTE_BLOCKS`; there may be one writer at a time.
pub struct Routes {
    trie: LpmTrie<MapData, Addr, Route>,
    blocks: Slots<Route>,
    /// What the trie holds; read before the first write.
    known: Option<Known>,
}

/// The prefixes that say which blocks may have a slot.
#[derive(Debug, Default)]
struct Known {
    /// Each /24.
    whole: BTreeMap<Addr, Route>,
    /// Prefixes longer than that, by the /24 that they lie in.
    longer: BTreeMap<Addr, BTreeSet<(u32, Addr)>>,
}

impl Routes {
    pub(crate) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            trie: maps::open(pins, &specs::ROUTES)?,
            blocks: Slots::new(maps::open(pins, &specs::ROUTE_BLOCKS)?, Addr::block_slot),
            known: None,
        })
    }

    /// Every prefix with its route.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Key<Addr>, Route), MapError>> {
        self.trie.iter()
    }

    /// Every block that a lookup finds without the trie: the first address of a /24.
    pub fn blocks(&self) -> impl Iterator<Item = Result<(Addr, Route), MapError>> {
        self.blocks.iter()
    }

    /// Adds or replaces a route.
    ///
    /// # Errors
    /// What the kernel says of either map. The trie then still decides.
    pub fn insert(
        &mut self,
        key: &Key<Addr>,
        route: impl Borrow<Route>,
        flags: u64,
    ) -> Result<(), MapError> {
        self.forget_block(key)?;
        self.trie.insert(key, route.borrow(), flags)?;
        self.learn()?.insert(key, *route.borrow());
        self.remember_block(key)
    }

    /// Removes a route.
    ///
    /// # Errors
    /// As [`Self::insert`]; also if there is no such route.
    pub fn remove(&mut self, key: &Key<Addr>) -> Result<(), MapError> {
        self.forget_block(key)?;
        self.trie.remove(key)?;
        self.learn()?.remove(key);
        self.remember_block(key)
    }

    /// Before the trie changes: who dies in between must not leave a block that contradicts it.
    fn forget_block(&mut self, key: &Key<Addr>) -> Result<(), MapError> {
        self.learn()?;
        match block(key) {
            Some(block) => self.blocks.clear(block),
            None => Ok(()),
        }
    }

    fn remember_block(&mut self, key: &Key<Addr>) -> Result<(), MapError> {
        let Some(block) = block(key) else {
            return Ok(());
        };
        if let Some(route) = self.learn()?.of_block(block) {
            self.blocks.fill(block, route)?;
        }
        Ok(())
    }

    /// What the trie holds. The first call also mends blocks that a writer before us left behind.
    fn learn(&mut self) -> Result<&mut Known, MapError> {
        if self.known.is_none() {
            let mut known = Known::default();
            for entry in self.trie.iter() {
                let (key, route) = entry?;
                known.insert(&key, route);
            }
            let found: BTreeMap<Addr, Route> = self.blocks.iter().collect::<Result<_, _>>()?;
            for (block, route) in &found {
                if known.of_block(*block) != Some(*route) {
                    self.blocks.clear(*block)?;
                }
            }
            for block in known.whole.keys() {
                if let Some(route) = known.of_block(*block)
                    && found.get(block) != Some(&route)
                {
                    self.blocks.fill(*block, route)?;
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

    /// The route of a block that one /24 alone decides.
    fn of_block(&self, block: Addr) -> Option<Route> {
        let is_split = self.longer.contains_key(&block);
        self.whole.get(&block).copied().filter(|_| !is_split)
    }
}

/// The block that a prefix is or lies in; none for one that is larger.
fn block(key: &Key<Addr>) -> Option<Addr> {
    (key.prefix_len() >= Addr::BLOCK_BITS).then(|| key.data().block())
}

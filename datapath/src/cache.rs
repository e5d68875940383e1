//! Direct-mapped caches, which the programs read before the map behind them.
//!
//! A program may read an element while user space writes it, and writes of an array element are not atomic. So a
//! separate write sets the address after its value is written, and another one erases it before its value changes. A
//! reader that sees the whole address also sees its value; a half-written address matches no key.
//!
//! The cached copy is erased before the map entry changes, and written after it. If the writer is killed in
//! between, no cached copy contradicts the map.

use crate::batch;
use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError},
};
use ipip_abi::{Addr, CACHE_LEN, Cached};
use std::borrow::Borrow;

/// A direct-mapped cache.
pub(crate) struct Cache<V>
where
    Cached<V>: Pod,
{
    array: Array<MapData, Cached<V>>,
    /// The index of an address.
    index: fn(Addr) -> u32,
}

impl<V: Copy> Cache<V>
where
    Cached<V>: Pod,
{
    pub(crate) fn new(array: Array<MapData, Cached<V>>, index: fn(Addr) -> u32) -> Self {
        Self { array, index }
    }

    /// Caches the entry of `address`, unless the cache has another address at this index.
    pub(crate) fn fill(&mut self, address: Addr, value: V) -> Result<(), MapError> {
        let index = (self.index)(address);
        if self.array.get(&index, 0)?.address != Addr::ZERO {
            return Ok(());
        }
        self.write(index, Addr::ZERO, value)?;
        self.write(index, address, value)
    }

    /// Erases the entry of `address`, if it is cached. Programs then look it up in the map.
    pub(crate) fn clear(&mut self, address: Addr) -> Result<(), MapError> {
        let index = (self.index)(address);
        let found = self.array.get(&index, 0)?;
        if found.address != address {
            return Ok(());
        }
        self.write(index, Addr::ZERO, found.value)
    }

    /// Every cached entry, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<(Addr, V), MapError>> {
        (0..CACHE_LEN)
            .map(|index| self.array.get(&index, 0))
            .filter(|found| !matches!(found, Ok(found) if found.address == Addr::ZERO))
            .map(|found| found.map(|found| (found.address, found.value)))
    }

    fn write(&mut self, index: u32, address: Addr, value: V) -> Result<(), MapError> {
        self.array.set(index, Cached { address, value }, 0)
    }
}

/// A hash map by address with a direct-mapped cache in front of it. There may be one writer at a time.
pub struct CachedMap<V: Pod>
where
    Cached<V>: Pod,
{
    map: HashMap<MapData, Addr, V>,
    cache: Cache<V>,
}

impl<V: Pod> CachedMap<V>
where
    Cached<V>: Pod,
{
    pub(crate) fn new(map: HashMap<MapData, Addr, V>, cache: Array<MapData, Cached<V>>) -> Self {
        Self {
            map,
            cache: Cache::new(cache, Addr::cache_index),
        }
    }

    /// The entry of `address`.
    ///
    /// # Errors
    /// [`MapError::KeyNotFound`] if there is none, and the kernel's errors.
    pub fn get(&self, address: &Addr, flags: u64) -> Result<V, MapError> {
        self.map.get(address, flags)
    }

    /// Every entry, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Addr, V), MapError>> {
        self.map.iter()
    }

    /// Every entry, in no particular order, many by one system call.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> Result<Vec<(Addr, V)>, MapError> {
        batch::entries(&self.map, || self.map.iter())
    }

    /// Every address, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = Result<Addr, MapError>> {
        self.map.keys()
    }

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// The kernel's errors, for example that the map is full.
    pub fn insert(
        &mut self,
        address: impl Borrow<Addr>,
        value: impl Borrow<V>,
        flags: u64,
    ) -> Result<(), MapError> {
        let (address, value) = (*address.borrow(), *value.borrow());
        self.cache.clear(address)?;
        self.map.insert(address, value, flags)?;
        self.cache.fill(address, value)
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// The kernel's errors, including that there is no such entry.
    pub fn remove(&mut self, address: &Addr) -> Result<(), MapError> {
        self.cache.clear(*address)?;
        self.map.remove(address)
    }
}

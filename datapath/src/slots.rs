//! Tables of slots, which the programs read before the map behind them.
//!
//! A reader may look while a writer writes, and an element of an array is not written at once. So
//! an address is written alone, after the value that belongs to it, and erased alone, before it: who
//! sees an address sees its value, and who sees half an address sees nobody's.
//!
//! The slot goes before its map entry changes and comes after it, so that a writer who dies in between
//! leaves no slot that says what the map does not.

use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError},
};
use ipip_abi::{Addr, SLOTS, Slot};
use std::borrow::Borrow;

/// An array of slots.
pub struct Slots<V>
where
    Slot<V>: Pod,
{
    array: Array<MapData, Slot<V>>,
    /// Where an address has its place.
    place: fn(Addr) -> u32,
}

impl<V: Copy> Slots<V>
where
    Slot<V>: Pod,
{
    pub(crate) fn new(array: Array<MapData, Slot<V>>, place: fn(Addr) -> u32) -> Self {
        Self { array, place }
    }

    /// Has the programs find `value` here, unless the place is taken.
    pub(crate) fn fill(&mut self, address: Addr, value: V) -> Result<(), MapError> {
        let index = (self.place)(address);
        if self.array.get(&index, 0)?.address != Addr::ZERO {
            return Ok(());
        }
        self.write(index, Addr::ZERO, value)?;
        self.write(index, address, value)
    }

    /// Has the programs look for `address` in the map.
    pub(crate) fn clear(&mut self, address: Addr) -> Result<(), MapError> {
        let index = (self.place)(address);
        let there = self.array.get(&index, 0)?;
        match there.address == address {
            true => self.write(index, Addr::ZERO, there.value),
            false => Ok(()),
        }
    }

    /// Every entry that has a place, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<(Addr, V), MapError>> {
        (0..SLOTS)
            .map(|index| self.array.get(&index, 0))
            .filter(|slot| !matches!(slot, Ok(slot) if slot.address == Addr::ZERO))
            .map(|slot| slot.map(|slot| (slot.address, slot.value)))
    }

    fn write(&mut self, index: u32, address: Addr, value: V) -> Result<(), MapError> {
        self.array.set(index, Slot { address, value }, 0)
    }
}

/// A map by address, with slots in front of it.
pub struct Slotted<V: Pod>
where
    Slot<V>: Pod,
{
    map: HashMap<MapData, Addr, V>,
    slots: Slots<V>,
}

impl<V: Pod> Slotted<V>
where
    Slot<V>: Pod,
{
    pub(crate) fn new(map: HashMap<MapData, Addr, V>, slots: Array<MapData, Slot<V>>) -> Self {
        Self {
            map,
            slots: Slots::new(slots, Addr::slot),
        }
    }

    /// The entry of `address`.
    ///
    /// # Errors
    /// [`MapError::KeyNotFound`] where there is none, and what the kernel says.
    pub fn get(&self, address: &Addr, flags: u64) -> Result<V, MapError> {
        self.map.get(address, flags)
    }

    /// Every entry, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Addr, V), MapError>> {
        self.map.iter()
    }

    /// Every address, in no order.
    pub fn keys(&self) -> impl Iterator<Item = Result<Addr, MapError>> {
        self.map.keys()
    }

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// What the kernel says, first of all that the map is full.
    pub fn insert(
        &mut self,
        address: impl Borrow<Addr>,
        value: impl Borrow<V>,
        flags: u64,
    ) -> Result<(), MapError> {
        let (address, value) = (*address.borrow(), *value.borrow());
        self.slots.clear(address)?;
        self.map.insert(address, value, flags)?;
        self.slots.fill(address, value)
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// What the kernel says, also where there was none.
    pub fn remove(&mut self, address: &Addr) -> Result<(), MapError> {
        self.slots.clear(*address)?;
        self.map.remove(address)
    }
}

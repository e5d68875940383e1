//! The pods of this node: the map `PODS` of this version, which the programs read, and the shared map `POD_RECORDS`, which
//! every version reads and writes.
//!
//! A record is written before its entry and removed after it. So an entry without a record is one whose pod a plugin of
//! another version has deleted, which cannot write this version's `PODS`: [`Pods::reconcile`] removes it.

use crate::{
    CachedMap, Error, Pins, interface_name,
    maps::{absent_is_fine, failed, open_map},
};
use aya::maps::{HashMap, MapData, MapError};
use ipip_abi::{
    Addr, Pod,
    handover::{PodKey, PodRecord},
    maps,
};
use std::{borrow::Borrow, collections::BTreeMap};

/// Flag of bpf(2): update an entry only if it exists (`linux/bpf.h`).
const BPF_EXIST: u64 = 2;

/// Entries and records of the pods of this node.
pub struct Pods {
    /// None if this version has no datapath.
    entries: Option<CachedMap<Pod>>,
    records: HashMap<MapData, PodKey, PodRecord>,
}

impl Pods {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// The errors of [`open_map`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        let entries = open_map(pins, &maps::PODS)?;
        Ok(Self {
            entries: Some(CachedMap::new(entries, open_map(pins, &maps::POD_CACHE)?)),
            records: open_map(pins, &maps::POD_RECORDS)?,
        })
    }

    /// Opens what there is, to remove pods also while the datapath of another version is pinned.
    ///
    /// # Errors
    /// The errors of [`open_map`]; [`Error::NotPinned`] only if no version has a datapath.
    pub fn open_to_remove(pins: &Pins) -> Result<Self, Error> {
        match Self::open(pins) {
            Err(Error::NotPinned(_) | Error::OtherVersion { .. }) => Ok(Self {
                entries: None,
                records: open_map(pins, &maps::POD_RECORDS)?,
            }),
            opened => opened,
        }
    }

    /// The entry of `address`.
    ///
    /// # Errors
    /// [`MapError::KeyNotFound`] if there is none, and the kernel's errors.
    pub fn get(&self, address: &Addr, flags: u64) -> Result<Pod, MapError> {
        match &self.entries {
            Some(entries) => entries.get(address, flags),
            None => Err(MapError::KeyNotFound),
        }
    }

    /// Every entry, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Addr, Pod), MapError>> {
        self.entries.iter().flat_map(CachedMap::iter)
    }

    /// The address of every entry, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = Result<Addr, MapError>> {
        self.entries.iter().flat_map(CachedMap::keys)
    }

    /// Every pod that has an entry or a record. If both differ, the entry counts.
    ///
    /// # Errors
    /// The kernel's errors.
    pub fn all(&self) -> Result<BTreeMap<Addr, Pod>, MapError> {
        let mut pods = self.recorded()?;
        for entry in self.iter() {
            let (address, pod) = entry?;
            pods.insert(address, pod);
        }
        Ok(pods)
    }

    /// Adds or replaces a pod. Fields of other versions stay in the record of the same interface.
    ///
    /// # Errors
    /// The kernel's errors, for example that a map is full.
    pub fn insert(
        &mut self,
        address: impl Borrow<Addr>,
        pod: impl Borrow<Pod>,
        flags: u64,
    ) -> Result<(), MapError> {
        let (address, pod) = (*address.borrow(), *pod.borrow());
        self.write_record(address, &pod, flags)?;
        match &mut self.entries {
            Some(entries) => entries.insert(address, pod, flags),
            None => Ok(()),
        }
    }

    /// Removes a pod.
    ///
    /// # Errors
    /// [`MapError::KeyNotFound`] if it has no entry, and the kernel's errors. The record is removed in any case.
    pub fn remove(&mut self, address: &Addr) -> Result<(), MapError> {
        let removed = match &mut self.entries {
            Some(entries) => entries.remove(address),
            None => Ok(()),
        };
        self.remove_record(*address)?;
        removed
    }

    /// Removes only the record of a pod, as the plugin of another version does. It is no error if there is none.
    ///
    /// # Errors
    /// The kernel's errors.
    pub fn remove_record(&mut self, address: Addr) -> Result<(), MapError> {
        absent_is_fine(self.records.remove(&address.into()))
    }

    /// Makes entries and records agree: removes entries of pods that another version's plugin has deleted, and writes
    /// changed MACs, which a pod states to the programs, to the records. Returns the addresses of removed entries.
    ///
    /// # Errors
    /// The kernel's errors.
    pub fn reconcile(&mut self, pins: &Pins) -> Result<Vec<Addr>, Error> {
        let mut removed = Vec::new();
        if self
            .disagreements()
            .map_err(failed("read", &maps::PODS))?
            .is_empty()
        {
            return Ok(removed);
        }
        // While ADD runs, entry and record may disagree. The next call does the work.
        let Some(_lock) = pins.try_lock()? else {
            return Ok(removed);
        };
        for (address, pod, has_record) in
            self.disagreements().map_err(failed("read", &maps::PODS))?
        {
            if has_record {
                let written = absent_is_fine(self.write_record(address, &pod, BPF_EXIST));
                written.map_err(failed("write", &maps::POD_RECORDS))?;
            } else if interface_name(pod.ifindex).is_none() {
                absent_is_fine(self.remove(&address)).map_err(failed("write", &maps::PODS))?;
                removed.push(address);
            }
        }
        Ok(removed)
    }

    /// Makes the entries those of the records.
    pub(crate) fn fill_from_records(&mut self) -> Result<(), MapError> {
        let wanted = self.recorded()?;
        let Some(entries) = &mut self.entries else {
            return Ok(());
        };
        let present: BTreeMap<Addr, Pod> = entries.iter().collect::<Result<_, _>>()?;
        for address in present.keys().filter(|it| !wanted.contains_key(it)) {
            absent_is_fine(entries.remove(address))?;
        }
        for (address, pod) in wanted {
            if present.get(&address) != Some(&pod) {
                entries.insert(address, pod, 0)?;
            }
        }
        Ok(())
    }

    /// The pods of the records that this version can read.
    fn recorded(&self) -> Result<BTreeMap<Addr, Pod>, MapError> {
        let mut pods = BTreeMap::new();
        for record in self.records.iter() {
            let (key, record) = record?;
            if let (Some(address), Some(pod)) = (key.ipv4(), record.pod()) {
                pods.insert(address, pod);
            }
        }
        Ok(pods)
    }

    /// The entries that differ from their records, and whether there is a record.
    fn disagreements(&self) -> Result<Vec<(Addr, Pod, bool)>, MapError> {
        let recorded = self.recorded()?;
        let mut found = Vec::new();
        for entry in self.iter() {
            let (address, pod) = entry?;
            let record = recorded.get(&address);
            if record != Some(&pod) {
                found.push((address, pod, record.is_some()));
            }
        }
        Ok(found)
    }

    fn write_record(&mut self, address: Addr, pod: &Pod, flags: u64) -> Result<(), MapError> {
        let key = PodKey::from(address);
        let earlier = match self.records.get(&key, 0) {
            // The interface may be another pod's.
            Ok(record) if record.pod().is_some_and(|it| it.ifindex == pod.ifindex) => record,
            Ok(_) | Err(MapError::KeyNotFound) => PodRecord::EMPTY,
            Err(error) => return Err(error),
        };
        self.records.insert(key, earlier.with(pod), flags)
    }
}

//! The entry of a pod in the map `PODS`: once it exists, packets are delivered to the pod.

use crate::error::Error;
use aya::{maps::MapError, sys::SyscallError};
use ipip_abi::{Addr, Pod, maps::MAX_PODS};
use ipip_datapath::{Error as DatapathError, Pins, Pods, absent_is_fine};
use ipip_netlink::Netlink;
use std::{collections::BTreeMap, net::Ipv4Addr};

/// The entries of all pods of this node.
pub struct PodEntries(Pods);

impl PodEntries {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self(Pods::open(pins)?))
    }

    /// Opens what there is, also if the datapath is of another version. None if there is no datapath at all.
    pub fn open_to_remove(pins: &Pins) -> Result<Option<Self>, Error> {
        match Pods::open_to_remove(pins) {
            Err(DatapathError::NotPinned(_) | DatapathError::OtherVersion { .. }) => Ok(None),
            pods => Ok(Some(Self(pods?))),
        }
    }

    /// The entry of `address`.
    pub fn get(&self, address: Ipv4Addr) -> Result<Option<Pod>, Error> {
        match self.0.get(&address.into(), 0) {
            Ok(pod) => Ok(Some(pod)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed("read", address)(source)),
        }
    }

    /// Writes the entry of `address`.
    pub fn insert(&mut self, address: Ipv4Addr, pod: Pod) -> Result<(), Error> {
        match self.0.insert(Addr::from(address), pod, 0) {
            Err(MapError::SyscallError(error)) if is_full(&error) => Err(Error::Full(MAX_PODS)),
            inserted => inserted.map_err(failed("write", address)),
        }
    }

    /// Removes the entry of `address` if it points to the interface `ifindex`. Returns whether it did.
    pub fn remove(&mut self, address: Ipv4Addr, ifindex: u32) -> Result<bool, Error> {
        if self
            .get(address)?
            .is_none_or(|entry| entry.ifindex != ifindex)
        {
            // Another version's plugin may have added the pod.
            return Ok(false);
        }
        absent_is_fine(self.0.remove(&address.into())).map_err(failed("remove", address))?;
        Ok(true)
    }

    /// Whether there is room for another entry.
    pub fn has_room(&self) -> Result<bool, Error> {
        let used = self.0.keys().try_fold(0, |used, key| key.map(|_| used + 1));
        Ok(used.map_err(Error::PodEntries)? < MAX_PODS)
    }

    /// Removes all entries that point to the interface `ifindex`.
    pub fn remove_of_interface(&mut self, ifindex: u32) -> Result<(), Error> {
        self.remove_if(|pod| pod.ifindex == ifindex)
    }

    /// Removes the entries whose interface no longer exists.
    pub fn remove_orphans(&mut self, netlink: &mut Netlink) -> Result<(), Error> {
        // Entries are read before links. ADD creates the link first and the entry afterwards, so the
        // link of every entry that was read here is in the list, if it still exists.
        let seen = self.list()?;
        let links = netlink.links()?;
        let alive = |pod: &Pod| links.iter().any(|link| link.index == pod.ifindex);
        let orphans: Vec<&Pod> = seen.values().filter(|pod| !alive(pod)).collect();
        self.remove_if(|pod| orphans.contains(&pod))
    }

    /// Removes all entries that `is_chosen` selects. An error does not stop the removal.
    fn remove_if(&mut self, is_chosen: impl Fn(&Pod) -> bool) -> Result<(), Error> {
        let mut errors = Vec::new();
        for (address, pod) in self.list()? {
            if is_chosen(&pod) {
                let removed = absent_is_fine(self.0.remove(&address));
                errors.extend(removed.map_err(failed("remove", address.into())).err());
            }
        }
        Error::all(errors)
    }

    /// The pods of every version.
    fn list(&self) -> Result<BTreeMap<Addr, Pod>, Error> {
        self.0.all().map_err(Error::PodEntries)
    }
}

fn is_full(error: &SyscallError) -> bool {
    error.io_error.raw_os_error() == Some(nix::libc::E2BIG)
}

fn failed(action: &'static str, address: Ipv4Addr) -> impl FnOnce(MapError) -> Error {
    move |source| Error::PodEntry {
        action,
        address,
        source,
    }
}

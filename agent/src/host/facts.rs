//! What is true of this host now, as far as the desired state depends on it.

use ipip_abi::Mac;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// What is true of this host now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Every IPv4 address of this host, but for what we gave to `ipip0`.
    pub local: BTreeSet<Ipv4Addr>,
    /// Every next hop of this host's routes.
    pub gateways: BTreeSet<Ipv4Addr>,
    /// The interfaces that carry tunnel packets, by index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// Uplinks that the configuration names and this host does not have.
    pub missing_uplinks: BTreeSet<String>,
    /// How to send to each underlay address that a route leads to.
    pub hops: BTreeMap<Ipv4Addr, Hop>,
}

/// An interface that carries tunnel packets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its MAC; `None` where it has no Ethernet header.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Bytes of the largest packet that it takes to be segmented, or merges.
    pub gso_max: u32,
}

/// The first step to an underlay address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hop {
    /// Index of the uplink.
    pub uplink: u32,
    /// The gateway, or the underlay address itself where it is on the link.
    pub next_hop: Ipv4Addr,
    /// MAC of the next hop, if the kernel would send to it now.
    pub mac: Option<Mac>,
}

/// The host's tunnel interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ipip0 {
    /// Its index.
    pub index: u32,
    /// Its MAC.
    pub mac: Mac,
}

impl Facts {
    /// MTU of the uplink that takes the smallest packets; that of Ethernet if there is no uplink.
    pub fn least_mtu(&self) -> u16 {
        self.mtus().min().unwrap_or(ETHERNET_MTU)
    }

    /// MTU of the uplink that takes the largest packets; that of Ethernet if there is no uplink.
    pub fn greatest_mtu(&self) -> u16 {
        self.mtus().max().unwrap_or(ETHERNET_MTU)
    }

    /// Bytes of the largest packet that every uplink takes to be segmented; none where that is no more
    /// than each kernel takes. A larger one would be segmented before it leaves.
    pub fn large_gso(&self) -> Option<u32> {
        let least = self.uplinks.values().map(|uplink| uplink.gso_max).min();
        least.filter(|size| *size > COMMON_GSO_MAX)
    }

    fn mtus(&self) -> impl Iterator<Item = u16> {
        self.uplinks.values().map(|uplink| uplink.mtu)
    }
}

const ETHERNET_MTU: u16 = 1500;
/// `GSO_LEGACY_MAX_SIZE`, what interfaces are born with.
pub const COMMON_GSO_MAX: u32 = 65_536;

//! The state of this host that the desired state depends on.

use ipip_abi::Mac;
use ipnetwork::Ipv4Network;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

/// The host as it was observed last.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Every IPv4 address of this host except those that the agent gave to `ipip0`.
    pub local: BTreeSet<Ipv4Addr>,
    /// The next hops that lead through this host's own networks. Next hops through the devices of another pod
    /// network are not among them: they are addresses of pods or nodes, and no network of this host.
    pub gateways: BTreeSet<Ipv4Addr>,
    /// Those of `local` that are on devices of another pod network.
    pub of_other_networks: BTreeSet<Ipv4Addr>,
    /// Addresses and networks beside this host that stay with its own network.
    pub reserved: BTreeMap<Ipv4Network, LocalUse>,
    /// The networks of the uplinks' addresses, each with the index of its uplink.
    pub on_link: BTreeSet<(u32, Ipv4Network)>,
    /// Addresses of remote nodes for which another machine of the local network answers, with its MAC.
    pub lan_hosts: BTreeMap<Ipv4Addr, Mac>,
    /// The interfaces that carry tunnel packets, by index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// Uplinks that the configuration names and this host does not have.
    pub missing_uplinks: BTreeSet<String>,
    /// The next hop of each underlay address that has a route through an uplink.
    pub hops: BTreeMap<Ipv4Addr, Hop>,
}

/// The reason why an address stays with this host's own network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LocalUse {
    /// It is on an interface.
    Host,
    /// It is the next hop of a route.
    Gateway,
    /// It is a resolver.
    Resolver,
    /// It is the API server that this node uses.
    ApiServer,
    /// A setting says so.
    Setting,
}

impl fmt::Display for LocalUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "an address of this host",
            Self::Gateway => "a gateway of this host",
            Self::Resolver => "a resolver of this host (resolverFiles)",
            Self::ApiServer => "the API server of this host",
            Self::Setting => "a local address (localAddresses)",
        })
    }
}

/// An interface that carries tunnel packets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its MAC; `None` if its frames have no Ethernet header.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Bytes of the largest GSO packet that it accepts; its GRO merges up to this size too.
    pub gso_max: u32,
    /// Its addresses, at which tunnel packets may arrive, with the lengths of their prefixes.
    pub addresses: BTreeSet<Ipv4Network>,
}

/// The first hop towards an underlay address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hop {
    /// Index of the uplink.
    pub uplink: u32,
    /// The gateway, or the underlay address itself if it is on the link.
    pub next_hop: Ipv4Addr,
    /// MAC of the next hop; `None` if the kernel's neighbour entry is not usable now.
    pub mac: Option<Mac>,
    /// The source address that the kernel would select for a packet on this route.
    pub source: Option<Ipv4Addr>,
}

/// The host's tunnel interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ipip0 {
    /// Its index.
    pub index: u32,
    /// Its MAC.
    pub mac: Mac,
}

/// An uplink that the configuration names and this host does not have.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "uplinks: this host has no interface called {0:?}; remedy: correct `uplinks`, or leave it out to let the routes decide"
)]
pub struct NoUplink(pub String);

impl Uplink {
    /// Whether it has this address.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|it| it.ip() == address)
    }

    /// Whether it has this address, and `next_hop` is in the address's network.
    pub fn has_in_network_of(&self, address: Ipv4Addr, next_hop: Ipv4Addr) -> bool {
        let mut addresses = self.addresses.iter();
        addresses.any(|it| it.ip() == address && it.contains(next_hop))
    }
}

impl Facts {
    /// The smallest MTU of the uplinks in bytes; 1500 if there is no uplink.
    pub fn least_mtu(&self) -> u16 {
        self.mtus().min().unwrap_or(ETHERNET_MTU)
    }

    /// The largest MTU of the uplinks in bytes; 1500 if there is no uplink.
    pub fn greatest_mtu(&self) -> u16 {
        self.mtus().max().unwrap_or(ETHERNET_MTU)
    }

    /// Bytes of the largest GSO packet that every uplink accepts, if that is more than [`COMMON_GSO_MAX`]. A
    /// larger packet would be segmented in software before it leaves.
    pub fn large_gso(&self) -> Option<u32> {
        let least = self.uplinks.values().map(|uplink| uplink.gso_max).min();
        least.filter(|size| *size > COMMON_GSO_MAX)
    }

    /// An error for each uplink that is configured and missing.
    pub fn no_uplinks(&self) -> impl Iterator<Item = NoUplink> {
        self.missing_uplinks.iter().cloned().map(NoUplink)
    }

    fn mtus(&self) -> impl Iterator<Item = u16> {
        self.uplinks.values().map(|uplink| uplink.mtu)
    }
}

const ETHERNET_MTU: u16 = 1500;
/// `GSO_LEGACY_MAX_SIZE`: the GSO limit of a new interface on every kernel, in bytes.
pub const COMMON_GSO_MAX: u32 = 65_536;

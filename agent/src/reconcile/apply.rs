//! The one writer of maps and kernel routes.

use crate::reconcile::{
    peer_ids,
    plan::{Actual, Step},
};
use aya::{
    maps::{MapError, PerCpuValues, lpm_trie::Key},
    util::nr_cpus,
};
use ipip_abi::{Addr, Peer, PeerInfo, PeerTraffic};
use ipip_datapath::{Error as DatapathError, Maps, Pins, absent_is_fine};
use ipip_netlink::Netlink;
use ipnetwork::Ipv4Network;
use std::{collections::BTreeMap, net::Ipv4Addr};

/// A read or write that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pins cannot be opened.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The kernel refused to list or change routes.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// A map.
    #[error("cannot {action}: {source}")]
    Map {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: MapError,
    },
}

/// Writes what a plan says, and knows what is there.
pub struct Writer {
    maps: Maps,
    netlink: Netlink,
    actual: Actual,
}

impl Writer {
    /// Opens the pinned maps and reads what an agent before us has left.
    pub fn open(pins: &Pins, netlink: Netlink) -> Result<Self, Error> {
        let mut writer = Self {
            maps: Maps::open(pins)?,
            netlink,
            actual: Actual::default(),
        };
        writer.read_maps()?;
        Ok(writer)
    }

    /// What maps and routes hold.
    pub fn actual(&self) -> &Actual {
        &self.actual
    }

    /// The netlink port through which routes are changed.
    pub fn port(&self) -> Result<u32, Error> {
        Ok(self.netlink.port()?)
    }

    /// The maps, to be read.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The index of each peer that the maps know.
    pub fn ids(&self) -> peer_ids::Ids {
        peer_ids::adopt(self.actual.peer_info.iter().map(|(id, info)| (*id, info)))
    }

    /// Reads the kernel's routes anew: others change them too.
    pub fn read_routes(&mut self) -> Result<(), Error> {
        self.actual.kernel_routes = self.netlink.routes()?;
        Ok(())
    }

    /// Reads the maps anew. Nobody else should write them, but if someone did, this mends it.
    pub fn read_maps(&mut self) -> Result<(), Error> {
        let maps = &self.maps;
        self.actual.config = maps.config.get(&0, 0).map_err(at("read CONFIG"))?;
        self.actual.peers = entries(maps.peers.iter(), |peer| *peer != Peer::default())
            .map_err(at("read PEERS"))?;
        self.actual.peer_info =
            entries(maps.peer_info.iter(), |info: &PeerInfo| info.name_len != 0)
                .map_err(at("read PEER_INFO"))?;
        self.actual.node_addrs = maps
            .node_addrs
            .iter()
            .collect::<Result<_, _>>()
            .map_err(at("read NODE_ADDRS"))?;
        self.actual.routes = maps
            .routes
            .iter()
            .map(|entry| entry.map(|(key, route)| (network(&key), route)))
            .collect::<Result<_, _>>()
            .map_err(at("read ROUTES"))?;
        Ok(())
    }

    /// Does one step.
    pub fn apply(&mut self, step: &Step) -> Result<(), Error> {
        self.write(step)?;
        self.actual.note(step);
        Ok(())
    }

    fn write(&mut self, step: &Step) -> Result<(), Error> {
        let maps = &mut self.maps;
        let written = match step {
            Step::SetConfig(config) => maps.config.set(0, config, 0),
            Step::SetPeer(id, peer) => maps.peers.set((*id).into(), peer, 0),
            Step::SetPeerInfo(id, info) => {
                let index = u32::from(*id);
                // The next peer with this index must not inherit what this one sent.
                let forgotten = match info.name_len {
                    0 => forget_traffic(maps, index),
                    _ => Ok(()),
                };
                forgotten.and_then(|()| maps.peer_info.set(index, **info, 0))
            }
            Step::SetNodeAddr(address, node) => maps.node_addrs.insert(address, node, 0),
            Step::DeleteNodeAddr(address) => absent_is_fine(maps.node_addrs.remove(address)),
            Step::SetRoute(network, route) => maps.routes.insert(&key(*network), route, 0),
            Step::DeleteRoute(network) => absent_is_fine(maps.routes.remove(&key(*network))),
            Step::SetKernelRoute(route) => return Ok(self.netlink.replace_route(route)?),
            Step::DeleteKernelRoute(route) => {
                return match self.netlink.delete_route(route) {
                    // The kernel removes routes by itself, with an interface or an address.
                    Err(error) if !error.is_not_found() => Err(error.into()),
                    _ => Ok(()),
                };
            }
        };
        written.map_err(at(&format!("write {step:?}")))
    }
}

fn forget_traffic(maps: &mut Maps, index: u32) -> Result<(), MapError> {
    let zero = vec![PeerTraffic::default(); nr_cpus().map_err(|(_, source)| source)?];
    let values = PerCpuValues::try_from(zero)?;
    maps.peer_traffic.set(index, values, 0)
}

/// The entries of an array that `counts` picks, by index.
fn entries<T>(
    all: impl Iterator<Item = Result<T, MapError>>,
    counts: impl Fn(&T) -> bool,
) -> Result<BTreeMap<u16, T>, MapError> {
    let mut entries = BTreeMap::new();
    for (index, entry) in (0..=u16::MAX).zip(all) {
        let entry = entry?;
        if counts(&entry) {
            entries.insert(index, entry);
        }
    }
    Ok(entries)
}

fn key(network: Ipv4Network) -> Key<Addr> {
    Key::new(network.prefix().into(), network.network().into())
}

fn network(key: &Key<Addr>) -> Ipv4Network {
    let prefix_len = key.prefix_len().min(32) as u8;
    Ipv4Network::new(Ipv4Addr::from(key.data()), prefix_len)
        .unwrap_or_else(|_| Ipv4Addr::from(key.data()).into())
}

fn at(action: &str) -> impl FnOnce(MapError) -> Error {
    let action = action.to_owned();
    move |source| Error::Map { action, source }
}

//! The pinned maps, opened with their types.

use crate::{Error, Pins, Routes, Slotted};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use ipip_abi::{
    Config, Counter, DropReason, Flow, FlowKey, NodeAddr, Peer, PeerInfo, PeerTraffic, Pod, Tally,
    maps::{self, MapSpec},
};
use std::io;

/// The maps that user space reads and writes.
pub struct Maps {
    /// The node's own settings, at index 0.
    pub config: Array<MapData, Config>,
    /// Local pod address -> veth, MACs.
    pub pods: Slotted<Pod>,
    /// Prefix -> peer.
    pub routes: Routes,
    /// Peer -> path.
    pub peers: Array<MapData, Peer>,
    /// Peer -> name and state.
    pub peer_info: Array<MapData, PeerInfo>,
    /// Address of a node -> peer, roles.
    pub node_addrs: Slotted<NodeAddr>,
    /// Flows that came out of the host stack.
    pub flows: HashMap<MapData, FlowKey, Flow>,
    /// What happened to packets, by [`Counter`].
    pub counters: PerCpuArray<MapData, Tally>,
    /// What was dropped, by [`DropReason`].
    pub drops: PerCpuArray<MapData, Tally>,
    /// What went to and came from each peer.
    pub peer_traffic: PerCpuArray<MapData, PeerTraffic>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// [`Error::NotPinned`] where no datapath is; [`Error::Layout`] where a map is not as the ABI
    /// says.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            config: open(pins, &maps::CONFIG)?,
            pods: pods(pins)?,
            routes: Routes::open(pins)?,
            peers: open(pins, &maps::PEERS)?,
            peer_info: open(pins, &maps::PEER_INFO)?,
            node_addrs: Slotted::new(
                open(pins, &maps::NODE_ADDRS)?,
                open(pins, &maps::NODE_SLOTS)?,
            ),
            flows: open(pins, &maps::FLOWS)?,
            counters: open(pins, &maps::COUNTERS)?,
            drops: open(pins, &maps::DROPS)?,
            peer_traffic: open(pins, &maps::PEER_TRAFFIC)?,
        })
    }

    /// A counter, summed over the CPUs.
    pub fn tally_counter(&self, counter: Counter) -> Result<Tally, Error> {
        sum(&self.counters, counter as u32, &maps::COUNTERS)
    }

    /// A drop reason's count, summed over the CPUs.
    pub fn tally_drop(&self, reason: DropReason) -> Result<Tally, Error> {
        sum(&self.drops, reason as u32, &maps::DROPS)
    }

    /// A peer's traffic, summed over the CPUs.
    pub fn traffic(&self, peer: u16) -> Result<PeerTraffic, Error> {
        let values = self
            .peer_traffic
            .get(&u32::from(peer), 0)
            .map_err(failed("read", &maps::PEER_TRAFFIC))?;
        Ok(values
            .iter()
            .fold(PeerTraffic::default(), |all, cpu| PeerTraffic {
                tx_packets: all.tx_packets + cpu.tx_packets,
                tx_bytes: all.tx_bytes + cpu.tx_bytes,
                rx_packets: all.rx_packets + cpu.rx_packets,
                rx_bytes: all.rx_bytes + cpu.rx_bytes,
            }))
    }
}

/// Opens `PODS` alone, for the plugin that needs no other map.
///
/// # Errors
/// As [`Maps::open`].
pub fn pods(pins: &Pins) -> Result<Slotted<Pod>, Error> {
    let map = open(pins, &maps::PODS)?;
    Ok(Slotted::new(map, open(pins, &maps::POD_SLOTS)?))
}

/// Reads the node's settings.
///
/// # Errors
/// As [`Maps::open`].
pub fn config(pins: &Pins) -> Result<Config, Error> {
    let map: Array<MapData, Config> = open(pins, &maps::CONFIG)?;
    map.get(&0, 0).map_err(failed("read", &maps::CONFIG))
}

fn sum(map: &PerCpuArray<MapData, Tally>, slot: u32, spec: &MapSpec) -> Result<Tally, Error> {
    let values = map.get(&slot, 0).map_err(failed("read", spec))?;
    Ok(values.iter().fold(Tally::default(), |all, cpu| Tally {
        packets: all.packets + cpu.packets,
        bytes: all.bytes + cpu.bytes,
    }))
}

/// Opens one pinned map with its type.
///
/// # Errors
/// As [`Maps::open`].
pub fn open<M: TryFrom<Map, Error = MapError>>(pins: &Pins, spec: &MapSpec) -> Result<M, Error> {
    let path = pins.maps().join(spec.name);
    if !path.exists() {
        return Err(Error::NotPinned(pins.version_dir()));
    }
    check_layout(pins, spec)?;
    MapData::from_pin(path)
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(failed("open", spec))
}

/// Checks that a pinned map has the sizes of the ABI; one that is absent is fine.
///
/// # Errors
/// [`Error::Layout`] if it has others.
pub(crate) fn check_layout(pins: &Pins, spec: &MapSpec) -> Result<(), Error> {
    let path = pins.maps().join(spec.name);
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&path).map_err(failed("open", spec))?;
    let sizes = |key, value, entries| format!("key {key}, value {value}, {entries} entries");
    let found = sizes(info.key_size(), info.value_size(), info.max_entries());
    let wanted = sizes(spec.key_size, spec.value_size, spec.max_entries);
    if found == wanted {
        return Ok(());
    }
    Err(Error::Layout {
        map: spec.name,
        found,
        wanted,
    })
}

/// What a removal from a map came to, if it is fine that the entry was not there any more.
///
/// # Errors
/// Every other reason of the kernel's.
pub fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

pub(crate) fn failed(action: &'static str, spec: &MapSpec) -> impl FnOnce(MapError) -> Error {
    let map = spec.name;
    move |source| Error::Map {
        action,
        map,
        source,
    }
}

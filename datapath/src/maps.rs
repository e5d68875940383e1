//! The pinned maps, opened with their types.

use crate::{CachedMap, Error, Pins, Pods, Routes, Sent};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use ipip_abi::{
    Config, Counter, DropReason, Flow, FlowKey, MtuHint, NodeAddr, Peer, PeerInfo, PeerTraffic,
    Tally,
    maps::{self, MapSpec},
    probe::{ProbeSecret, ProbeState},
};
use std::io;

/// The maps that user space reads and writes.
pub struct Maps {
    /// The node's own settings, at index 0.
    pub config: Array<MapData, Config>,
    /// Local pod address -> veth, MACs.
    pub pods: Pods,
    /// Prefix -> peer.
    pub routes: Routes,
    /// Peer -> path.
    pub peers: Array<MapData, Peer>,
    /// Candidate of a peer -> path that could be used.
    pub candidates: Array<MapData, Peer>,
    /// Peer -> what authenticates its probes.
    pub probe_secrets: Array<MapData, ProbeSecret>,
    /// Candidate of a peer -> the last probes and answers.
    pub probe_states: Array<MapData, ProbeState>,
    /// Peer -> the last ICMP error about the MTU of its path.
    pub mtu_hints: Array<MapData, MtuHint>,
    /// Peer -> name and state.
    pub peer_info: Array<MapData, PeerInfo>,
    /// Address of a node -> peer, roles.
    pub node_addrs: CachedMap<NodeAddr>,
    /// How long the MACs in `peers` may be used, as [`next_hops_until`](crate::next_hops_until) returns it.
    pub next_hops_until: Array<MapData, u32>,
    /// Flows that came out of the host stack.
    pub flows: HashMap<MapData, FlowKey, Flow>,
    /// The open TCP connections among them.
    pub connections: HashMap<MapData, FlowKey, Flow>,
    /// Packets and bytes by [`Counter`].
    pub counters: PerCpuArray<MapData, Tally>,
    /// Packets and bytes by [`DropReason`].
    pub drops: PerCpuArray<MapData, Tally>,
    /// The peers to which packets were sent.
    pub sent: Sent,
    /// Packets and bytes by peer.
    pub peer_traffic: PerCpuArray<MapData, PeerTraffic>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// [`Error::NotPinned`] if there is no datapath; [`Error::Layout`] if a map has other sizes than the ABI.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            config: open_map(pins, &maps::CONFIG)?,
            pods: Pods::open(pins)?,
            routes: Routes::open(pins)?,
            peers: open_map(pins, &maps::PEERS)?,
            candidates: open_map(pins, &maps::CANDIDATES)?,
            probe_secrets: open_map(pins, &maps::PROBE_SECRETS)?,
            probe_states: open_map(pins, &maps::PROBE_STATES)?,
            mtu_hints: open_map(pins, &maps::MTU_HINTS)?,
            peer_info: open_map(pins, &maps::PEER_INFO)?,
            node_addrs: CachedMap::new(
                open_map(pins, &maps::NODE_ADDRS)?,
                open_map(pins, &maps::NODE_CACHE)?,
            ),
            next_hops_until: open_map(pins, &maps::NEXT_HOPS_UNTIL)?,
            flows: open_map(pins, &maps::FLOWS)?,
            connections: open_map(pins, &maps::CONNECTIONS)?,
            counters: open_map(pins, &maps::COUNTERS)?,
            drops: open_map(pins, &maps::DROPS)?,
            sent: Sent::open(pins)?,
            peer_traffic: open_map(pins, &maps::PEER_TRAFFIC)?,
        })
    }

    /// A counter, summed over the CPUs.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel does not return the entry.
    pub fn tally_counter(&self, counter: Counter) -> Result<Tally, Error> {
        sum(&self.counters, counter as u32, &maps::COUNTERS)
    }

    /// A drop reason's count, summed over the CPUs.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel does not return the entry.
    pub fn tally_drop(&self, reason: DropReason) -> Result<Tally, Error> {
        sum(&self.drops, reason as u32, &maps::DROPS)
    }

    /// A peer's traffic, summed over the CPUs. `peer` is its index in `PEERS`.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel does not return the entry.
    pub fn traffic(&self, peer: u16) -> Result<PeerTraffic, Error> {
        let values = self
            .peer_traffic
            .get(&u32::from(peer), 0)
            .map_err(failed("read", &maps::PEER_TRAFFIC))?;
        Ok(sum_of_cpus(&values))
    }
}

pub(crate) fn sum_of_cpus(values: &[PeerTraffic]) -> PeerTraffic {
    let all = values.iter().copied();
    all.fold(PeerTraffic::default(), PeerTraffic::plus)
}

/// Reads the node's settings.
///
/// # Errors
/// The errors of [`open_map`], and [`Error::Map`] if the kernel does not return the entry.
pub fn read_config(pins: &Pins) -> Result<Config, Error> {
    let map: Array<MapData, Config> = open_map(pins, &maps::CONFIG)?;
    map.get(&0, 0).map_err(failed("read", &maps::CONFIG))
}

fn sum(map: &PerCpuArray<MapData, Tally>, code: u32, spec: &MapSpec) -> Result<Tally, Error> {
    let values = map.get(&code, 0).map_err(failed("read", spec))?;
    Ok(values.iter().fold(Tally::default(), |all, cpu| Tally {
        packets: all.packets + cpu.packets,
        bytes: all.bytes + cpu.bytes,
    }))
}

/// Opens one pinned map with its type.
///
/// # Errors
/// [`Error::NotPinned`] if there is no such map, or [`Error::OtherVersion`] if another version has the datapath;
/// [`Error::Layout`] if it has other sizes than the ABI; [`Error::Map`] if the kernel does not open it, or if it is of
/// another kind than `M`.
pub fn open_map<M: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    spec: &MapSpec,
) -> Result<M, Error> {
    let path = pins.map(spec);
    if !path.exists() {
        return Err(pins.absent());
    }
    check_layout(pins, spec)?;
    MapData::from_pin(path)
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(failed("open", spec))
}

/// Checks that a pinned map has the sizes of the ABI; the number of entries of a shared map may be another one. It is no
/// error if the map is absent.
///
/// # Errors
/// [`Error::Layout`] if it has other sizes.
pub(crate) fn check_layout(pins: &Pins, spec: &MapSpec) -> Result<(), Error> {
    let path = pins.map(spec);
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&path).map_err(failed("open", spec))?;
    let sizes = |key, value, entries| format!("key {key}, value {value}, {entries} entries");
    let found = sizes(info.key_size(), info.value_size(), info.max_entries());
    let entries = if spec.is_shared() && spec.name != maps::FLOW_PAIRS.name {
        info.max_entries()
    } else {
        spec.max_entries
    };
    let wanted = sizes(spec.key_size, spec.value_size, entries);
    if found == wanted {
        return Ok(());
    }
    Err(Error::Layout {
        map: spec.name,
        found,
        wanted,
    })
}

/// Turns the error that an entry to be removed is absent into success.
///
/// # Errors
/// All other errors of the kernel.
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

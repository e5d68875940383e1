//! What lies in the maps, as plain data in the order of the keys.

use anyhow::{Context, Result};
use ipip_abi::{
    Addr, Config, Counter, DropReason, Flow, FlowKey, NodeAddr, Peer, PeerInfo, PeerTraffic, Pod,
    Route, RouteKey, Tally,
    maps::{self, MapSpec},
};
use ipip_datapath::Maps;
use std::{collections::BTreeMap, error::Error};

/// The node's own settings.
pub fn config(maps: &Maps) -> Result<Config> {
    maps.config
        .get(&0, 0)
        .with_context(|| reading(&maps::CONFIG))
}

/// Pods by address.
pub fn pods(maps: &Maps) -> Result<Vec<(Addr, Pod)>> {
    sorted(maps.pods.iter(), &maps::PODS, |address| *address)
}

/// Routes by prefix.
pub fn routes(maps: &Maps) -> Result<Vec<(RouteKey, Route)>> {
    let entries = maps.routes.iter().map(|entry| {
        entry.map(|(key, route)| (RouteKey::new(key.data(), key.prefix_len()), route))
    });
    sorted(entries, &maps::ROUTES, |key| (key.prefix, key.prefix_len))
}

/// Cached blocks, as prefixes.
pub fn route_blocks(maps: &Maps) -> Result<Vec<(RouteKey, Route)>> {
    let entries = maps
        .routes
        .cached_blocks()
        .map(|entry| entry.map(|(block, route)| (RouteKey::new(block, Addr::BLOCK_BITS), route)));
    sorted(entries, &maps::ROUTE_CACHE, |key| key.prefix)
}

/// Addresses of nodes, by address.
pub fn node_addrs(maps: &Maps) -> Result<Vec<(Addr, NodeAddr)>> {
    sorted(maps.node_addrs.iter(), &maps::NODE_ADDRS, |address| {
        *address
    })
}

/// Flows by key.
pub fn flows(maps: &Maps) -> Result<Vec<(FlowKey, Flow)>> {
    sorted(maps.flows.iter(), &maps::FLOWS, |key| {
        (key.low, key.high, key.low_port, key.high_port, key.protocol)
    })
}

/// Names and states of the peers that have a name.
pub fn peer_info(maps: &Maps) -> Result<Vec<(u16, PeerInfo)>> {
    used(&maps::PEER_INFO, |peer| {
        let info = maps.peer_info.get(&u32::from(peer), 0);
        let info = info.with_context(|| reading(&maps::PEER_INFO))?;
        Ok((info.name_len > 0).then_some(info))
    })
}

/// Paths of the peers that have one.
pub fn peers(maps: &Maps) -> Result<Vec<(u16, Peer)>> {
    used(&maps::PEERS, |peer| {
        let peer = maps.peers.get(&u32::from(peer), 0);
        let peer = peer.with_context(|| reading(&maps::PEERS))?;
        Ok((peer != Peer::default()).then_some(peer))
    })
}

/// Traffic of the peers that have some.
pub fn peer_traffic(maps: &Maps) -> Result<Vec<(u16, PeerTraffic)>> {
    used(&maps::PEER_TRAFFIC, |peer| {
        let traffic = maps.traffic(peer)?;
        Ok((traffic != PeerTraffic::default()).then_some(traffic))
    })
}

/// Every counter.
pub fn counters(maps: &Maps) -> Result<Vec<(Counter, Tally)>> {
    let all = Counter::ALL.iter();
    all.map(|&counter| Ok((counter, maps.tally_counter(counter)?)))
        .collect()
}

/// Every drop reason.
pub fn drops(maps: &Maps) -> Result<Vec<(DropReason, Tally)>> {
    let all = DropReason::ALL.iter();
    all.map(|&reason| Ok((reason, maps.tally_drop(reason)?)))
        .collect()
}

/// Entries in the order of `rank`. While entries come and go the kernel may start over, so each
/// key counts once and no more entries are read than the map can hold.
fn sorted<K, V, O: Ord, E: Error + Send + Sync + 'static>(
    entries: impl Iterator<Item = Result<(K, V), E>>,
    spec: &MapSpec,
    rank: impl Fn(&K) -> O,
) -> Result<Vec<(K, V)>> {
    let mut sorted = BTreeMap::new();
    for entry in entries.take(spec.max_entries as usize) {
        let (key, value) = entry.with_context(|| reading(spec))?;
        sorted.insert(rank(&key), (key, value));
    }
    Ok(sorted.into_values().collect())
}

/// The used elements of an array that is indexed by peer.
fn used<V>(spec: &MapSpec, read: impl Fn(u16) -> Result<Option<V>>) -> Result<Vec<(u16, V)>> {
    let mut used = Vec::new();
    for peer in 0..u16::try_from(spec.max_entries)? {
        if let Some(value) = read(peer)? {
            used.push((peer, value));
        }
    }
    Ok(used)
}

fn reading(spec: &MapSpec) -> String {
    format!("reading map {}", spec.name)
}

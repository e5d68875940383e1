//! The entries of the maps as `ipipctl dump` shows them: each number with its name.
//!
//! To show another map, add a type that implements [`MapRow`], and list it in `dump.rs`.

mod config;
mod flows;
mod node_addrs;
mod peers;
mod pods;
mod probes;
mod routes;
mod tallies;

pub use config::ConfigRow;
pub use flows::{ConnectionRow, FlowRow};
pub use node_addrs::NodeAddrRow;
pub use peers::{MtuHintRow, PeerInfoRow, PeerRow, PeerTrafficRow};
pub use pods::PodRow;
pub use probes::{CandidateRow, ProbeSecretRow, ProbeStateRow};
pub use routes::{RouteCacheRow, RouteRow, prefix};
pub use tallies::{CounterRow, DropRow};

use crate::names::Names;
use anyhow::{Context, Result};
use ipip_abi::maps::MapSpec;
use ipip_datapath::Maps;
use serde::Serialize;
use std::{collections::BTreeMap, error::Error};

/// A row for each entry of a map. Its fields are the names in JSON and the columns of the table.
pub trait MapRow: Serialize + Sized {
    /// The map.
    const MAP: &'static MapSpec;
    /// An entry: key and value.
    type Entry;

    /// Reads all entries, in the order of their keys.
    fn read(maps: &Maps) -> Result<Vec<Self::Entry>>;

    /// The row for an entry.
    fn new(entry: &Self::Entry, names: &Names) -> Self;
}

/// Sorts entries by `rank`. While a map changes, the kernel may restart the iteration. Each key is
/// therefore counted once, and no more entries are read than the map can hold.
fn sorted<K, V, O: Ord, E: Error + Send + Sync + 'static>(
    entries: impl Iterator<Item = Result<(K, V), E>>,
    map: &MapSpec,
    rank: impl Fn(&K) -> O,
) -> Result<Vec<(K, V)>> {
    let mut sorted = BTreeMap::new();
    for entry in entries.take(map.max_entries as usize) {
        let (key, value) = entry.with_context(|| reading(map))?;
        sorted.insert(rank(&key), (key, value));
    }
    Ok(sorted.into_values().collect())
}

/// The used elements of an array that is indexed by peer.
fn used<V>(map: &MapSpec, read: impl Fn(u16) -> Result<Option<V>>) -> Result<Vec<(u16, V)>> {
    let mut used = Vec::new();
    for peer in 0..u16::try_from(map.max_entries)? {
        if let Some(value) = read(peer)? {
            used.push((peer, value));
        }
    }
    Ok(used)
}

fn reading(map: &MapSpec) -> String {
    format!("cannot read map {}", map.name)
}

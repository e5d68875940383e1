//! The map `ROUTES` and its cache.

use super::{MapRow, sorted};
use crate::names::Names;
use anyhow::Result;
use ipip_abi::{
    Addr, Route, RouteKey,
    maps::{self, MapSpec},
};
use ipip_datapath::Maps;
use serde::Serialize;

/// A prefix and the peer that it belongs to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRow {
    prefix: String,
    kind: String,
    peer: u16,
    node: Option<String>,
}

/// A /24 block of the cache of routes, shown like a route.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct RouteCacheRow(RouteRow);

impl MapRow for RouteRow {
    const MAP: &'static MapSpec = &maps::ROUTES;
    type Entry = (RouteKey, Route);

    fn read(maps: &Maps) -> Result<Vec<(RouteKey, Route)>> {
        let entries = maps.routes.iter().map(|entry| {
            entry.map(|(key, route)| (RouteKey::new(key.data(), key.prefix_len()), route))
        });
        sorted(entries, Self::MAP, |key| (key.prefix, key.prefix_len))
    }

    fn new((key, route): &(RouteKey, Route), names: &Names) -> Self {
        Self {
            prefix: prefix(key),
            kind: match route.kind {
                Route::PODS => "pods".into(),
                Route::NODE => "node".into(),
                other => format!("unknown({other})"),
            },
            peer: route.peer,
            node: names.peer(route.peer),
        }
    }
}

impl MapRow for RouteCacheRow {
    const MAP: &'static MapSpec = &maps::ROUTE_CACHE;
    type Entry = (RouteKey, Route);

    fn read(maps: &Maps) -> Result<Vec<(RouteKey, Route)>> {
        let entries = maps.routes.cached_blocks().map(|entry| {
            entry.map(|(block, route)| (RouteKey::new(block, Addr::BLOCK_BITS), route))
        });
        sorted(entries, Self::MAP, |key| key.prefix)
    }

    fn new(entry: &(RouteKey, Route), names: &Names) -> Self {
        Self(RouteRow::new(entry, names))
    }
}

/// A prefix in CIDR notation.
pub fn prefix(key: &RouteKey) -> String {
    format!("{}/{}", key.prefix, key.prefix_len)
}

//! The map `NODE_ADDRS`.

use super::{MapRow, sorted};
use crate::names::Names;
use anyhow::Result;
use ipip_abi::{
    Addr, NodeAddr,
    maps::{self, MapSpec},
};
use ipip_datapath::Maps;
use serde::Serialize;
use std::net::Ipv4Addr;

/// An address of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAddrRow {
    address: Ipv4Addr,
    peer: u16,
    node: Option<String>,
    roles: Vec<&'static str>,
}

const ROLES: [(u8, &str); 4] = [
    (NodeAddr::OWN, "own"),
    (NodeAddr::UNDERLAY, "underlay"),
    (NodeAddr::TUNNEL_ONLY, "tunnel-only"),
    (NodeAddr::PUBLIC, "public"),
];

impl MapRow for NodeAddrRow {
    const MAP: &'static MapSpec = &maps::NODE_ADDRS;
    type Entry = (Addr, NodeAddr);

    fn read(maps: &Maps) -> Result<Vec<(Addr, NodeAddr)>> {
        sorted(maps.node_addrs.iter(), Self::MAP, |address| *address)
    }

    fn new((address, entry): &(Addr, NodeAddr), names: &Names) -> Self {
        let roles = ROLES.iter().filter(|(flag, _)| entry.flags & flag != 0);
        Self {
            address: (*address).into(),
            peer: entry.peer,
            node: names.peer(entry.peer),
            roles: roles.map(|(_, role)| *role).collect(),
        }
    }
}

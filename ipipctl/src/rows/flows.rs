//! The maps `FLOWS` and `CONNECTIONS`.

use super::{MapRow, sorted};
use crate::names::{self, Names};
use anyhow::Result;
use ipip_abi::{
    Addr, Flow, FlowKey,
    maps::{self, MapSpec},
};
use ipip_datapath::Maps;
use serde::Serialize;
use std::net::Ipv4Addr;

/// A flow, in the direction in which its first packet left the host stack.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    protocol: String,
    source: Ipv4Addr,
    source_port: u16,
    destination: Ipv4Addr,
    destination_port: u16,
}

impl MapRow for FlowRow {
    const MAP: &'static MapSpec = &maps::FLOWS;
    type Entry = (FlowKey, Flow);

    fn read(maps: &Maps) -> Result<Vec<(FlowKey, Flow)>> {
        sorted(maps.flows.iter(), Self::MAP, order)
    }

    fn new((key, flow): &(FlowKey, Flow), _: &Names) -> Self {
        let low = (key.low, key.low_port);
        let high = (key.high, key.high_port);
        let (from, to) = if flow.from_low() {
            (low, high)
        } else {
            (high, low)
        };
        Self {
            protocol: names::protocol(key.protocol),
            source: from.0.into(),
            source_port: u16::from_be_bytes(from.1),
            destination: to.0.into(),
            destination_port: u16::from_be_bytes(to.1),
        }
    }
}

/// A row of `CONNECTIONS`: the same as one of `FLOWS`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ConnectionRow(FlowRow);

impl MapRow for ConnectionRow {
    const MAP: &'static MapSpec = &maps::CONNECTIONS;
    type Entry = (FlowKey, Flow);

    fn read(maps: &Maps) -> Result<Vec<(FlowKey, Flow)>> {
        sorted(maps.connections.iter(), Self::MAP, order)
    }

    fn new(entry: &(FlowKey, Flow), names: &Names) -> Self {
        Self(FlowRow::new(entry, names))
    }
}

fn order(key: &FlowKey) -> (Addr, Addr, [u8; 2], [u8; 2], u8) {
    (key.low, key.high, key.low_port, key.high_port, key.protocol)
}

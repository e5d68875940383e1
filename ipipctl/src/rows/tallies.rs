//! The counters: the maps `COUNTERS` and `DROPS`.

use super::MapRow;
use crate::names::Names;
use anyhow::Result;
use ipip_abi::{
    Counter, DropReason, Tally,
    maps::{self, MapSpec},
};
use ipip_datapath::Maps;
use serde::Serialize;

/// A counter.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterRow {
    counter: &'static str,
    code: u8,
    packets: u64,
    bytes: u64,
    meaning: &'static str,
}

/// A drop reason.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DropRow {
    pub reason: &'static str,
    code: u8,
    packets: u64,
    pub bytes: u64,
    meaning: &'static str,
}

impl MapRow for CounterRow {
    const MAP: &'static MapSpec = &maps::COUNTERS;
    type Entry = (Counter, Tally);

    fn read(maps: &Maps) -> Result<Vec<(Counter, Tally)>> {
        let all = Counter::ALL.iter();
        all.map(|&counter| Ok((counter, maps.tally_counter(counter)?)))
            .collect()
    }

    fn new((counter, tally): &(Counter, Tally), _: &Names) -> Self {
        Self {
            counter: counter.name(),
            code: *counter as u8,
            packets: tally.packets,
            bytes: tally.bytes,
            meaning: counter.text(),
        }
    }
}

impl MapRow for DropRow {
    const MAP: &'static MapSpec = &maps::DROPS;
    type Entry = (DropReason, Tally);

    fn read(maps: &Maps) -> Result<Vec<(DropReason, Tally)>> {
        let all = DropReason::ALL.iter();
        all.map(|&reason| Ok((reason, maps.tally_drop(reason)?)))
            .collect()
    }

    fn new((reason, tally): &(DropReason, Tally), _: &Names) -> Self {
        Self {
            reason: reason.name(),
            code: *reason as u8,
            packets: tally.packets,
            bytes: tally.bytes,
            meaning: reason.text(),
        }
    }
}

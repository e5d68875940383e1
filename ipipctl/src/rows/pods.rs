//! The map `PODS`.

use super::{MapRow, sorted};
use crate::names::Names;
use anyhow::Result;
use ipip_abi::{
    Addr, Pod,
    maps::{self, MapSpec},
};
use ipip_datapath::Maps;
use serde::Serialize;
use std::net::Ipv4Addr;

/// A pod of this node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    address: Ipv4Addr,
    ifindex: u32,
    interface: Option<String>,
    mac: String,
    host_mac: String,
    /// Whether the pod's bandwidth is limited.
    limited: bool,
}

impl MapRow for PodRow {
    const MAP: &'static MapSpec = &maps::PODS;
    type Entry = (Addr, Pod);

    fn read(maps: &Maps) -> Result<Vec<(Addr, Pod)>> {
        sorted(maps.pods.iter(), Self::MAP, |address| *address)
    }

    fn new((address, pod): &(Addr, Pod), names: &Names) -> Self {
        Self {
            address: (*address).into(),
            ifindex: pod.ifindex,
            interface: names.interface(pod.ifindex),
            mac: pod.mac.to_string(),
            host_mac: pod.host_mac.to_string(),
            limited: pod.takes_host_stack(),
        }
    }
}

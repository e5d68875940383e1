//! The map `CONFIG`.

use super::{MapRow, reading};
use crate::names::Names;
use anyhow::{Context, Result};
use ipip_abi::{
    Addr, Config,
    maps::{self, MapSpec},
};
use ipip_datapath::Maps;
use serde::Serialize;
use std::net::Ipv4Addr;

/// The settings of the node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigRow {
    ipip0_ifindex: u32,
    ipip0_interface: Option<String>,
    ipip0_mac: String,
    udp_port: u16,
    foreign_ipip: &'static str,
    events_per_second: u32,
    pod_mtu: u32,
    pod_gso_max: u32,
    probe_address: Option<Ipv4Addr>,
}

impl ConfigRow {
    /// The only entry.
    pub fn read_one(maps: &Maps) -> Result<Config> {
        maps.config
            .get(&0, 0)
            .with_context(|| reading(&maps::CONFIG))
    }
}

impl MapRow for ConfigRow {
    const MAP: &'static MapSpec = &maps::CONFIG;
    type Entry = Config;

    fn read(maps: &Maps) -> Result<Vec<Config>> {
        Ok(vec![Self::read_one(maps)?])
    }

    fn new(config: &Config, names: &Names) -> Self {
        let passes = config.flags & Config::FOREIGN_IPIP_PASS != 0;
        Self {
            ipip0_ifindex: config.ipip0_ifindex,
            ipip0_interface: names.interface(config.ipip0_ifindex),
            ipip0_mac: config.ipip0_mac.to_string(),
            udp_port: u16::from_be_bytes(config.udp_port),
            foreign_ipip: if passes { "pass" } else { "drop" },
            events_per_second: config.events_per_second,
            pod_mtu: config.pod_mtu,
            pod_gso_max: config.pod_gso_max,
            probe_address: (config.probe_address != Addr::ZERO)
                .then(|| config.probe_address.into()),
        }
    }
}

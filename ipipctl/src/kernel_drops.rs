//! Packets that the kernel drops behind or in front of the programs, by interface. No drop reason counts them.

use anyhow::Result;
use ipip_abi::Program;
use ipip_datapath::Attachment;
use ipip_netlink::Netlink;
use serde::Serialize;
use std::collections::BTreeSet;

/// What the kernel dropped on an uplink or on one end of `ipip0`: packets of all traffic, since the interface exists.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelDropRow {
    interface: String,
    /// Packets that were to be sent.
    tx_dropped: u64,
    /// Packets that were received.
    rx_dropped: u64,
}

impl KernelDropRow {
    /// A row for each uplink and each end of `ipip0` in this network namespace.
    pub fn read(attached: &[Attachment]) -> Result<Vec<Self>> {
        let is_pod = |it: &Attachment| matches!(it.program, Program::FromPod | Program::ToPod);
        let attached = attached.iter().filter(|it| !it.defunct && !is_pod(it));
        // A name stands there twice during a promotion.
        let names: BTreeSet<&String> = attached.map(|it| &it.ifname).collect();
        let mut netlink = Netlink::open()?;
        let mut rows = Vec::new();
        for name in names {
            // The interface may vanish at any time.
            if let Some(dropped) = netlink.dropped_packets(name)? {
                rows.push(Self {
                    interface: name.clone(),
                    tx_dropped: dropped.tx,
                    rx_dropped: dropped.rx,
                });
            }
        }
        Ok(rows)
    }

    /// Whether it dropped any packet.
    pub fn is_any(&self) -> bool {
        self.tx_dropped != 0 || self.rx_dropped != 0
    }
}

#[cfg(test)]
impl KernelDropRow {
    /// A row for the tests of the output.
    pub fn sample(interface: &str, tx_dropped: u64, rx_dropped: u64) -> Self {
        Self {
            interface: interface.into(),
            tx_dropped,
            rx_dropped,
        }
    }
}

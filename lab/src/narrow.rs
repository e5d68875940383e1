//! A router on the way with a smaller MTU than the uplinks.

use crate::{fabric::Fabric, topology::Topology};
use anyhow::Result;
use ipip_testkit::host::Host;

/// Drops what a router says about packets that were too large, except about TCP without a tunnel: connections between machines,
/// to the API server for example, depend on it.
const SILENT: &str = "table ip silent { chain output { type filter hook output priority 0; icmp type destination-unreachable @th,136,8 != 6 drop; }; }";

/// The link of a cloud to the Internet has a smaller MTU. Dropping this value restores it.
#[derive(Debug)]
pub struct Narrow<'a> {
    ends: [(&'a Host, String); 2],
    usual: u32,
}

impl<'a> Narrow<'a> {
    /// Sets the MTU. If `drops_icmp`, the routers at both ends do not say that a tunnel's packets were too large.
    pub fn start(
        fabric: &'a Fabric,
        topology: &Topology,
        cloud: &str,
        mtu: u32,
        drops_icmp: bool,
    ) -> Result<Self> {
        let narrow = Self {
            ends: [
                (fabric.gateway(cloud)?, "wan".to_owned()),
                (&fabric.internet, format!("to-{cloud}")),
            ],
            usual: topology.uplink_mtu,
        };
        for (router, link) in &narrow.ends {
            router.ip(&format!("link set {link} mtu {mtu}"))?;
            if drops_icmp {
                router.nft(SILENT)?;
            }
        }
        Ok(narrow)
    }

    /// Restores the usual MTU.
    pub fn end(&self) -> Result<()> {
        for (router, link) in &self.ends {
            router.ip(&format!("link set {link} mtu {}", self.usual))?;
            // Absent if ICMP was not dropped.
            router.nft("table ip silent; delete table ip silent")?;
        }
        Ok(())
    }
}

impl Drop for Narrow<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("restoring the MTU of a cloud: {error:#}");
        }
    }
}

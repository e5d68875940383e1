//! A private route between two clouds, as VPC peering makes it.

use crate::{
    fabric::Fabric,
    topology::{Cloud, Topology},
};
use anyhow::{Context, Result};
use ipip_testkit::{host::Host, shell};

/// Metric of the routes that drop packets for the private ranges of other clouds. Those of a peering go first.
const METRIC: u32 = 1000;

/// Makes the gateway of each cloud drop packets for the private ranges of the others. A gateway that translated them to the
/// Internet would remember that, and go on translating them when there is a private route.
pub fn keep_clouds_apart(fabric: &Fabric, topology: &Topology) -> Result<()> {
    for cloud in &topology.clouds {
        for other in &topology.clouds {
            if cloud.networks != other.networks {
                for network in &other.networks {
                    fabric.gateway(&cloud.name)?.ip(&format!(
                        "route replace blackhole {network} metric {METRIC}"
                    ))?;
                }
            }
        }
    }
    Ok(())
}

/// A link between two gateways, with routes to all networks of the other cloud. Dropping this value removes it.
#[derive(Debug)]
pub struct Peering<'a> {
    gateway: &'a Host,
}

impl<'a> Peering<'a> {
    /// Connects two clouds. Gateways that may have translated packets between them have to forget that: see
    /// [`keep_clouds_apart`] and [`Fabric::translate`].
    pub fn start(fabric: &'a Fabric, topology: &Topology, clouds: [&str; 2]) -> Result<Self> {
        let [one, other] = [fabric.gateway(clouds[0])?, fabric.gateway(clouds[1])?];
        shell::run(&format!(
            "ip link add peering netns {} type veth peer name peering netns {}",
            one.name(),
            other.name()
        ))?;
        let peering = Self { gateway: one };
        for (gateway, own, far, cloud) in [(one, 1, 2, clouds[1]), (other, 2, 1, clouds[0])] {
            gateway.ip(&format!("address add 100.65.0.{own}/30 dev peering"))?;
            gateway.ip("link set peering up")?;
            for network in &named(topology, cloud)?.networks {
                gateway.ip(&format!("route add {network} via 100.65.0.{far}"))?;
            }
        }
        Ok(peering)
    }
}

impl Drop for Peering<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.gateway.ip("link del peering") {
            eprintln!("removing a peering: {error:#}");
        }
    }
}

fn named<'a>(topology: &'a Topology, cloud: &str) -> Result<&'a Cloud> {
    let mut clouds = topology.clouds.iter();
    let found = clouds.find(|it| it.name == cloud);
    found.with_context(|| format!("no cloud is called {cloud}"))
}

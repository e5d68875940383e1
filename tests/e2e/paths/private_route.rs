//! A private route between two clouds, as VPC peering makes it.

use super::{FAILOVER, RETURN, traffic::Traffic, wait_for_all_paths, wait_for_path};
use anyhow::{Context, Result};
use ipip_abi::Candidate;
use ipip_lab::{Lab, LabNode, topology::Cloud};
use ipip_testkit::{harness::Test, host::Host, shell, tests};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// For clouds that [are kept apart](keep_clouds_apart).
pub const TESTS: &[Test<Lab>] =
    tests![a_private_route_between_two_clouds_is_used_soon_and_left_soon];

const PER_SECOND: u64 = 2000;

fn a_private_route_between_two_clouds_is_used_soon_and_left_soon(lab: &Lab) -> Result<()> {
    wait_for_all_paths(lab)?;
    let (one, other) = (lab.pod("a1")?, lab.pod("c1")?);
    let ends = [&**one.node(), &**other.node()];
    let traffic = Traffic::start(one, other, 7000, PER_SECOND)?;
    traffic.wait_for(PER_SECOND)?;

    let peering = Peering::start(lab, ["cloud-a", "cloud-c"])?;
    let added = Instant::now();
    wait_for_path(ends, Candidate::PrivateIpip, RETURN)?;
    let seconds = added.elapsed().as_secs_f64();
    eprintln!("a private route is used after {seconds:.1} s");
    traffic.wait_for(PER_SECOND)?;
    let further = Traffic::start(one, other, 7001, PER_SECOND)?;
    traffic.stop()?.lost_nothing()?;
    // From c1, the addresses of cloud-b now lead into cloud-a.
    let of_b = |node: &&Arc<LabNode>| node.spec().cloud == "cloud-b";
    for node in lab.nodes().iter().filter(of_b) {
        wait_for_path([ends[1], node], Candidate::PublicIpip, Duration::ZERO)?;
    }

    drop(peering);
    wait_for_path(ends, Candidate::PublicIpip, FAILOVER * 2)?;
    further.wait_for(PER_SECOND)?;
    further.stop()?.failed_over("a private route is removed")?;
    wait_for_all_paths(lab)
}

/// Metric of the routes that drop packets for the private ranges of other clouds. Those of a peering go first.
const METRIC: u32 = 1000;

/// A link between two gateways, with routes to all networks of the other cloud. Dropping this value removes it.
pub struct Peering<'a> {
    gateway: &'a Host,
}

/// Makes the gateway of each cloud drop packets for the private ranges of the others. A gateway that translated them to the
/// Internet would remember that, and go on translating them when there is a private route.
pub fn keep_clouds_apart(lab: &Lab) -> Result<()> {
    for cloud in &lab.topology().clouds {
        for other in &lab.topology().clouds {
            if cloud.networks != other.networks {
                for network in &other.networks {
                    lab.fabric().gateway(&cloud.name)?.ip(&format!(
                        "route replace blackhole {network} metric {METRIC}"
                    ))?;
                }
            }
        }
    }
    Ok(())
}

impl<'a> Peering<'a> {
    /// Connects two clouds that [were kept apart](keep_clouds_apart).
    pub fn start(lab: &'a Lab, clouds: [&str; 2]) -> Result<Self> {
        let fabric = lab.fabric();
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
            for network in &named(lab, cloud)?.networks {
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

fn named<'a>(lab: &'a Lab, cloud: &str) -> Result<&'a Cloud> {
    let mut clouds = lab.topology().clouds.iter();
    let found = clouds.find(|it| it.name == cloud);
    found.with_context(|| format!("no cloud is called {cloud}"))
}

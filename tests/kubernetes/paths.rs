//! Paths between the nodes of a real cluster: agents leave one that fails, and return to it.

pub mod narrow;
pub mod private_route;
pub mod without_realms;

use crate::{ipipctl, running_ping::RunningPing};
use anyhow::{Context, Result, ensure};
use ipip_lab::{
    fabric::Fabric,
    firewall::Firewall,
    kubernetes::{OPEN, scenarios::Workloads},
};
use ipip_testkit::{harness::Test, tests, wait};
use serde_json::Value;
use std::time::Duration;

pub const TESTS: &[Test<Workloads>] =
    tests![a_firewall_that_begins_to_drop_protocol_4_costs_seconds];

/// A path that fails is left within 3 seconds. One more for a machine under load.
const FAILOVER: Duration = Duration::from_secs(4);
/// A better path that works again is used within this time.
const RETURN: Duration = Duration::from_secs(60);
const ENDS: [&str; 2] = ["a1", "b1"];
const CLOUDS: [&str; 3] = ["cloud-a", "cloud-b", "cloud-c"];

/// The firewalls of all clouds also pass UDP. Dropping this value closes them.
struct UdpPasses<'a>(&'a Fabric);

impl<'a> UdpPasses<'a> {
    fn start(fabric: &'a Fabric) -> Result<Self> {
        let opened = Self(fabric);
        for cloud in CLOUDS {
            let gateway = fabric.gateway(cloud)?;
            gateway.nft("insert rule ip firewall forward udp dport 5555 accept")?;
        }
        Ok(opened)
    }

    fn close(&self) -> Result<()> {
        for cloud in CLOUDS {
            self.0.gateway(cloud)?.nft("delete table ip firewall")?;
        }
        self.0.close(OPEN)
    }
}

impl Drop for UdpPasses<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            eprintln!("closing the firewalls: {error:#}");
        }
    }
}

fn a_firewall_that_begins_to_drop_protocol_4_costs_seconds(
    workloads: &mut Workloads,
) -> Result<()> {
    let fabric = workloads.cluster.fabric();
    let _udp_passes = UdpPasses::start(fabric)?;
    let gateway = fabric.gateway("cloud-b")?;
    both_use(workloads, ENDS, "public-ipip", RETURN)?;
    let ping = RunningPing::start(workloads)?;
    let firewall = Firewall::start(gateway, &["ip protocol 4"])?;
    let left = both_use(workloads, ENDS, "public-udp", FAILOVER * 2);
    let counted = ping.stop(workloads);
    drop(firewall);
    left?;
    failed_over(counted?)?;

    let ping = RunningPing::start(workloads)?;
    both_use(workloads, ENDS, "public-ipip", RETURN)?;
    ping.expect_no_loss(workloads)
}

/// Expects that of the packets of a [`RunningPing`] those of a failover were lost at most, and prints how many.
fn failed_over((sent, received): (u32, u32)) -> Result<()> {
    let lost = sent - received;
    eprintln!("        {lost} of {sent} packets were lost");
    let allowed = FAILOVER.as_millis() / RunningPing::INTERVAL.as_millis();
    ensure!(
        u128::from(lost) <= allowed && received > 0,
        "{lost} of {sent} packets were lost"
    );
    Ok(())
}

/// Waits until two nodes use this path to each other, as `ipipctl peers` shows.
fn both_use(workloads: &Workloads, ends: [&str; 2], path: &str, max_wait: Duration) -> Result<()> {
    for [node, peer] in [ends, [ends[1], ends[0]]] {
        let what = format!("{node} uses {path} to {peer}");
        let mut row = Value::Null;
        wait::within(max_wait, &what, || {
            row = self::row(workloads, node, peer)?;
            Ok(row["path"] == path)
        })
        .with_context(|| format!("{row:#}"))?;
    }
    Ok(())
}

/// What `ipipctl peers` shows of a peer of a node.
fn row(workloads: &Workloads, node: &str, peer: &str) -> Result<Value> {
    let rows = ipipctl(workloads.cluster.machine(node)?, &["peers"])?;
    let mut rows = rows.as_array().into_iter().flatten();
    let row = rows.find(|it| it["node"] == peer);
    Ok(row.context("no such peer")?.clone())
}

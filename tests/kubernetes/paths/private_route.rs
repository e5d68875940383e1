//! A private route between two clouds of a real cluster.

use super::{FAILOVER, RETURN, both_use, failed_over};
use crate::{nodes, running_ping::RunningPing};
use anyhow::{Context, Result};
use ipip_lab::{kubernetes::scenarios::Workloads, peering::Peering};
use ipip_testkit::{harness::Test, tests};
use std::time::{Duration, Instant};

pub const TESTS: &[Test<Workloads>] =
    tests![a_private_route_between_two_realms_is_used_soon_and_left_soon];

fn a_private_route_between_two_realms_is_used_soon_and_left_soon(
    workloads: &mut Workloads,
) -> Result<()> {
    let ends = ["a1", "c1"];
    let cluster = &workloads.cluster;
    let (fabric, topology) = (cluster.fabric(), &cluster.settings().topology);
    both_use(workloads, ends, "public-ipip", RETURN)?;

    let ping = RunningPing::to(workloads, "c1")?;
    let peering = Peering::start(fabric, topology, ["cloud-a", "cloud-c"])?;
    // The gateways translate probes of the other cloud's private addresses to the Internet, and would continue.
    fabric.translate(topology)?;
    let added = Instant::now();
    let used = both_use(workloads, ends, "private-ipip", RETURN);
    let seconds = added.elapsed().as_secs_f64();
    eprintln!("        a private route is used after {seconds:.1} s");
    // From c1, the addresses of cloud-b now lead into cloud-a.
    let others =
        ["a1", "c1"].map(|it| both_use(workloads, [it, "b1"], "public-ipip", Duration::ZERO));
    let lost = ping.expect_no_loss(workloads);
    used.and(lost)?;
    others.into_iter().collect::<Result<()>>()?;

    let ping = RunningPing::to(workloads, "c1")?;
    drop(peering);
    let removed = Instant::now();
    let left = both_use(workloads, ends, "public-ipip", FAILOVER * 2);
    let seconds = removed.elapsed().as_secs_f64();
    eprintln!("        a private route that is removed is left after {seconds:.1} s");
    let counted = ping.stop(workloads);
    left?;
    failed_over(counted?)?;
    // Between the other nodes of the two clouds, packets show that the route is gone.
    nodes::pods_reach_each_other(workloads)?;
    both_use(workloads, ["a2", "c1"], "public-ipip", RETURN).context("the other node of cloud-a")
}

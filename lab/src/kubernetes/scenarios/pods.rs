//! Connections from pods to pods.

use super::{Scenario, Workloads, objects::WEB};
use anyhow::{Context, Result, ensure};
use ipip_testkit::capture::{Capture, CaptureDirection, Packet};

pub const SCENARIO: Scenario = Scenario {
    name: "pods_reach_each_other_within_a_cloud_by_private_addresses_and_across_clouds",
    what: "pod -> pod, in a cloud and across clouds",
    by_hand: "flannel, with a public-ip annotation on each node",
    holds_without: false,
    attempt,
};

fn attempt(workloads: &Workloads) -> Result<String> {
    let name = |node: &str| format!("on-{node}");
    let pairs = workloads.expect_all_connected("on", WEB, |node| workloads.pod(node), name)?;
    nothing_leaves_the_cloud(workloads)?;
    Ok(format!(
        "{pairs} pairs, each pod is seen with its own address; a1 -> a2 stays in its cloud"
    ))
}

/// Traffic that leaves a cloud is billed, so packets within a cloud must not leave it.
fn nothing_leaves_the_cloud(workloads: &Workloads) -> Result<()> {
    let fabric = workloads.cluster.fabric();
    let capture = Capture::start(fabric.gateway("cloud-a")?, "wan", CaptureDirection::Both)?;
    let pod = (workloads.pod("a2")?, WEB);
    workloads.ask_from_pod("on-a1", &[pod], "/hostname")?;
    // The control: the capture must see these packets.
    let abroad = workloads.pod("b1")?;
    workloads.ask_from_pod("on-a1", &[(abroad, WEB)], "/hostname")?;
    let carries = |packet: &Packet, pod| {
        let inner = packet.inner();
        inner.is_some_and(|it| [it.source, it.destination].contains(&pod))
    };
    let control = capture.wait_for(|packet| carries(packet, abroad));
    control.with_context(|| format!("no packet for {abroad} left the cloud"))?;
    let packets = capture.stop()?;
    let left = packets.iter().find(|packet| carries(packet, pod.0));
    ensure!(left.is_none(), "left the cloud: {left:?}");
    Ok(())
}

//! Pods talk to pods.

use super::{Row, Stage, objects::WEB};
use crate::capture::Capture;
use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;

pub const ROW: Row = Row {
    name: "pods_reach_each_other_within_a_cloud_by_private_addresses_and_across_clouds",
    what: "pod -> pod, in a cloud and across clouds",
    by_hand: "flannel, with a public-ip annotation on each node",
    holds_without: false,
    attempt,
};

fn attempt(stage: &Stage) -> Result<String> {
    let nodes = stage.nodes();
    let servers: Vec<(Ipv4Addr, u16)> = nodes
        .iter()
        .map(|node| Ok((stage.pod(node)?, WEB)))
        .collect::<Result<_>>()?;
    for node in &nodes {
        let pod = format!("on-{node}");
        let own = format!("{}:", stage.pod(node)?);
        stage.soon(|| {
            let names = stage.ask_from_pod(&pod, &servers, "/hostname")?;
            for (name, asked) in names.iter().zip(&nodes) {
                ensure!(*name == format!("on-{asked}"), "{pod} -> {asked}: {name:?}");
            }
            for seen in stage.ask_from_pod(&pod, &servers, "/clientip")? {
                ensure!(seen.starts_with(&own), "{pod} is seen as {seen}, not {own}");
            }
            Ok(())
        })?;
    }
    nothing_leaves_the_cloud(stage)?;
    Ok(format!(
        "{} pairs, each pod seen by its own address; a1 -> a2 stays in its cloud",
        nodes.len() * nodes.len()
    ))
}

/// What leaves a cloud is billed.
fn nothing_leaves_the_cloud(stage: &Stage) -> Result<()> {
    let fabric = stage.cluster.fabric();
    let gateway = fabric.gateway("cloud-a")?;
    let capture = Capture::start(
        gateway,
        stage.cluster.trash(),
        "wan",
        "",
        "ip proto 4 or udp port 5555",
    )?;
    let pod = (stage.pod("a2")?, WEB);
    stage.ask_from_pod("on-a1", &[pod], "/hostname")?;
    // The control: this must be seen.
    let abroad = stage.pod("b1")?;
    stage.ask_from_pod("on-a1", &[(abroad, WEB)], "/hostname")?;
    let control = capture.wait_for(|line| line.contains(&abroad.to_string()));
    control.with_context(|| format!("no packet for {abroad} left the cloud"))?;
    let inside = format!(" {}.", pod.0);
    let left = capture.stop()?;
    let left = left.iter().find(|line| line.contains(&inside));
    ensure!(left.is_none(), "left the cloud: {left:?}");
    Ok(())
}

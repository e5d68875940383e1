//! Two nodes with one public endpoint.

use anyhow::Result;
use ipip_lab::kubernetes::{
    provider,
    scenarios::{Workloads, objects},
};
use ipip_testkit::{harness::Test, tests, wait};
use std::{net::Ipv4Addr, time::Duration};

use crate::nodes;

const MAX_WAIT: Duration = Duration::from_secs(60);

pub const TESTS: &[Test<Workloads>] =
    tests![a_node_with_the_public_endpoint_of_another_one_is_told_and_keeps_its_cloud];

fn a_node_with_the_public_endpoint_of_another_one_is_told_and_keeps_its_cloud(
    workloads: &Workloads,
) -> Result<()> {
    let own = workloads.public("a2")?;
    annotate(workloads, workloads.public("a1")?)?;
    let kept = told_and_connected(workloads);
    annotate(workloads, own)?;
    kept?;
    nodes::pods_reach_each_other(workloads)
}

fn told_and_connected(workloads: &Workloads) -> Result<()> {
    wait::within(MAX_WAIT, "an Event on a2 names a1", || {
        let described = workloads.cluster.kubectl(&["describe", "node", "a2"])?;
        Ok(described.contains("IpipContested")
            && described.contains("is also the publicEndpoint of a1"))
    })?;
    workloads.cluster.wait_ready()?;
    for (from, to) in [("a1", "a2"), ("a2", "a1")] {
        let pod = (workloads.pod(to)?, objects::WEB);
        workloads.soon(|| workloads.ask_from_pod(&format!("on-{from}"), &[pod], "/hostname"))?;
    }
    Ok(())
}

fn annotate(workloads: &Workloads, endpoint: Ipv4Addr) -> Result<()> {
    let annotation = format!("{}={endpoint}", provider::PUBLIC_ENDPOINT);
    let annotate = ["annotate", "--overwrite", "node", "a2", &annotation];
    workloads.cluster.kubectl(&annotate).map(drop)
}

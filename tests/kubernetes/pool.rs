//! A cluster whose Nodes have no pod CIDRs: the agents claim blocks of a pool.

use crate::nodes::{MAX_WAIT, MOVER, join, leave, pods_reach_each_other, start_pods};
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::{Cluster, scenarios::Workloads};
use ipip_testkit::{harness::Test, tests, wait};
use ipnetwork::Ipv4Network;
use std::collections::BTreeMap;

pub const TESTS: &[Test<Workloads>] = tests![
    each_pod_has_an_address_of_the_block_that_its_node_claimed,
    the_block_of_a_deleted_node_is_released_and_a_node_that_joins_claims_one,
];

fn each_pod_has_an_address_of_the_block_that_its_node_claimed(workloads: &Workloads) -> Result<()> {
    let cluster = &workloads.cluster;
    let blocks = blocks(cluster)?;
    ensure!(blocks.len() == workloads.nodes().len(), "{blocks:?}");
    for node in workloads.nodes() {
        let object = cluster.get(&format!("node/{node}"), None)?;
        ensure!(object["spec"]["podCIDR"].is_null(), "{}", object["spec"]);
        let block = blocks
            .get(node)
            .with_context(|| format!("{node}: {blocks:?}"))?;
        let pool = cluster.settings().pod_network;
        ensure!(
            pool.contains(block.network()) && block.prefix() == 24,
            "{block}"
        );
        let pod = workloads.pod(node)?;
        ensure!(block.contains(pod), "{node} has {block}, its pod has {pod}");
    }
    Ok(())
}

fn the_block_of_a_deleted_node_is_released_and_a_node_that_joins_claims_one(
    workloads: &mut Workloads,
) -> Result<()> {
    let before = blocks(&workloads.cluster)?;
    leave(workloads, MOVER)?;
    wait::within(MAX_WAIT, "its block is released", || {
        Ok(!blocks(&workloads.cluster)?.contains_key(MOVER))
    })?;
    join(workloads, MOVER)?;
    workloads.cluster.wait_ready()?;
    start_pods(workloads, MOVER)?;
    pods_reach_each_other(workloads)?;
    each_pod_has_an_address_of_the_block_that_its_node_claimed(workloads)?;
    let mut others = blocks(&workloads.cluster)?;
    let block = others.remove(MOVER);
    ensure!(
        before.iter().filter(|(node, _)| *node != MOVER).eq(&others),
        "{before:?}, {others:?}"
    );
    ensure!(
        block.as_ref() == before.get(MOVER),
        "a node tries the same block first: {block:?}"
    );
    Ok(())
}

/// The block of each node.
fn blocks(cluster: &Cluster) -> Result<BTreeMap<String, Ipv4Network>> {
    let list = cluster.get("ipippodblocks", None)?;
    let items = list["items"].as_array().into_iter().flatten();
    let blocks = items.map(|block| {
        let text = |key: &str| block["spec"][key].as_str().unwrap_or_default().to_owned();
        Ok((text("node"), text("cidr").parse()?))
    });
    blocks.collect()
}

//! A node whose public address nobody has stated.

use crate::{ipipctl, nodes};
use anyhow::{Context, Result};
use ipip_lab::kubernetes::{provider, scenarios::Workloads};
use ipip_testkit::{harness::Test, tests, wait};
use std::time::Duration;

pub const TESTS: &[Test<Workloads>] =
    tests![a_node_is_told_its_public_address_and_with_the_setting_its_agent_publishes_it];

/// Agents are replaced one after the other, and a peer without a path is probed each 15 seconds at least.
const MAX_WAIT: Duration = Duration::from_secs(180);
/// The node: its cloud has no provider.
const NODE: &str = "c1";
const SETTING: &str = "IPIP_LEARNED_PUBLIC_ENDPOINT";

fn a_node_is_told_its_public_address_and_with_the_setting_its_agent_publishes_it(
    workloads: &Workloads,
) -> Result<()> {
    let own = workloads.public(NODE)?;
    annotate(workloads, &format!("{}-", provider::PUBLIC_ENDPOINT))?;
    let learned = told(workloads).and_then(|()| published(workloads));
    annotate(workloads, &format!("{}={own}", provider::PUBLIC_ENDPOINT))?;
    let stated = wait_status(workloads, "annotation ipip.dev/public-endpoint");
    set_agents(workloads, &format!("{SETTING}-"))?;
    learned?;
    stated?;
    nodes::pods_reach_each_other(workloads)
}

/// Expects an Event with the command that states the address, which nobody uses.
fn told(workloads: &Workloads) -> Result<()> {
    let own = workloads.public(NODE)?;
    let command = format!("kubectl annotate node {NODE} ipip.dev/public-endpoint={own}");
    wait::within(MAX_WAIT, "an Event and the status say it", || {
        let described = workloads.cluster.kubectl(&["describe", "node", NODE])?;
        let status = ipipctl(workloads.cluster.machine(NODE)?, &["status"])?;
        let problems = status["agent"]["problems"].to_string();
        Ok(described.contains("IpipPublicEndpoint")
            && described.contains(&command)
            && problems.contains(&command))
    })?;
    wait::within(MAX_WAIT, "a1 does not reach it", || {
        let peers = ipipctl(workloads.cluster.machine("a1")?, &["peers"])?;
        Ok(peers.to_string().contains("NoPublicEndpoint"))
    })
}

fn published(workloads: &Workloads) -> Result<()> {
    set_agents(workloads, &format!("{SETTING}=use"))?;
    wait_status(workloads, "learnedPublicEndpoint: use")?;
    let own = workloads.public(NODE)?.to_string();
    let object = workloads.cluster.get(&format!("ipn/{NODE}"), None)?;
    anyhow::ensure!(object["spec"]["publicEndpoint"] == own, "{object:#}");
    nodes::pods_reach_each_other(workloads)
}

/// Waits until the status of the node's IpipNode names this source of its public endpoint.
fn wait_status(workloads: &Workloads, from: &str) -> Result<()> {
    let mut last = String::new();
    wait::within(MAX_WAIT, &format!("the endpoint comes from {from}"), || {
        let object = workloads.cluster.get(&format!("ipn/{NODE}"), None)?;
        last = object["status"]["publicEndpointFrom"].to_string();
        Ok(last.contains(from))
    })
    .with_context(|| last.clone())
}

fn annotate(workloads: &Workloads, annotation: &str) -> Result<()> {
    let annotate = ["annotate", "--overwrite", "node", NODE, annotation];
    workloads.cluster.kubectl(&annotate).map(drop)
}

/// Changes a setting of all agents, and waits until they run with it.
fn set_agents(workloads: &Workloads, setting: &str) -> Result<()> {
    let agents = "daemonset/ipip-agent";
    let set = ["set", "env", "-n", "kube-system", agents, setting];
    workloads.cluster.kubectl(&set)?;
    let wait = [
        "rollout",
        "status",
        "-n",
        "kube-system",
        agents,
        "--timeout=180s",
    ];
    workloads.cluster.kubectl(&wait).map(drop)
}

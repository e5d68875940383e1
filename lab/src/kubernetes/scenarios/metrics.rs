//! metrics-server, which `kubectl top` queries.

use super::{Scenario, Workloads};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "unmodified_metrics_server_measures_nodes_and_pods_of_every_cloud",
    what: "metrics-server on c1, by InternalIP; kubectl top",
    by_hand: "hostAliases in metrics-server",
    holds_without: false,
    attempt,
};

/// metrics-server queries kubelets every 15 seconds, and needs two answers of each.
const TWO_ROUNDS: Duration = Duration::from_secs(120);

fn attempt(workloads: &Workloads) -> Result<String> {
    let lines = workloads.later(TWO_ROUNDS, || {
        let top = |what| workloads.cluster.kubectl(&["top", what, "--no-headers"]);
        let nodes = top("nodes")?;
        let pods = top("pods")?;
        for node in workloads.nodes() {
            let measured = |line: &str| line.starts_with(node) && !line.contains("<unknown>");
            ensure!(nodes.lines().any(measured), "top nodes: {nodes}");
            ensure!(pods.contains(&format!("on-{node} ")), "top pods: {pods}");
        }
        Ok(nodes)
    })?;
    Ok(format!(
        "top measures {} nodes and their pods",
        lines.lines().count()
    ))
}

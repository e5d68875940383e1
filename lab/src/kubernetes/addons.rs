//! CoreDNS and metrics-server, each on a chosen node.

use super::Cluster;
use anyhow::{Context, Result};

/// CoreDNS on the node `NODE`, at the Service address `ADDRESS`.
pub(crate) const COREDNS: &str = include_str!("addons/coredns.yaml");

const METRICS_SERVER: &str = include_str!("addons/metrics-server.yaml");

impl Cluster {
    /// Installs CoreDNS on a node, and waits until it serves.
    pub(super) fn install_dns(&self, node: &str) -> Result<()> {
        self.import("coredns")?;
        let address = self.settings().dns().to_string();
        self.apply(&COREDNS.replace("NODE", node).replace("ADDRESS", &address))?;
        self.wait_rollout("deployment/coredns")
    }

    /// Installs metrics-server on a node, and waits until it has metrics of at least one node.
    pub fn install_metrics(&self, node: &str) -> Result<()> {
        self.apply_metrics(node)?;
        self.wait_rollout("deployment/metrics-server")
    }

    /// Installs metrics-server on a node.
    pub fn apply_metrics(&self, node: &str) -> Result<()> {
        self.import("metrics-server")?;
        self.apply(&METRICS_SERVER.replace("NODE", node)).map(drop)
    }

    /// Waits until a workload of kube-system is rolled out.
    pub fn wait_rollout(&self, what: &str) -> Result<()> {
        let namespace = "--namespace=kube-system";
        self.kubectl(&["rollout", "status", namespace, what, "--timeout=180s"])
            .map(drop)
            .with_context(|| {
                let pods = self.kubectl(&["describe", "pods", namespace]);
                format!("{what} is not ready: {}", pods.unwrap_or_default())
            })
    }
}

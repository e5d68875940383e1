//! DNS through CoreDNS.

use super::{Scenario, Workloads};
use anyhow::{Result, ensure};

pub const SCENARIO: Scenario = Scenario {
    name: "pods_of_every_cloud_resolve_names_through_coredns_in_one_of_them",
    what: "pod -> DNS, CoreDNS on c1",
    by_hand: "flannel and kube-proxy",
    holds_without: false,
    attempt,
};

fn attempt(workloads: &Workloads) -> Result<String> {
    let address = workloads.service("web")?.to_string();
    for node in workloads.nodes() {
        workloads.soon(|| {
            let pod = format!("on-{node}");
            let said =
                workloads.in_pod(&pod, "timeout 4 nslookup web.default.svc.cluster.local")?;
            ensure!(said.contains(&address), "{pod}: {said}");
            Ok(())
        })?;
    }
    Ok(format!(
        "web.default.svc.cluster.local is {address} on every node"
    ))
}

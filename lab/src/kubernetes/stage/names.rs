//! DNS through CoreDNS.

use super::{Row, Stage};
use anyhow::{Result, ensure};

pub const ROW: Row = Row {
    name: "pods_of_every_cloud_resolve_names_through_coredns_in_one_of_them",
    what: "pod -> DNS, CoreDNS on c1",
    by_hand: "flannel and kube-proxy",
    holds_without: false,
    attempt,
};

fn attempt(stage: &Stage) -> Result<String> {
    let address = stage.service("web")?.to_string();
    for node in stage.nodes() {
        stage.soon(|| {
            let pod = format!("on-{node}");
            let said = stage.in_pod(&pod, "timeout 4 nslookup web.default.svc.cluster.local")?;
            ensure!(said.contains(&address), "{pod}: {said}");
            Ok(())
        })?;
    }
    Ok(format!(
        "web.default.svc.cluster.local is {address} on every node"
    ))
}

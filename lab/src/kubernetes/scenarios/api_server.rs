//! Connections between pods and the API server, in both directions.

use super::{Scenario, Workloads};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const FROM_PODS: Scenario = Scenario {
    name: "pods_of_every_cloud_reach_the_api_server_by_its_service_whose_endpoint_is_private",
    what: "pod -> API server by `kubernetes.default`",
    by_hand: "controlPlaneEndpoint and certSANs edited",
    holds_without: false,
    attempt: from_pods,
};

pub const CALLS_PODS: Scenario = Scenario {
    name: "the_api_server_calls_webhooks_and_aggregated_apis_in_other_clouds",
    what: "API server -> webhook on b1, aggregated API on c1",
    by_hand: "-",
    holds_without: false,
    attempt: calls_pods,
};

fn from_pods(workloads: &Workloads) -> Result<String> {
    workloads.on_each(|node| {
        workloads.soon(|| {
            let client = "timeout 6 /agnhost inclusterclient --poll-interval=1 2>&1 || true";
            let said = workloads.in_pod(&format!("on-{node}"), client)?;
            let calls = said.matches("calling /healthz").count();
            let failed = said.matches("status=failed").count();
            // The last call may not have ended yet.
            ensure!(calls >= 2 && failed == 0, "on-{node}: {said}");
            Ok(())
        })
    })?;
    let address = workloads.service("kubernetes")?;
    let a1 = workloads.internal("a1")?;
    Ok(format!(
        "each pod, with its own account, by {address} -> {a1}"
    ))
}

fn calls_pods(workloads: &Workloads) -> Result<String> {
    workloads.soon(|| {
        let map = serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "asked", "labels": { "ask": "hook" } },
        });
        let refused = match workloads.cluster.apply(&map.to_string()) {
            Ok(_) => anyhow::bail!("the API server did not call the webhook"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(
            refused.contains("this webhook denies all requests"),
            "{refused}"
        );
        Ok(())
    })?;
    workloads.later(Duration::from_secs(120), || {
        let metrics = "/apis/metrics.k8s.io/v1beta1/nodes";
        workloads
            .cluster
            .kubectl(&["get", "--raw", metrics])
            .map(drop)
    })?;
    Ok("the webhook denied the object; metrics.k8s.io answered".into())
}

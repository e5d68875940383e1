//! Sets the addresses and realms of nodes, like the controllers of a cloud or, if a cloud has none, like an
//! administrator.

use super::{Cluster, Machine};
use crate::topology::NodeSpec;
use anyhow::Result;
use ipip_testkit::wait;
use serde_json::{Value, json};
use std::time::Duration;

const MAX_WAIT: Duration = Duration::from_secs(120);

/// The annotation with which a user sets a node's public address.
pub const PUBLIC_ENDPOINT: &str = "ipip.dev/public-endpoint";

/// The label with which a user sets a node's realm.
pub const REALM: &str = "ipip.dev/realm";

/// The label with which a cloud provider sets a node's region.
pub const REGION: &str = "topology.kubernetes.io/region";

/// Waits until the node has registered, and then sets its addresses and its realm.
pub fn initialise(cluster: &Cluster, machine: &Machine, spec: &NodeSpec) -> Result<()> {
    let name = &spec.name;
    wait::within(MAX_WAIT, &format!("{name} registers"), || {
        machine.check_daemons()?;
        let asked = cluster.kubectl_output(&["get", "node", name])?;
        Ok(asked.status.success())
    })?;
    if cluster.settings().has_provider(spec) {
        as_a_cloud_provider(cluster, spec)
    } else {
        by_hand(cluster, spec)
    }
}

/// Sets addresses, zone and provider ID, and removes the taint, like a cloud controller manager.
fn as_a_cloud_provider(cluster: &Cluster, spec: &NodeSpec) -> Result<()> {
    let mut addresses = vec![
        json!({ "type": "Hostname", "address": spec.name }),
        json!({ "type": "InternalIP", "address": spec.addresses[0] }),
    ];
    if let Some(public) = spec.public {
        addresses.push(json!({ "type": "ExternalIP", "address": public }));
    }
    let mut node = json!({
        "spec": { "providerID": format!("lab://{}/{}", spec.cloud, spec.name) },
    });
    if cluster.settings().realms {
        node["metadata"]["labels"] = json!({
            REGION: spec.cloud,
            "topology.kubernetes.io/zone": format!("{}-1", spec.cloud),
        });
    }
    let status = json!({ "status": { "addresses": addresses } });
    patch(cluster, spec, &status, &["--subresource=status"])?;
    patch(cluster, spec, &node, &[])?;
    // The kubelet sets this taint until the provider has initialised the node.
    let taint = "node.cloudprovider.kubernetes.io/uninitialized-";
    cluster
        .kubectl(&["taint", "node", &spec.name, taint])
        .map(drop)
}

/// Sets realm and public address, like an administrator of a machine without a cloud provider.
fn by_hand(cluster: &Cluster, spec: &NodeSpec) -> Result<()> {
    let node = &spec.name;
    if cluster.settings().realms {
        cluster.kubectl(&["label", "node", node, &format!("{REALM}={}", spec.cloud)])?;
    }
    if let Some(public) = spec.public {
        let annotation = format!("{PUBLIC_ENDPOINT}={public}");
        cluster.kubectl(&["annotate", "node", node, &annotation])?;
    }
    Ok(())
}

fn patch(cluster: &Cluster, spec: &NodeSpec, patch: &Value, more: &[&str]) -> Result<()> {
    let patch = patch.to_string();
    let arguments = [
        "patch",
        "node",
        &spec.name,
        "--type=strategic",
        "--patch",
        &patch,
    ];
    cluster.kubectl(&[&arguments[..], more].concat()).map(drop)
}

/// Approves the request of each kubelet for its serving certificate. No controller of Kubernetes does this.
pub fn sign_kubelet_certificates(cluster: &Cluster) -> Result<()> {
    let mut missing: Vec<String> = cluster
        .nodes()
        .map(|(_, spec)| format!("system:node:{}", spec.name))
        .collect();
    wait::within(MAX_WAIT, "every kubelet asks for a certificate", || {
        let requests = cluster.get("certificatesigningrequests", None)?;
        for request in requests["items"].as_array().into_iter().flatten() {
            let (Some(name), Some(user)) = (
                request["metadata"]["name"].as_str(),
                request["spec"]["username"].as_str(),
            ) else {
                continue;
            };
            if missing.iter().any(|wanted| wanted == user) {
                cluster.kubectl(&["certificate", "approve", name])?;
                missing.retain(|wanted| wanted != user);
            }
        }
        Ok(missing.is_empty())
    })
}

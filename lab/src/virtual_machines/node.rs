//! Makes a machine a node, as an administrator does.

use super::{Site, VirtualMachine, control_plane::join_config, programs::IMAGES};
use crate::kubernetes::certificates;
use anyhow::{Context, Result};
use serde_json::json;

/// The sandbox image of containerd 1.6, by default.
const SANDBOX: &str = "registry.k8s.io/pause:3.6";

/// Imports the images, starts kube-proxy, and runs `kubeadm join`.
pub fn join(site: &Site, machine: &VirtualMachine) -> Result<()> {
    for image in IMAGES {
        machine.shell(&format!(
            "ctr --namespace k8s.io images import /srv/programs/{image}.tar"
        ))?;
    }
    machine.shell(&format!(
        "ctr --namespace k8s.io images tag lab.local/pause:1 {SANDBOX}"
    ))?;
    let config = join_config(site, machine.name(), &machine.address().to_string())?;
    machine.write("/root/kubeadm.yaml", &config)?;
    machine
        .shell("kubeadm join --config /root/kubeadm.yaml")
        .context("joining the cluster")?;
    start_proxy(site, machine)
}

fn start_proxy(site: &Site, machine: &VirtualMachine) -> Result<()> {
    let user = "system:kube-proxy";
    let kubeconfig = certificates::kubeconfig(&site.control_plane, user, None)?;
    machine.write("/etc/kubernetes/kube-proxy.conf", &kubeconfig)?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": "/etc/kubernetes/kube-proxy.conf" },
        "clusterCIDR": site.settings().pod_network,
        "hostnameOverride": machine.name(),
    });
    machine.write("/etc/kubernetes/kube-proxy.yaml", &config.to_string())?;
    machine.shell("systemctl start kube-proxy").map(drop)
}

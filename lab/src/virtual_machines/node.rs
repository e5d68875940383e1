//! Makes a machine a node, as an administrator does.

use super::{Site, VirtualMachine, control_plane::join_config};
use crate::kubernetes::certificates;
use anyhow::{Context, Result};
use serde_json::json;

/// Images of a node, by the names of their files.
pub const IMAGES: [&str; 4] = ["pause", "busybox", "coredns", "ipip"];

/// The sandbox image of containerd 1.6, by default.
const SANDBOX: &str = "registry.k8s.io/pause:3.6";

/// Imports the images, starts kube-proxy, and runs `kubeadm join`.
pub fn join(site: &Site, machine: &VirtualMachine) -> Result<()> {
    import(machine, &IMAGES)?;
    let config = join_config(site, machine.name(), &machine.address().to_string())?;
    machine.write("/root/kubeadm.yaml", &config)?;
    machine
        .shell("kubeadm join --config /root/kubeadm.yaml")
        .context("joining the cluster")?;
    start_proxy(site, machine)
}

/// Imports images from the disk of programs.
pub fn import(machine: &VirtualMachine, images: &[&str]) -> Result<()> {
    for image in images {
        machine.shell(&format!(
            "ctr --namespace k8s.io images import /srv/programs/{image}.tar"
        ))?;
    }
    rename(machine, "pause", SANDBOX)
}

/// Gives an image of the lab another name, under which a program asks for it.
pub fn rename(machine: &VirtualMachine, image: &str, name: &str) -> Result<()> {
    let tag = format!("ctr --namespace k8s.io images tag --force lab.local/{image}:1 {name}");
    machine.shell(&tag).map(drop)
}

fn start_proxy(site: &Site, machine: &VirtualMachine) -> Result<()> {
    let user = "system:kube-proxy";
    let kubeconfig = certificates::kubeconfig(&site.outside, user, None)?;
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

//! A cluster that `kubeadm init` has made on a machine.

use crate::{
    Nodes,
    nodes::{
        kubectl_logs_shows_what_a_pod_prints, pods_resolve_names_through_the_service_of_coredns,
    },
};
use anyhow::{Result, ensure};
use ipip_lab::{kubernetes::condition, virtual_machines::Site};
use ipip_testkit::{harness::Test, tests};

/// What kubeadm runs in pods of the host's network, which start without a pod network.
const HOST_NETWORK: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

pub const TESTS: &[Test<Nodes>] = tests![
    before_its_network_is_installed_the_node_is_not_ready_and_coredns_does_not_run,
    kubeadms_own_pods_are_ready_beside_the_agent,
    kubectl_logs_shows_what_a_pod_prints,
    pods_resolve_names_through_the_service_of_coredns,
];

/// One machine, on which `kubeadm init` has run.
pub fn start() -> Result<Nodes> {
    let site = Site::start_without_control_plane("6.1", "m1")?;
    Nodes::made_by(Site::init, site, true)
}

fn before_its_network_is_installed_the_node_is_not_ready_and_coredns_does_not_run(
    nodes: &mut Nodes,
) -> Result<()> {
    let site = &nodes.site;
    ensure!(!nodes.has_network, "another test has started the agent");
    let node = site.get("node/m1")?;
    ensure!(condition(&node, "Ready") != Some("True"), "{node}");
    let pods = site.get("pods --namespace=kube-system --selector=k8s-app=kube-dns")?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        ensure!(condition(pod, "Ready") != Some("True"), "{pod}");
    }
    Ok(())
}

fn kubeadms_own_pods_are_ready_beside_the_agent(nodes: &mut Nodes) -> Result<()> {
    let site = nodes.with_network()?;
    site.wait_dns()?;
    for name in HOST_NETWORK {
        let pod = site.get(&format!("pod/{name}-m1 --namespace=kube-system"))?;
        ensure!(condition(&pod, "Ready") == Some("True"), "{pod}");
    }
    for name in ["kube-proxy", "ipip-agent"] {
        site.wait(&format!("{name} is ready"), || {
            let set = site.get(&format!("daemonset/{name} --namespace=kube-system"))?;
            Ok(set["status"]["numberReady"] == 1)
        })?;
    }
    Ok(())
}

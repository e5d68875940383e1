//! `kubeadm init` on a machine.

use super::{
    Site, VirtualMachine,
    control_plane::{init_config, version},
    node,
};
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeSet, time::Duration};

/// Images of the machine, by the names of their files.
pub const IMAGES: [&str; 9] = [
    "pause",
    "busybox",
    "coredns",
    "ipip",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
];

/// How long `kubeadm init` may run: more than the limits in [`FOR_EMULATION`] together.
const INIT: Duration = Duration::from_secs(3600);

/// What the emulated machine needs beside the usual configuration: each text follows a line of it. kubeadm's and the
/// control plane's limits are for machines that are some ten times as fast. From `controlPlaneComponentHealthCheck`
/// kubeadm also derives how long the kubelet waits for the start of each part. RSA takes most of the time of a
/// connection.
const FOR_EMULATION: [(&str, &str); 3] = [
    (
        "kind: InitConfiguration\n",
        "timeouts:
  kubeletHealthCheck: 10m
  controlPlaneComponentHealthCheck: 20m
  kubernetesAPICall: 10m
  etcdAPICall: 5m
  tlsBootstrap: 5m
",
    ),
    (
        "kind: ClusterConfiguration\n",
        "encryptionAlgorithm: ECDSA-P256
controllerManager:
  extraArgs: [{name: leader-elect, value: \"false\"}]
scheduler:
  extraArgs: [{name: leader-elect, value: \"false\"}]
",
    ),
    (
        "apiServer:\n",
        "  extraArgs:
  - {name: etcd-healthcheck-timeout, value: 60s}
  - {name: etcd-readycheck-timeout, value: 60s}
",
    ),
];

/// Imports the images, runs `kubeadm init`, and gives kubectl outside of the machine the administrator's rights.
pub fn init(site: &Site, machine: &VirtualMachine) -> Result<()> {
    node::import(machine, &IMAGES)?;
    for (image, name) in wanted(site)? {
        node::rename(machine, &image, &name)?;
    }
    let mut config = init_config(site, machine.name(), machine.address())?;
    for (line, more) in FOR_EMULATION {
        ensure!(config.contains(line), "{line:?} is not in {config}");
        config = config.replacen(line, &format!("{line}{more}"), 1);
    }
    machine.write("/root/kubeadm.yaml", &config)?;
    machine
        .shell_within(INIT, "kubeadm init --config /root/kubeadm.yaml 2>&1")
        .context("making the control plane")?;
    let admin = machine.shell("cat /etc/kubernetes/admin.conf")?;
    site.outside.write("/etc/kubernetes/admin.conf", &admin)
}

/// The images that kubeadm asks for, each as (its name in the lab, its full name).
fn wanted(site: &Site) -> Result<BTreeSet<(String, String)>> {
    let version = version(site)?;
    let list = ["config", "images", "list", "--kubernetes-version", &version];
    let printed = site.outside.run("kubeadm", &list)?;
    let images = printed.split_whitespace().map(|name| {
        let last = name.rsplit('/').next().unwrap_or_default();
        let image = last.split(':').next().unwrap_or_default();
        ensure!(
            IMAGES.contains(&image),
            "kubeadm asks for {name}, which this project does not build"
        );
        Ok((image.to_owned(), name.to_owned()))
    });
    images.collect()
}

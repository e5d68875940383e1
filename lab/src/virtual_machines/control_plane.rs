//! The control plane beside the machines, with everything that `kubeadm join` reads from it; and the configurations of
//! kubeadm, made as the guide says.

use super::{OUTSIDE, Site};
use crate::kubernetes::{certificates, control_plane};
use anyhow::{Context, Result, ensure};
use ipip_testkit::shell;
use std::{net::Ipv4Addr, process::Command};

const CONFIG: &str = "/etc/kubernetes/init.yaml";

/// What a user adds for Debian's containerd, which by default makes cgroups itself.
const KUBELET: &str = "---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
";

/// Starts it. Returns when machines can join.
pub fn start(site: &Site) -> Result<()> {
    let (machine, settings) = (&site.outside, site.settings());
    certificates::create(machine, settings)?;
    control_plane::start(machine, settings)?;
    let config = init_config(site, machine.hostname(), OUTSIDE)?;
    machine.write(CONFIG, &config)?;
    for phase in [
        &["upload-config", "all"][..],
        // Makes the rights of nodes that join, and the ConfigMap that they read first.
        &["bootstrap-token"],
    ] {
        let options = [
            "--config",
            CONFIG,
            "--kubeconfig=/etc/kubernetes/super-admin.conf",
        ];
        machine.run("kubeadm", &[&["init", "phase"], phase, &options].concat())?;
    }
    Ok(())
}

/// A configuration with which this machine makes the cluster.
pub fn init_config(site: &Site, name: &str, address: Ipv4Addr) -> Result<String> {
    let settings = site.settings();
    let config = kubeadm_config(&[
        "--public-endpoint",
        &address.to_string(),
        "--internal-ip",
        &address.to_string(),
        "--node-name",
        name,
        "--pod-cidr",
        &settings.pod_network.to_string(),
        "--service-cidr",
        &settings.service_network.to_string(),
        "--kubernetes-version",
        &version(site)?,
    ])?;
    Ok(config + KUBELET)
}

/// The version of Kubernetes.
pub fn version(site: &Site) -> Result<String> {
    let printed = site.outside.run("kubeadm", &["version", "-o", "short"])?;
    Ok(printed.trim().to_owned())
}

/// A configuration with which a machine joins the cluster.
pub fn join_config(site: &Site, name: &str, address: &str) -> Result<String> {
    let printed = site
        .outside
        .run("kubeadm", &["token", "create", "--print-join-command"])?;
    let words: Vec<&str> = printed.split_whitespace().collect();
    let after = |option: &str| {
        let at = words.iter().position(|word| *word == option);
        at.and_then(|at| words.get(at + 1).copied())
            .with_context(|| format!("kubeadm printed no {option}: {printed}"))
    };
    kubeadm_config(&[
        "--join",
        &OUTSIDE.to_string(),
        "--token",
        after("--token")?,
        "--ca-cert-hash",
        after("--discovery-token-ca-cert-hash")?,
        "--internal-ip",
        address,
        "--node-name",
        name,
        "--realm",
        "lan",
    ])
}

fn kubeadm_config(options: &[&str]) -> Result<String> {
    let mut command = Command::new(shell::own_program("ipipctl")?);
    command.arg("kubeadm-config").args(options);
    let config = shell::printed("ipipctl kubeadm-config", command.output())?;
    ensure!(config.ends_with('\n'), "no newline ends {config}");
    Ok(config)
}

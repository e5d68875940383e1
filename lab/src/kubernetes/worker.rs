//! The daemons of every node: containerd, kubelet and kube-proxy.

use super::{Machine, certificates, settings::Settings, tools::Tools};
use crate::topology::NodeSpec;
use anyhow::{Context, Result};
use ipip_testkit::wait;
use serde_json::{Value, json};
use std::time::Duration;

/// The sandbox image. Its name has a registry part. Without one, containerd would pull it from Docker Hub.
pub const PAUSE: &str = "lab.local/pause:1";

/// An image with busybox, for the pods of tests.
pub const BUSYBOX: &str = "lab.local/busybox:1";

/// An image with busybox and `/agnhost`, the program that Kubernetes' own tests run in pods.
pub const AGNHOST: &str = "lab.local/agnhost:1";

/// Images that every node gets, by the names of their files.
const IMAGES: [&str; 2] = ["pause", "busybox"];

/// Starts containerd, and imports the images that every node gets.
pub fn start_containerd(machine: &Machine, tools: &Tools) -> Result<()> {
    let config = format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# All nodes would share one NRI socket, and the second containerd would end.
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
"#
    );
    machine.write("/etc/containerd/config.toml", &config)?;
    let mut containerd = machine.command("containerd");
    containerd.args([
        "--config",
        "/etc/containerd/config.toml",
        "--log-level=warn",
    ]);
    machine.daemon("containerd", &mut containerd)?;
    wait::within(Duration::from_secs(120), "containerd answers", || {
        machine.check_daemons()?;
        Ok(machine.output("ctr", &["version"])?.status.success())
    })?;
    for image in IMAGES {
        import(machine, tools, image)?;
    }
    Ok(())
}

/// Imports an image of the lab on a node.
pub fn import(machine: &Machine, tools: &Tools, image: &str) -> Result<()> {
    let tar = tools.image(image)?;
    let tar = tar.to_str().context("the path is not UTF-8")?;
    machine
        .run("ctr", &["--namespace", "k8s.io", "images", "import", tar])
        .map(drop)
}

/// A pod that runs a shell script on a node. It ends at once when it is deleted.
pub fn pod_on_node(name: &str, node: &str, image: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "tolerations": [{ "operator": "Exists" }],
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": image,
                "command": ["/bin/sh", "-c", script],
            }],
        },
    })
}

/// Starts the kubelet, which registers the node.
pub fn start_kubelet(
    machine: &Machine,
    control_plane: &Machine,
    spec: &NodeSpec,
    settings: &Settings,
) -> Result<()> {
    let user = format!("system:node:{}", spec.name);
    let kubeconfig = certificates::kubeconfig(control_plane, &user, Some("system:nodes"))?;
    machine.write("/etc/kubernetes/kubelet.conf", &kubeconfig)?;
    if machine.hostname() != control_plane.hostname() {
        let authority = certificates::authority(control_plane)?;
        machine.write("/etc/kubernetes/pki/ca.crt", &authority)?;
    }
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": "/etc/kubernetes/pki/ca.crt" },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": machine.cgroup(),
        "clusterDNS": [settings.dns()],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "memory.available": "50Mi" },
        "resolvConf": "/dev/null",
        // The cluster's CA signs the kubelet's serving certificate, so metrics-server trusts it without a flag.
        "serverTLSBootstrap": true,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "logging": { "verbosity": 1 },
    });
    let path = "/var/lib/kubelet/config.yaml";
    machine.write(path, &config.to_string())?;
    let mut kubelet = machine.command("kubelet");
    kubelet
        .arg(format!("--config={path}"))
        .arg("--kubeconfig=/etc/kubernetes/kubelet.conf")
        .arg("--cert-dir=/var/lib/kubelet/pki")
        .arg(format!("--hostname-override={}", spec.name))
        .arg(format!("--node-ip={}", spec.addresses[0]));
    if settings.has_provider(spec) {
        kubelet.arg("--cloud-provider=external");
    }
    machine.daemon("kubelet", &mut kubelet)
}

/// Starts kube-proxy.
pub fn start_proxy(
    machine: &Machine,
    control_plane: &Machine,
    spec: &NodeSpec,
    settings: &Settings,
) -> Result<()> {
    let kubeconfig = certificates::kubeconfig(control_plane, "system:kube-proxy", None)?;
    machine.write("/etc/kubernetes/kube-proxy.conf", &kubeconfig)?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": "/etc/kubernetes/kube-proxy.conf" },
        "clusterCIDR": settings.pod_network,
        "hostnameOverride": spec.name,
        "mode": settings.proxy.name(),
        // These sysctls belong to the whole host, not to a network namespace.
        "conntrack": {
            "maxPerCore": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    });
    let path = "/etc/kubernetes/kube-proxy.yaml";
    machine.write(path, &config.to_string())?;
    let mut proxy = machine.command("kube-proxy");
    proxy.arg(format!("--config={path}"));
    machine.daemon("kube-proxy", &mut proxy)
}

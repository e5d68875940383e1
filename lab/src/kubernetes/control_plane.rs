//! etcd, API server, controller manager and scheduler, on one machine.

use super::{
    Machine,
    certificates::{API_PORT, PKI},
    settings::Settings,
};
use anyhow::Result;
use ipip_testkit::wait;
use std::time::Duration;

/// Starts all four, and returns when the API server is ready.
pub fn start(machine: &Machine, settings: &Settings) -> Result<()> {
    start_etcd(machine)?;
    start_api_server(machine, settings)?;
    start_controllers(machine, settings, !settings.own_pool)?;
    start_scheduler(machine)?;
    wait::within(Duration::from_secs(180), "the API server is ready", || {
        machine.check_daemons()?;
        let config = "--kubeconfig=/etc/kubernetes/super-admin.conf";
        let asked = machine.output("kubectl", &[config, "get", "--raw", "/readyz"])?;
        Ok(asked.status.success())
    })?;
    for arguments in [
        // kubeadm's own administrator is in this group.
        [
            "kubeadm:cluster-admins",
            "--clusterrole=cluster-admin",
            "--group=kubeadm:cluster-admins",
        ],
        // Without this binding, logs and exec are forbidden.
        [
            "kubelet-api",
            "--clusterrole=system:kubelet-api-admin",
            "--user=kube-apiserver-kubelet-client",
        ],
    ] {
        let [name, role, subject] = arguments;
        // The administrator has no rights before the first binding exists.
        let config = "--kubeconfig=/etc/kubernetes/super-admin.conf";
        machine.run(
            "kubectl",
            &[config, "create", "clusterrolebinding", name, role, subject],
        )?;
    }
    Ok(())
}

/// Kills the API server.
pub fn stop_api_server(machine: &Machine) -> Result<()> {
    machine.kill_daemon("kube-apiserver")
}

fn start_etcd(machine: &Machine) -> Result<()> {
    let mut etcd = machine.command("etcd");
    etcd.args([
        "--name=etcd",
        "--data-dir=/var/lib/etcd",
        "--listen-client-urls=https://127.0.0.1:2379",
        "--advertise-client-urls=https://127.0.0.1:2379",
        "--listen-peer-urls=https://127.0.0.1:2380",
        "--initial-advertise-peer-urls=https://127.0.0.1:2380",
        "--initial-cluster=etcd=https://127.0.0.1:2380",
        "--client-cert-auth=true",
        "--peer-client-cert-auth=true",
        // The data need not survive a power failure.
        "--unsafe-no-fsync=true",
        "--log-level=warn",
    ]);
    for (option, file) in [
        ("cert-file", "server.crt"),
        ("key-file", "server.key"),
        ("trusted-ca-file", "ca.crt"),
        ("peer-cert-file", "peer.crt"),
        ("peer-key-file", "peer.key"),
        ("peer-trusted-ca-file", "ca.crt"),
    ] {
        etcd.arg(format!("--{option}={PKI}/etcd/{file}"));
    }
    machine.daemon("etcd", &mut etcd)
}

/// Starts the API server with the flags that kubeadm gives it.
pub fn start_api_server(machine: &Machine, settings: &Settings) -> Result<()> {
    let mut server = machine.command("kube-apiserver");
    server
        .arg(format!(
            "--advertise-address={}",
            settings.control_plane()?.addresses[0]
        ))
        .arg(format!("--secure-port={API_PORT}"))
        .arg(format!(
            "--service-cluster-ip-range={}",
            settings.service_network
        ))
        .args([
            "--allow-privileged=true",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--enable-bootstrap-token-auth=true",
            "--etcd-servers=https://127.0.0.1:2379",
            "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        ]);
    for (option, file) in [
        ("client-ca-file", "ca.crt"),
        ("etcd-cafile", "etcd/ca.crt"),
        ("etcd-certfile", "apiserver-etcd-client.crt"),
        ("etcd-keyfile", "apiserver-etcd-client.key"),
        ("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
        ("kubelet-client-key", "apiserver-kubelet-client.key"),
        ("proxy-client-cert-file", "front-proxy-client.crt"),
        ("proxy-client-key-file", "front-proxy-client.key"),
        ("requestheader-client-ca-file", "front-proxy-ca.crt"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
    ] {
        server.arg(format!("--{option}={PKI}/{file}"));
    }
    machine.daemon("kube-apiserver", &mut server)
}

/// Starts the controller manager. With `allocate`, it assigns pod CIDRs to nodes.
pub fn start_controllers(machine: &Machine, settings: &Settings, allocate: bool) -> Result<()> {
    let config = "/etc/kubernetes/controller-manager.conf";
    let mut manager = machine.command("kube-controller-manager");
    manager
        .arg(format!("--allocate-node-cidrs={allocate}"))
        .arg(format!("--cluster-cidr={}", settings.pod_network))
        .arg(format!(
            "--service-cluster-ip-range={}",
            settings.service_network
        ))
        .args([
            "--bind-address=127.0.0.1",
            "--controllers=*,bootstrapsigner,tokencleaner",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
        ]);
    for option in [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ] {
        manager.arg(format!("--{option}={config}"));
    }
    for (option, file) in [
        ("client-ca-file", "ca.crt"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
        ("requestheader-client-ca-file", "front-proxy-ca.crt"),
        ("root-ca-file", "ca.crt"),
        ("service-account-private-key-file", "sa.key"),
    ] {
        manager.arg(format!("--{option}={PKI}/{file}"));
    }
    machine.daemon("kube-controller-manager", &mut manager)
}

fn start_scheduler(machine: &Machine) -> Result<()> {
    let config = "/etc/kubernetes/scheduler.conf";
    let mut scheduler = machine.command("kube-scheduler");
    scheduler.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    for option in [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ] {
        scheduler.arg(format!("--{option}={config}"));
    }
    machine.daemon("kube-scheduler", &mut scheduler)
}

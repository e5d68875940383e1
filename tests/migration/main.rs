//! A cluster migrates from flannel node by node, as `docs/migration.md` describes. flanneld is the real one. Its CNI
//! plugin only delegates to the plugin `bridge`, which is configured here as flannel's plugin would do it.

use anyhow::{Context, Result, ensure};
use ipip_lab::{
    kubernetes::{Cluster, MANIFESTS, Machine, Settings, certificates},
    topology::{NodeSpec, Topology},
};
use ipip_testkit::{
    harness::{Harness, LoneTest},
    lone_tests, wait,
};
use serde_json::{Value, json};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

const TESTS: &[LoneTest] =
    lone_tests![pods_reach_each_other_after_each_step_of_a_migration_from_flannel];

const FLANNELS_LIST: &str = "/etc/cni/net.d/10-flannel.conflist";
const KUBECONFIG: &str = "/etc/kubernetes/flannel.conf";
const MAX_WAIT: Duration = Duration::from_secs(120);
const SLEEP: &str = "sleep 100000";

fn main() -> ExitCode {
    let mut harness = Harness::new(|(): &()| String::new());
    harness.lone_tests("flannel", TESTS);
    harness.run()
}

fn pods_reach_each_other_after_each_step_of_a_migration_from_flannel() -> Result<()> {
    let cluster = with_flannel()?;
    let mut pods = Vec::new();
    for (_, spec) in cluster.nodes() {
        let pod = format!("flannel-{}", spec.name);
        cluster.run_pod(&pod, &spec.name, SLEEP)?;
        pods.push(pod);
    }
    reach_each_other(&cluster, &pods).context("before the migration")?;

    cluster.import("ipip")?;
    cluster.kubectl(&["apply", "--kustomize", &format!("{MANIFESTS}/migration")])?;
    for (machine, spec) in cluster.nodes() {
        let began = Instant::now();
        let new = migrate(&cluster, machine, &spec.name)?;
        pods.retain(|pod| !pod.ends_with(&spec.name));
        pods.push(new);
        reach_each_other(&cluster, &pods)
            .with_context(|| format!("after the migration of {}", spec.name))?;
        print_step(&format!("migration of {}", spec.name), began.elapsed());
    }

    for machine in cluster.machines() {
        machine.kill_daemon("flanneld")?;
    }
    let clean_up = [
        "set",
        "env",
        "--namespace=kube-system",
        "daemonset/ipip-agent",
    ];
    let variable = ["--containers=prepare", "IPIP_CLEAN_UP_AFTER=flannel"];
    cluster.kubectl(&[&clean_up[..], &variable].concat())?;
    for machine in cluster.machines() {
        let node = machine.hostname();
        wait::within(MAX_WAIT, &format!("{node} has nothing of flannel"), || {
            let left = machine.run("sh", &["-c", "ip -o link; ls /run; iptables-save"])?;
            let lists = machine.run("ls", &["/etc/cni/net.d"])?;
            Ok(!left.to_lowercase().contains("flannel") && !lists.contains("flannel.conflist\n"))
        })?;
    }
    cluster.wait_rollout("daemonset/ipip-agent")?;
    reach_each_other(&cluster, &pods).context("without flannel")
}

/// A cluster of three nodes in one network, connected by flannel.
fn with_flannel() -> Result<Cluster> {
    let mut topology = Topology::one_realm();
    let third = NodeSpec::new("a3", "cloud-a", "10.0.0.13", "203.0.113.13", 3);
    topology.nodes.push(third);
    let settings = Settings {
        topology,
        ..Settings::default()
    };
    let network = json!({
        "Network": settings.pod_network,
        "Backend": { "Type": "vxlan" },
    });
    let cluster = Cluster::start(settings, &print_step)?;
    let began = Instant::now();
    let user = certificates::kubeconfig(
        cluster.control_plane(),
        "flannel",
        Some("kubeadm:cluster-admins"),
    )?;
    for (machine, spec) in cluster.nodes() {
        machine.write("/etc/kube-flannel/net-conf.json", &network.to_string())?;
        machine.write(KUBECONFIG, &user)?;
        let mut flanneld = machine.command("flannel");
        flanneld
            .args(["--kube-subnet-mgr", "--ip-masq", "--iface=eth0"])
            .arg(format!("--kubeconfig-file={KUBECONFIG}"))
            .env("NODE_NAME", &spec.name);
        let pods = pod_cidr(&cluster, &spec.name)?;
        machine.daemon("flanneld", &mut flanneld)?;
        install_bridge(&cluster, machine, &pods)?;
    }
    cluster.wait_ready()?;
    print_step("flannel, and nodes ready", began.elapsed());
    Ok(cluster)
}

fn pod_cidr(cluster: &Cluster, node: &str) -> Result<Value> {
    let mut pods = Value::Null;
    wait::within(MAX_WAIT, &format!("{node} has a pod CIDR"), || {
        pods = cluster.get(&format!("node/{node}"), None)?["spec"]["podCIDR"].clone();
        Ok(!pods.is_null())
    })?;
    Ok(pods)
}

/// Installs what flannel's plugin delegates to, with the values that it takes from `/run/flannel/subnet.env`.
fn install_bridge(cluster: &Cluster, machine: &Machine, pods: &Value) -> Result<()> {
    for plugin in ["bridge", "host-local", "loopback"] {
        let program = cluster.tools().program(plugin);
        let program = program.to_str().context("the path is not UTF-8")?;
        machine.run("cp", &["--dereference", program, "/opt/cni/bin/"])?;
    }
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": true,
            "hairpinMode": true,
            "ipMasq": false,
            "mtu": 1450,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": pods }]] },
        }],
    });
    machine.write(FLANNELS_LIST, &list.to_string())
}

/// Migrates a node, and returns the name of a new pod there.
fn migrate(cluster: &Cluster, machine: &Machine, node: &str) -> Result<String> {
    cluster.kubectl(&["cordon", node])?;
    cluster.kubectl(&["delete", "pod", &format!("flannel-{node}")])?;
    cluster.kubectl(&["label", "node", node, "ipip.dev/migrated=true"])?;
    wait::within(MAX_WAIT, "the agent has written its list", || {
        Ok(machine
            .run("ls", &["/etc/cni/net.d"])?
            .contains("ipip.conflist"))
    })?;
    cluster.kubectl(&["uncordon", node])?;
    let pod = format!("ipip-{node}");
    cluster.run_pod(&pod, node, SLEEP)?;
    let address = address(cluster, &pod)?;
    let route = machine.run("ip", &["route", "get", &address])?;
    ensure!(
        route.contains("dev pod"),
        "{pod} is not in the new network: {route}"
    );
    Ok(pod)
}

/// The address of a pod, when it is ready.
fn address(cluster: &Cluster, pod: &str) -> Result<String> {
    let pod = cluster.wait_pod(pod)?;
    let address = pod["status"]["podIP"].as_str();
    Ok(address.context("no podIP")?.to_owned())
}

/// Every pod and every node reaches every pod.
fn reach_each_other(cluster: &Cluster, pods: &[String]) -> Result<()> {
    for to in pods {
        let address = address(cluster, to)?;
        let ping = ["ping", "-c", "1", "-W", "2", &address];
        for from in pods.iter().filter(|from| *from != to) {
            let command = [&["exec", from, "--"], &ping[..]].concat();
            wait::until(&format!("{from} reaches {to}"), || {
                Ok(cluster.kubectl_output(&command)?.status.success())
            })?;
        }
        for machine in cluster.machines() {
            let what = format!("the host {} reaches {to}", machine.hostname());
            wait::until(&what, || {
                Ok(machine.output("busybox", &ping)?.status.success())
            })?;
        }
    }
    Ok(())
}

/// Prints how long a step took.
fn print_step(what: &str, took: Duration) {
    eprintln!("{:6.1} s  {what}", took.as_secs_f64());
}

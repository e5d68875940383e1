//! Verbs of kubectl that the API server forwards to kubelets.

use super::{Scenario, Workloads, objects::WEB};
use anyhow::{Context, Result, ensure};
use ipip_testkit::{
    http,
    trash::{Item, Trash},
};
use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddrV4},
    process::{Child, ChildStdout, Stdio},
};

pub const SCENARIO: Scenario = Scenario {
    name: "kubectl_logs_exec_attach_port_forward_and_describe_work_for_nodes_of_every_cloud",
    what: "kubectl logs, exec, attach, port-forward, describe",
    by_hand: "iptables DNAT from InternalIP to public address on the control plane",
    holds_without: false,
    attempt,
};

fn attempt(workloads: &Workloads) -> Result<String> {
    for node in workloads.nodes() {
        let pod = format!("on-{node}");
        workloads
            .soon(|| try_all(workloads, node, &pod))
            .with_context(|| pod.clone())?;
    }
    Ok(format!("all five on {}", workloads.nodes().join(", ")))
}

fn try_all(workloads: &Workloads, node: &str, pod: &str) -> Result<()> {
    let cluster = &workloads.cluster;
    let logs = cluster.kubectl(&["logs", pod, "--request-timeout=8s"])?;
    ensure!(
        logs.starts_with(&format!("this is {node}\n")),
        "logs: {logs}"
    );
    let name = workloads.in_pod(pod, "hostname")?;
    ensure!(name.trim() == pod, "exec: {name}");
    // The pod writes a line each second; a loaded machine needs several. `attach` does not end by itself.
    let attached = cluster
        .control_plane()
        .output("timeout", &["6", "kubectl", "attach", pod])?;
    let attached = String::from_utf8_lossy(&attached.stdout);
    ensure!(
        attached.contains(&format!("tick of {node}")),
        "attach: {attached}"
    );
    let forward = Forward::start(workloads, pod)?;
    let answer = http::get_text(cluster.control_plane(), forward.address, "/hostname")?;
    ensure!(answer == pod, "port-forward: {answer}");
    let described = cluster.kubectl(&["describe", "node", node])?;
    for wanted in [pod, "KubeletReady"] {
        ensure!(described.contains(wanted), "describe: {described}");
    }
    Ok(())
}

/// A running `kubectl port-forward`.
struct Forward {
    child: Child,
    trash: Trash,
    address: SocketAddrV4,
    /// Its output. It would end if the pipe were closed.
    output: BufReader<ChildStdout>,
}

impl Forward {
    fn start(workloads: &Workloads, pod: &str) -> Result<Self> {
        let mut command = workloads.cluster.control_plane().command("kubectl");
        command
            .args(["port-forward", &format!("pod/{pod}"), &format!(":{WEB}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl")?;
        let trash = workloads.cluster.trash().clone();
        trash.add(Item::process(&child));
        let stdout = child.stdout.take().context("no output")?;
        let mut forward = Self {
            child,
            trash,
            address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
            output: BufReader::new(stdout),
        };
        let mut line = String::new();
        forward.output.read_line(&mut line)?;
        // Forwarding from 127.0.0.1:43211 -> 80
        let words: Vec<&str> = line.split_whitespace().collect();
        let address = words.get(2).and_then(|address| address.parse().ok());
        forward.address = address.with_context(|| format!("port-forward printed {line:?}"))?;
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let process = Item::process(&self.child);
        self.trash.forget(&process);
    }
}

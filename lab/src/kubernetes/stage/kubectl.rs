//! What an administrator asks of kubelets, through the API server.

use super::{Row, Stage, objects::WEB};
use anyhow::{Context, Result, ensure};
use ipip_testkit::{
    http,
    trash::{Item, Trash},
};
use nix::unistd::Pid;
use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddrV4},
    process::{Child, ChildStdout, Stdio},
};

pub const ROW: Row = Row {
    name: "kubectl_logs_exec_attach_port_forward_and_describe_work_for_nodes_of_every_cloud",
    what: "kubectl logs, exec, attach, port-forward, describe",
    by_hand: "iptables DNAT from InternalIP to public address on the control plane",
    holds_without: false,
    attempt,
};

fn attempt(stage: &Stage) -> Result<String> {
    for node in stage.nodes() {
        let pod = format!("on-{node}");
        stage
            .soon(|| try_all(stage, node, &pod))
            .with_context(|| pod.clone())?;
    }
    Ok(format!("all five on {}", stage.nodes().join(", ")))
}

fn try_all(stage: &Stage, node: &str, pod: &str) -> Result<()> {
    let cluster = &stage.cluster;
    let logs = cluster.kubectl(&["logs", pod, "--request-timeout=8s"])?;
    ensure!(
        logs.starts_with(&format!("this is {node}\n")),
        "logs: {logs}"
    );
    let name = stage.in_pod(pod, "hostname")?;
    ensure!(name.trim() == pod, "exec: {name}");
    let attached = cluster
        .control_plane()
        .output("timeout", &["3", "kubectl", "attach", pod])?;
    let attached = String::from_utf8_lossy(&attached.stdout);
    ensure!(
        attached.contains(&format!("tick of {node}")),
        "attach: {attached}"
    );
    let forward = Forward::start(stage, pod)?;
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
    /// It ends when nobody reads what it says of each connection.
    said: BufReader<ChildStdout>,
}

impl Forward {
    fn start(stage: &Stage, pod: &str) -> Result<Self> {
        let mut command = stage.cluster.control_plane().command("kubectl");
        command
            .args(["port-forward", &format!("pod/{pod}"), &format!(":{WEB}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl")?;
        let trash = stage.cluster.trash().clone();
        trash.add(Item::Process(Pid::from_raw(child.id() as i32)));
        let stdout = child.stdout.take().context("no output")?;
        let mut forward = Self {
            child,
            trash,
            address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
            said: BufReader::new(stdout),
        };
        let mut line = String::new();
        forward.said.read_line(&mut line)?;
        // Forwarding from 127.0.0.1:43211 -> 80
        let words: Vec<&str> = line.split_whitespace().collect();
        let address = words.get(2).and_then(|address| address.parse().ok());
        forward.address = address.with_context(|| format!("port-forward said {line:?}"))?;
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let process = Item::Process(Pid::from_raw(self.child.id() as i32));
        self.trash.forget(&process);
    }
}

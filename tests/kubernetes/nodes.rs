//! Nodes join, leave, change their address and lose the API server, while pods of other nodes send packets.

use crate::{ipipctl, running_ping::RunningPing};
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::{
    Machine, control_plane, provider,
    scenarios::{SCENARIOS, Workloads, objects},
    worker,
};
use ipip_testkit::{harness::Test, tests, wait};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

pub const MAX_WAIT: Duration = Duration::from_secs(120);
/// The list that the container runtime reads.
const LIST: &str = "/etc/cni/net.d/01-ipip.conflist";
/// The log line of an agent that cannot reach the API server.
const CUT_OFF: &str = "the API server does not answer";
/// The node that comes and goes.
pub const MOVER: &str = "c1";

pub const TESTS: &[Test<Workloads>] = tests![
    nodes_leave_join_without_a_pod_cidr_and_change_their_address_without_loss_for_others,
    a_node_deleted_while_an_agent_is_cut_off_is_removed_on_reconnection_and_nothing_is_lost,
];

/// A node leaves, comes back without a pod CIDR, gets one, and changes its public address.
fn nodes_leave_join_without_a_pod_cidr_and_change_their_address_without_loss_for_others(
    workloads: &mut Workloads,
) -> Result<()> {
    let agents = agents(workloads, &["a1", "a2", "b1"])?;
    let ping = RunningPing::start(workloads)?;

    leave(workloads, MOVER)?;
    for node in ["a1", "b1"] {
        forgets(workloads, node, MOVER)?;
    }
    let control_plane = workloads.cluster.control_plane();
    control_plane.kill_daemon("kube-controller-manager")?;
    control_plane::start_controllers(control_plane, workloads.cluster.settings(), false)?;
    join(workloads, MOVER)?;
    wait::within(
        MAX_WAIT,
        "the agent reports that there is no pod CIDR",
        || {
            let events = workloads
                .cluster
                .kubectl(&["get", "events", "--all-namespaces"])?;
            Ok(events.contains("IpipWaiting") && events.contains("no IPv4 pod CIDR yet"))
        },
    )?;
    let control_plane = workloads.cluster.control_plane();
    control_plane.kill_daemon("kube-controller-manager")?;
    control_plane::start_controllers(control_plane, workloads.cluster.settings(), true)?;
    workloads.cluster.wait_ready()?;
    start_pods(workloads, MOVER)?;
    pods_reach_each_other(workloads)?;

    let old = workloads.public(MOVER)?;
    let new = Ipv4Addr::new(192, 0, 2, 99);
    for address in [new, old] {
        give_public_address(workloads, MOVER, address)?;
        pods_reach_each_other(workloads).with_context(|| format!("{MOVER} at {address}"))?;
    }

    ping.expect_no_loss(workloads)?;
    nothing_was_detached(workloads)?;
    let after = self::agents(workloads, &["a1", "a2", "b1"])?;
    ensure!(after == agents, "restarted: {agents:?}, then {after:?}");
    Ok(())
}

fn a_node_deleted_while_an_agent_is_cut_off_is_removed_on_reconnection_and_nothing_is_lost(
    workloads: &mut Workloads,
) -> Result<()> {
    let before = agents(workloads, &["b1"])?;
    let b1 = workloads.cluster.machine("b1")?;
    let ping = RunningPing::start(workloads)?;
    let cut_offs = || Ok::<_, anyhow::Error>(agent_log(b1)?.matches(CUT_OFF).count());
    let earlier = cut_offs()?;
    let api_server = workloads.cluster.settings().api_server()?;
    b1.nft(&format!(
        "table ip outage {{
  chain output {{
    type filter hook output priority filter
    ip daddr {address} tcp dport {port} reject with tcp reset
  }}
  chain input {{
    type filter hook input priority filter
    ip saddr {address} tcp sport {port} drop
  }}
}}
",
        address = api_server.ip(),
        port = api_server.port()
    ))?;
    // If the connection survived, it would deliver the deletion later.
    wait::within(MAX_WAIT, "the agent of b1 is cut off", || {
        Ok(cut_offs()? > earlier)
    })?;
    leave(workloads, MOVER)?;
    forgets(workloads, "a1", MOVER)?;
    let peers = peer_names(b1)?;
    ensure!(
        peers.contains(MOVER),
        "b1 should still have its peers, and has {peers:?}"
    );
    b1.nft("delete table ip outage\n")?;
    wait::within(MAX_WAIT, "b1 forgets c1", || {
        Ok(!peer_names(b1)?.contains(MOVER))
    })?;
    ping.expect_no_loss(workloads)?;
    join(workloads, MOVER)?;
    workloads.cluster.wait_ready()?;
    start_pods(workloads, MOVER)?;
    pods_reach_each_other(workloads)?;
    let after = agents(workloads, &["b1"])?;
    ensure!(after == before, "restarted: {before:?}, then {after:?}");
    Ok(())
}

/// Kills the kubelet, and deletes the Node as an administrator does.
pub fn leave(workloads: &Workloads, node: &str) -> Result<()> {
    workloads.cluster.machine(node)?.kill_daemon("kubelet")?;
    workloads
        .cluster
        .kubectl(&["delete", "node", node])
        .map(drop)?;
    // The controllers would take minutes to delete the pods.
    let pods = format!("--field-selector=spec.nodeName={node}");
    let delete = ["delete", "pods", "--all-namespaces", &pods, "--force"];
    workloads.cluster.kubectl(&delete).map(drop)
}

/// Starts the kubelet again, which registers the node.
pub fn join(workloads: &Workloads, node: &str) -> Result<()> {
    let cluster = &workloads.cluster;
    let (machine, spec) = (cluster.machine(node)?, cluster.spec(node)?);
    worker::start_kubelet(machine, cluster.control_plane(), spec, cluster.settings())?;
    provider::initialise(cluster, machine, spec)
}

/// Starts the pods of a node that has joined again, once new pods get addresses of its new pod CIDR.
pub fn start_pods(workloads: &mut Workloads, node: &str) -> Result<()> {
    let machine = workloads.cluster.machine(node)?;
    wait::within(
        MAX_WAIT,
        "the list for the runtime has the pod CIDR",
        || {
            let cluster = &workloads.cluster;
            let uid = cluster.get(&format!("node/{node}"), None)?["metadata"]["uid"].clone();
            let objects = cluster.get("ipipnodes", None)?;
            let object = objects["items"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|it| {
                    it["metadata"]["name"] == node
                        && it["metadata"]["ownerReferences"][0]["uid"] == uid
                });
            let list = machine.run("cat", &[LIST])?;
            let range = object.and_then(|it| it["spec"]["podCIDRs"][0].as_str());
            Ok(range.is_some_and(|range| list.contains(range)))
        },
    )?;
    for pod in [objects::pod(node), objects::host_pod(node)] {
        workloads.cluster.apply(&pod.to_string())?;
    }
    workloads.find_pods()
}

/// Expects that no resync of an agent has detached programs.
fn nothing_was_detached(workloads: &Workloads) -> Result<()> {
    for node in ["a1", "a2", "b1"] {
        let log = agent_log(workloads.cluster.machine(node)?)?;
        let line = log.lines().find(|line| line.contains("detached"));
        ensure!(line.is_none(), "the agent of {node}: {line:?}");
    }
    Ok(())
}

/// The logs of a node's agents.
fn agent_log(machine: &Machine) -> Result<String> {
    let script = "cat /var/log/pods/kube-system_ipip-agent-*/agent/*.log";
    machine.run("sh", &["-c", script])
}

pub fn pods_reach_each_other(workloads: &Workloads) -> Result<()> {
    (SCENARIOS[0].attempt)(workloads).map(drop)
}

/// Changes the public address of a node, in the cloud and in the node's annotation.
fn give_public_address(workloads: &mut Workloads, node: &str, address: Ipv4Addr) -> Result<()> {
    let topology = workloads.cluster.topology_mut();
    for spec in topology.nodes.iter_mut().filter(|spec| spec.name == node) {
        spec.public = Some(address);
    }
    workloads
        .cluster
        .fabric()
        .translate(&workloads.cluster.settings().topology)?;
    let annotation = format!("{}={address}", provider::PUBLIC_ENDPOINT);
    let annotate = ["annotate", "--overwrite", "node", node, &annotation];
    workloads.cluster.kubectl(&annotate).map(drop)
}

fn forgets(workloads: &Workloads, node: &str, gone: &str) -> Result<()> {
    let machine = workloads.cluster.machine(node)?;
    wait::within(MAX_WAIT, &format!("{node} forgets {gone}"), || {
        Ok(!peer_names(machine)?.contains(gone))
    })
}

/// The names of a node's peers, by `ipipctl`.
fn peer_names(machine: &Machine) -> Result<BTreeSet<String>> {
    let peers = ipipctl(machine, &["peers"])?;
    let rows = peers.as_array().into_iter().flatten();
    let name = |row: &Value| row["node"].as_str().map(str::to_owned);
    rows.map(|row| name(row).with_context(|| format!("a peer without a name: {peers}")))
        .collect()
}

/// The agents of these nodes: names of their pods, and restarts.
fn agents(workloads: &Workloads, nodes: &[&str]) -> Result<BTreeMap<String, (String, u64)>> {
    let pods = workloads.cluster.get("pods", Some("kube-system"))?;
    let mut agents = BTreeMap::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let (name, node) = (&pod["metadata"]["name"], &pod["spec"]["nodeName"]);
        let (name, node) = (name.as_str().unwrap_or_default(), node.as_str());
        if let Some(node) = node.filter(|node| nodes.contains(node))
            && name.starts_with("ipip-agent-")
        {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
            agents.insert(node.to_owned(), (name.to_owned(), restarts.unwrap_or(0)));
        }
    }
    ensure!(
        agents.len() == nodes.len(),
        "agents of {nodes:?}: {agents:?}"
    );
    Ok(agents)
}

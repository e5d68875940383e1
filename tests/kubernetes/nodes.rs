//! Nodes join, leave and move, and the API server is out of reach for one of them, while others talk.

use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::{
    Machine, control_plane, provider,
    stage::{ROWS, Stage, objects},
    worker,
};
use ipip_testkit::{harness::Test, tests, wait};
use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

const PATIENCE: Duration = Duration::from_secs(60);
/// What the runtime reads.
const LIST: &str = "/etc/cni/net.d/10-ipip.conflist";
/// What an agent logs that has lost the API server.
const CUT_OFF: &str = "the API server does not answer";
/// The node that comes and goes.
const MOVER: &str = "c1";

pub const TESTS: &[Test<Stage>] = tests![
    nodes_leave_join_without_a_pod_cidr_and_change_their_address_without_loss_for_others,
    a_node_deleted_while_an_agent_is_cut_off_is_removed_on_reconnection_and_nothing_is_lost,
];

/// A node leaves, comes back without a pod CIDR, gets one, and changes its public address.
fn nodes_leave_join_without_a_pod_cidr_and_change_their_address_without_loss_for_others(
    stage: &mut Stage,
) -> Result<()> {
    let agents = agents(stage, &["a1", "a2", "b1"])?;
    let talk = Talk::start(stage)?;

    leave(stage, MOVER)?;
    for node in ["a1", "b1"] {
        forgets(stage, node, MOVER)?;
    }
    let control_plane = stage.cluster.control_plane();
    control_plane.kill_daemon("kube-controller-manager")?;
    control_plane::start_controllers(control_plane, stage.cluster.settings(), false)?;
    join(stage, MOVER)?;
    wait::within(PATIENCE, "the agent says that there is no pod CIDR", || {
        let events = stage
            .cluster
            .kubectl(&["get", "events", "--all-namespaces"])?;
        Ok(events.contains("IpipWaiting") && events.contains("no IPv4 pod CIDR yet"))
    })?;
    let control_plane = stage.cluster.control_plane();
    control_plane.kill_daemon("kube-controller-manager")?;
    control_plane::start_controllers(control_plane, stage.cluster.settings(), true)?;
    stage.cluster.wait_ready()?;
    start_pods(stage, MOVER)?;
    pods_talk(stage)?;

    let old = stage.public(MOVER)?;
    let new = Ipv4Addr::new(192, 0, 2, 99);
    for address in [new, old] {
        give_public_address(stage, MOVER, address)?;
        pods_talk(stage).with_context(|| format!("{MOVER} at {address}"))?;
    }

    talk.expect_no_loss(stage)?;
    nothing_was_detached(stage)?;
    let after = self::agents(stage, &["a1", "a2", "b1"])?;
    ensure!(after == agents, "restarted: {agents:?}, then {after:?}");
    Ok(())
}

fn a_node_deleted_while_an_agent_is_cut_off_is_removed_on_reconnection_and_nothing_is_lost(
    stage: &mut Stage,
) -> Result<()> {
    let before = agents(stage, &["b1"])?;
    let b1 = stage.cluster.machine("b1")?;
    let talk = Talk::start(stage)?;
    let cut_offs = || Ok::<_, anyhow::Error>(agent_log(b1)?.matches(CUT_OFF).count());
    let earlier = cut_offs()?;
    let api_server = stage.cluster.settings().api_server()?;
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
    // Else what happens meanwhile is only late: the connection would bring it.
    wait::within(PATIENCE, "the agent of b1 is cut off", || {
        Ok(cut_offs()? > earlier)
    })?;
    leave(stage, MOVER)?;
    forgets(stage, "a1", MOVER)?;
    let peers = peers(b1)?;
    ensure!(peers.contains_key(MOVER), "b1 cannot know yet: {peers:?}");
    b1.nft("delete table ip outage\n")?;
    wait::within(PATIENCE, "b1 forgets c1", || {
        Ok(!self::peers(b1)?.contains_key(MOVER))
    })?;
    talk.expect_no_loss(stage)?;
    join(stage, MOVER)?;
    stage.cluster.wait_ready()?;
    start_pods(stage, MOVER)?;
    pods_talk(stage)?;
    let after = agents(stage, &["b1"])?;
    ensure!(after == before, "restarted: {before:?}, then {after:?}");
    Ok(())
}

/// The kubelet dies and an administrator deletes the Node.
fn leave(stage: &Stage, node: &str) -> Result<()> {
    stage.cluster.machine(node)?.kill_daemon("kubelet")?;
    stage.cluster.kubectl(&["delete", "node", node]).map(drop)?;
    // No controller of the control plane hurries.
    let pods = format!("--field-selector=spec.nodeName={node}");
    let delete = ["delete", "pods", "--all-namespaces", &pods, "--force"];
    stage.cluster.kubectl(&delete).map(drop)
}

/// The kubelet starts again and registers.
fn join(stage: &Stage, node: &str) -> Result<()> {
    let cluster = &stage.cluster;
    let (machine, spec) = (cluster.machine(node)?, cluster.spec(node)?);
    worker::start_kubelet(machine, cluster.control_plane(), spec, cluster.settings())?;
    provider::introduce(cluster, machine, spec)
}

/// Starts the pods of a node that is back, once new pods get addresses of the range that it has now.
fn start_pods(stage: &mut Stage, node: &str) -> Result<()> {
    let machine = stage.cluster.machine(node)?;
    wait::within(
        PATIENCE,
        "the list for the runtime has the pod CIDR",
        || {
            let spec = stage.cluster.get(&format!("node/{node}"), None)?["spec"].clone();
            let list = machine.run("cat", &[LIST])?;
            Ok(spec["podCIDR"]
                .as_str()
                .is_some_and(|range| list.contains(range)))
        },
    )?;
    for pod in [objects::pod(node), objects::host_pod(node)] {
        stage.cluster.apply(&pod.to_string())?;
    }
    stage.find_pods()
}

/// An agent that looks at everything again finds it as it is.
fn nothing_was_detached(stage: &Stage) -> Result<()> {
    for node in ["a1", "a2", "b1"] {
        let log = agent_log(stage.cluster.machine(node)?)?;
        let line = log.lines().find(|line| line.contains("detached"));
        ensure!(line.is_none(), "the agent of {node}: {line:?}");
    }
    Ok(())
}

/// What the agents of a node have logged.
fn agent_log(machine: &Machine) -> Result<String> {
    let script = "cat /var/log/pods/kube-system_ipip-agent-*/agent/*.log";
    machine.run("sh", &["-c", script])
}

fn pods_talk(stage: &Stage) -> Result<()> {
    (ROWS[0].attempt)(stage).map(drop)
}

/// The cloud gives a node another public address, and an administrator says so.
fn give_public_address(stage: &mut Stage, node: &str, address: Ipv4Addr) -> Result<()> {
    let topology = stage.cluster.topology_mut();
    for spec in topology.nodes.iter_mut().filter(|spec| spec.name == node) {
        spec.public = Some(address);
    }
    stage
        .cluster
        .fabric()
        .translate(&stage.cluster.settings().topology)?;
    let annotation = format!("{}={address}", provider::PUBLIC_ENDPOINT);
    let annotate = ["annotate", "--overwrite", "node", node, &annotation];
    stage.cluster.kubectl(&annotate).map(drop)
}

fn forgets(stage: &Stage, node: &str, gone: &str) -> Result<()> {
    let machine = stage.cluster.machine(node)?;
    wait::within(PATIENCE, &format!("{node} forgets {gone}"), || {
        Ok(!peers(machine)?.contains_key(gone))
    })
}

/// Each peer of a node, as its maps have it, with its underlay address.
fn peers(machine: &Machine) -> Result<BTreeMap<String, String>> {
    let program = ipip_testkit::shell::own_program("ipipctl")?;
    let program = program.to_str().context("a path that is no UTF-8")?;
    let said = machine.run(program, &["peers", "--output=json"])?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let rows = said.as_array().or_else(|| said["peers"].as_array());
    let rows = rows.with_context(|| format!("ipipctl peers said {said}"))?;
    Ok(rows
        .iter()
        .map(|row| {
            let name = row["node"].as_str().unwrap_or_default();
            (name.to_owned(), row["underlay"].to_string())
        })
        .collect())
}

/// The agents of these nodes: pod and restarts.
fn agents(stage: &Stage, nodes: &[&str]) -> Result<BTreeMap<String, (String, u64)>> {
    let pods = stage.cluster.get("pods", Some("kube-system"))?;
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

/// A pod of a1 pings one of b1, twenty times a second.
struct Talk;

impl Talk {
    fn start(stage: &Stage) -> Result<Self> {
        let script = format!(
            "ping -i 0.05 {} > /tmp/talk 2>&1 & echo $! > /tmp/talk.pid",
            stage.pod("b1")?
        );
        stage.in_pod("on-a1", &script)?;
        Ok(Self)
    }

    /// Ends it; fails unless every packet had its answer.
    fn expect_no_loss(self, stage: &Stage) -> Result<()> {
        // The last one may be under way.
        let script = "kill -INT $(cat /tmp/talk.pid); sleep 0.5; tail -n 3 /tmp/talk";
        let said = stage.in_pod("on-a1", script)?;
        let count = |what: &str| -> Option<u32> {
            let before = said.split(what).next()?.trim_end();
            before.rsplit([' ', '\n']).next()?.parse().ok()
        };
        let counts = count("packets transmitted").zip(count("packets received"));
        let (sent, received) = counts.with_context(|| format!("ping said {said}"))?;
        ensure!(sent > 100, "only {sent} packets were sent: {said}");
        ensure!(
            sent - received <= 1,
            "pods of a1 and b1 lost {} of {sent} packets",
            sent - received
        );
        Ok(())
    }
}

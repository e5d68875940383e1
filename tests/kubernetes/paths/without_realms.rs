//! A real cluster whose Nodes have neither a region nor a realm, in clouds of which two have the same private range.

use super::{RETURN, both_use};
use crate::nodes;
use anyhow::{Context, Result, bail, ensure};
use ipip_lab::{
    foreign_machine::ForeignMachine,
    kubernetes::{
        container_id,
        provider::{REALM, REGION},
        scenarios::Workloads,
    },
};
use ipip_testkit::{
    capture::{Capture, CaptureDirection, Packet},
    harness::Test,
    tests, wait,
};
use std::time::{Duration, Instant};

pub const TESTS: &[Test<Workloads>] = tests![
    nodes_without_realm_and_region_use_their_lan_and_the_public_path_to_all_others,
    a_machine_with_the_address_of_a_node_elsewhere_receives_no_packet_of_pods_and_nodes,
];

/// What an agent remembers of its paths.
const PATHS: &str = "/var/lib/ipip/paths.json";
/// Kills the agent, and makes the next one begin without what this one has found. Arguments: the container and the file.
const FORGET: &str =
    "ctr --namespace k8s.io tasks kill --signal SIGKILL \"$1\" && rm --force \"$2\"";

fn nodes_without_realm_and_region_use_their_lan_and_the_public_path_to_all_others(
    workloads: &mut Workloads,
) -> Result<()> {
    for node in workloads.nodes() {
        let object = workloads.cluster.get(&format!("node/{node}"), None)?;
        let labels = &object["metadata"]["labels"];
        ensure!(
            labels[REALM].is_null() && labels[REGION].is_null(),
            "{node}: {labels:#}"
        );
        let object = workloads.cluster.get(&format!("ipipnode/{node}"), None)?;
        ensure!(object["spec"]["realm"].is_null(), "{object:#}");
    }
    all_use_lan_or_public_path(workloads)
}

/// Waits until each node uses its LAN to the nodes of its cloud, and the public path to all others. Pods of all nodes send to each
/// other before, because peers without traffic are probed rarely.
fn all_use_lan_or_public_path(workloads: &Workloads) -> Result<()> {
    nodes::pods_reach_each_other(workloads)?;
    for (_, one) in workloads.cluster.nodes() {
        for (_, other) in workloads.cluster.nodes() {
            let path = match one.cloud == other.cloud {
                true => "private-ipip",
                false => "public-ipip",
            };
            if one.name < other.name {
                both_use(workloads, [&one.name, &other.name], path, RETURN)?;
            }
        }
    }
    Ok(())
}

/// A machine in the LAN of a1 and a2 with the InternalIP of b1.
fn impostor(workloads: &Workloads) -> Result<ForeignMachine<'_>> {
    let cluster = &workloads.cluster;
    let gateway = cluster.fabric().gateway("cloud-a")?;
    let (wire, address) = ((gateway, "impostor"), workloads.internal("b1")?);
    let machine = ForeignMachine::connect(cluster.prefix(), cluster.trash(), wire, address)?;
    gateway.ip("link set impostor master lan0")?;
    Ok(machine)
}

/// The machine is there before the agents of its LAN begin, and these remember nothing. Pods send to each other, and the API
/// server to the kubelet of b1.
fn a_machine_with_the_address_of_a_node_elsewhere_receives_no_packet_of_pods_and_nodes(
    workloads: &mut Workloads,
) -> Result<()> {
    let impostor = impostor(workloads)?;
    let capture = Capture::start(&impostor.host, "eth0", CaptureDirection::In)?;
    let began = Instant::now();
    for node in ["a1", "a2"] {
        forget_paths(workloads, node)?;
    }
    for node in ["a1", "a2"] {
        let machine = workloads.cluster.machine(node)?;
        wait::within(RETURN, &format!("the agent of {node} has paths"), || {
            workloads.in_pod("on-b1", "true").ok();
            Ok(machine.output("test", &["-s", PATHS])?.status.success())
        })?;
    }
    all_use_lan_or_public_path(workloads)?;
    let seconds = began.elapsed().as_secs_f64();
    eprintln!(
        "        all paths are found {seconds:.1} s after the agents of a1 and a2 were killed"
    );
    let is_probed = capture.wait_for(Packet::is_probe).is_some();
    while began.elapsed() < Duration::from_secs(15) {
        nodes::pods_reach_each_other(workloads)?;
        workloads.in_pod("on-b1", "true")?;
    }
    all_use_lan_or_public_path(workloads)?;
    let packets = capture.stop()?;
    if let Some(packet) = packets.iter().find(|it| !it.is_probe()) {
        bail!("a packet arrived: {packet}");
    }
    ensure!(is_probed, "no probe arrived");
    Ok(())
}

/// Kills the agent of a node. The next one begins as after a boot.
fn forget_paths(workloads: &Workloads, node: &str) -> Result<()> {
    let pods = workloads.cluster.get("pods", Some("kube-system"))?;
    let mut pods = pods["items"].as_array().into_iter().flatten();
    let agent = pods.find(|it| {
        it["metadata"]["labels"]["app.kubernetes.io/component"] == "agent"
            && it["spec"]["nodeName"] == node
    });
    let agent = agent.with_context(|| format!("{node} has no agent"))?;
    let id = container_id(agent)?;
    let machine = workloads.cluster.machine(node)?;
    machine
        .run("sh", &["-c", FORGET, "sh", id, PATHS])
        .map(drop)
}

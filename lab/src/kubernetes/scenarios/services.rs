//! Services that kube-proxy implements, and host ports.

use super::{
    Scenario, Workloads,
    objects::{HOST_PORT, LOCAL_NODE_PORT, NODE_PORT, WEB},
};
use crate::topology::STRANGER;
use anyhow::{Result, ensure};
use ipip_testkit::http;
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

pub const SCENARIO: Scenario = Scenario {
    name: "services_and_host_ports_reach_pods_of_every_cloud_from_pods_and_nodes",
    what: "pod, node -> ClusterIP, hostPort",
    by_hand: "flannel and kube-proxy",
    holds_without: false,
    attempt: inside,
};

pub const NODE_PORTS: Scenario = Scenario {
    name: "node_ports_serve_the_internet_with_either_external_traffic_policy",
    what: "Internet -> NodePort, externalTrafficPolicy Cluster and Local",
    by_hand: "flannel and kube-proxy",
    holds_without: false,
    attempt: outside,
};

/// Requests to a Service. The probability that one of four pods gets none of them is 1 in 2,500.
const TIMES: usize = 32;

fn inside(workloads: &Workloads) -> Result<String> {
    let nodes = workloads.nodes();
    let all: BTreeSet<String> = nodes.iter().map(|node| format!("on-{node}")).collect();
    let web = (workloads.service("web")?, WEB);
    for node in &nodes {
        workloads.soon(|| {
            let answers =
                workloads.ask_from_pod(&format!("on-{node}"), &[web; TIMES], "/hostname")?;
            expect(&format!("on-{node} -> ClusterIP"), answers, &all)
        })?;
        workloads.soon(|| {
            let machine = workloads.cluster.machine(node)?;
            let server = SocketAddrV4::new(web.0, web.1);
            let asked = (0..TIMES).map(|_| http::get_text(machine, server, "/hostname"));
            expect(
                &format!("{node} -> ClusterIP"),
                asked.collect::<Result<Vec<_>>>()?,
                &all,
            )
        })?;
    }
    let host_ports: Vec<(Ipv4Addr, u16)> = nodes
        .iter()
        .map(|node| Ok((workloads.internal(node)?, HOST_PORT)))
        .collect::<Result<_>>()?;
    for node in &nodes {
        workloads.soon(|| {
            let pod = format!("on-{node}");
            let answers = workloads.ask_from_pod(&pod, &host_ports, "/hostname")?;
            let wanted: Vec<String> = nodes.iter().map(|node| format!("on-{node}")).collect();
            ensure!(answers == wanted, "{pod} -> host ports: {answers:?}");
            Ok(())
        })?;
    }
    Ok(format!(
        "each of {} pods and nodes reaches all {} pods behind {}; every pod reaches every hostPort",
        nodes.len(),
        all.len(),
        web.0
    ))
}

fn outside(workloads: &Workloads) -> Result<String> {
    let nodes = workloads.nodes();
    let all: BTreeSet<String> = nodes.iter().map(|node| format!("on-{node}")).collect();
    let stranger = &workloads.cluster.fabric().stranger;
    for node in &nodes {
        let server = SocketAddrV4::new(workloads.public(node)?, NODE_PORT);
        workloads.soon(|| {
            let asked = (0..TIMES).map(|_| http::get_text(stranger, server, "/hostname"));
            let answers = asked.collect::<Result<Vec<_>>>()?;
            expect(&format!("Internet -> {node}, Cluster"), answers, &all)
        })?;
        // Pods of other clouds use the node's private address.
        let internal = (workloads.internal(node)?, NODE_PORT);
        workloads.soon(|| {
            let answers = workloads.ask_from_pod("on-c1", &[internal; TIMES], "/hostname")?;
            expect(&format!("on-c1 -> {node}, Cluster"), answers, &all)
        })?;
    }
    let there = SocketAddrV4::new(workloads.public("b1")?, LOCAL_NODE_PORT);
    let seen = workloads.soon(|| http::get_text(stranger, there, "/clientip"))?;
    ensure!(
        seen.starts_with(&format!("{STRANGER}:")),
        "Local should keep the client's address {STRANGER}, not show {seen}"
    );
    let elsewhere = SocketAddrV4::new(workloads.public("c1")?, LOCAL_NODE_PORT);
    ensure!(
        http::get_text(stranger, elsewhere, "/clientip").is_err(),
        "Local should answer on the pod's node only"
    );
    Ok(format!(
        "Cluster: all {} pods from every node; Local: b1's pod sees {STRANGER}",
        all.len()
    ))
}

fn expect(path: &str, answers: Vec<String>, all: &BTreeSet<String>) -> Result<()> {
    let answers: BTreeSet<String> = answers.into_iter().collect();
    ensure!(answers == *all, "{path}: answers of {answers:?} alone");
    Ok(())
}

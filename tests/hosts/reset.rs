//! A machine that loses its power and boots again from the same disk.

use crate::{
    Nodes,
    nodes::{reach_each_other, resolve},
};
use anyhow::{Context, Result, ensure};
use ipip_lab::{
    kubernetes::condition,
    virtual_machines::{Site, VirtualMachine},
};
use ipip_testkit::{harness::Test, tests};
use serde_json::Value;
use std::collections::BTreeSet;

pub const TESTS: &[Test<Nodes>] =
    tests![after_a_power_failure_the_node_is_ready_only_with_its_datapath_and_all_pods_recover];

fn after_a_power_failure_the_node_is_ready_only_with_its_datapath_and_all_pods_recover(
    nodes: &mut Nodes,
) -> Result<()> {
    let site = nodes.with_network()?;
    // CoreDNS runs there, too.
    let machine = site.machine("m1")?;
    let before = boot_id(&site.get("node/m1")?);
    // As a power failure leaves them soon after an ADD.
    machine.shell("truncate --size=0 /var/lib/cni/results/ipip-* && sync")?;
    site.reset(machine)?;
    let mut node = Value::Null;
    site.wait("m1 is ready after the boot", || {
        node = site.get("node/m1")?;
        Ok(boot_id(&node) != before && condition(&node, "Ready") == Some("True"))
    })?;
    machine
        .shell("ls /sys/fs/bpf/ipip/links/* && ip link show ipip0")
        .context("the node was ready before its datapath existed")?;
    site.wait("every pod of m1 is ready", || {
        let pods = pods_of(site, "m1")?;
        Ok(pods
            .iter()
            .all(|pod| condition(pod, "Ready") == Some("True")))
    })?;
    reach_each_other(site)?;
    resolve(site)?;
    site.wait("only running pods have addresses", || {
        Ok(leases(machine)? == addresses(site, "m1")?)
    })
    .with_context(|| format!("leases {:?}", leases(machine)))
}

fn boot_id(node: &Value) -> String {
    node["status"]["nodeInfo"]["bootID"].to_string()
}

fn pods_of(site: &Site, node: &str) -> Result<Vec<Value>> {
    let mut pods = site.get("pods --all-namespaces")?;
    let Some(pods) = pods["items"].as_array_mut() else {
        return Ok(Vec::new());
    };
    pods.retain(|pod| pod["spec"]["nodeName"] == node);
    Ok(std::mem::take(pods))
}

/// The addresses of the pods on a node, without those of the host's network.
fn addresses(site: &Site, node: &str) -> Result<BTreeSet<String>> {
    let pods = pods_of(site, node)?;
    let pods = pods.iter().filter(|pod| pod["spec"]["hostNetwork"] != true);
    Ok(pods
        .filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned))
        .collect())
}

/// The addresses that the plugin host-local has given out.
fn leases(machine: &VirtualMachine) -> Result<BTreeSet<String>> {
    let listed = machine.shell("cat /etc/cni/net.d/*ipip*.conflist")?;
    let list: Value = serde_json::from_str(&listed).with_context(|| listed.clone())?;
    let ipam = &list["plugins"][0]["ipam"];
    let folder = ipam["dataDir"].as_str().unwrap_or("/var/lib/cni/networks");
    let name = list["name"].as_str().context("a list without a name")?;
    let files = machine.shell(&format!("ls {folder}/{name}"))?;
    let found: BTreeSet<String> = files
        .split_whitespace()
        .filter(|file| file.parse::<std::net::Ipv4Addr>().is_ok())
        .map(str::to_owned)
        .collect();
    ensure!(!found.is_empty(), "no lease is in {folder}/{name}: {files}");
    Ok(found)
}

//! CHECK finds everything that is missing.

use crate::del::remove_files;
use anyhow::{Context, Result, ensure};
use ipip_abi::Pod;
use ipip_testkit::{cni_node::CniNode, host::Host};
use serde_json::{Value, json};

type Break = fn(&CniNode, &Host, &Names) -> Result<()>;

struct Names {
    host_side: String,
    address: String,
}

#[test]
fn check_of_a_whole_pod_finds_nothing() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let result = node.add("c1", &pod)?;
    let check = node.call("CHECK", "c1", Some(&pod));
    check.with("prevResult", result).run()?.success()?;
    Ok(())
}

#[test]
fn check_finds_a_missing_link() -> Result<()> {
    finds("is gone", |_, pod, _| pod.ip("link delete eth0").map(drop))
}

#[test]
fn check_finds_a_link_that_is_down() -> Result<()> {
    finds("down", |node, _, names| {
        node.ip(&format!("link set {} down", names.host_side))
            .map(drop)
    })
}

#[test]
fn check_finds_a_missing_address() -> Result<()> {
    finds("has no address", |_, pod, names| {
        pod.ip(&format!("address delete {}/32 dev eth0", names.address))
            .map(drop)
    })
}

#[test]
fn check_finds_a_missing_route_of_the_pod() -> Result<()> {
    finds("route 0.0.0.0/0 on eth0", |_, pod, _| {
        pod.ip("route delete default").map(drop)
    })
}

#[test]
fn check_finds_a_missing_route_of_the_host() -> Result<()> {
    finds("route 10.42.", |node, _, names| {
        node.ip(&format!("route delete {}", names.address))
            .map(drop)
    })
}

#[test]
fn check_finds_a_missing_program() -> Result<()> {
    finds("program to_pod", |node, _, names| {
        remove_files(&node.pins().links(), &format!("{}@to_pod", names.host_side))
    })
}

#[test]
fn check_finds_a_missing_map_entry() -> Result<()> {
    finds("pod entry of 10.42.", |node, _, names| {
        let address: std::net::Ipv4Addr = names.address.parse()?;
        Ok(node.maps()?.pods.remove(&address.into())?)
    })
}

#[test]
fn check_finds_a_limited_pod_that_the_map_entry_does_not_mark_as_limited() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let limits = json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}});
    let add = node.call("ADD", "c1", Some(&pod));
    let result = add.with("runtimeConfig", limits.clone()).run()?.success()?;
    let check = node.call("CHECK", "c1", Some(&pod));
    let check = check.with("prevResult", result);
    // A runtime may or may not repeat the limits.
    check.clone().run()?.success()?;
    let check = check.with("runtimeConfig", limits);
    check.run()?.success()?;
    let mut pods = node.maps()?.pods;
    let (address, entry) = pods.iter().next().context("no entry")??;
    pods.insert(address, Pod { flags: 0, ..entry }, 0)?;
    check.run()?.failure(104, &["bandwidth is limited"])
}

#[test]
fn check_finds_a_missing_neighbour_of_the_pod() -> Result<()> {
    finds("neighbour 169.254.1.1", |_, pod, _| {
        pod.ip("neighbour delete 169.254.1.1 dev eth0").map(drop)
    })
}

#[test]
fn check_finds_a_missing_neighbour_of_the_host() -> Result<()> {
    finds("neighbour 10.42.", |node, _, names| {
        let Names { host_side, address } = names;
        node.ip(&format!("neighbour delete {address} dev {host_side}"))
            .map(drop)
    })
}

#[test]
fn check_finds_a_missing_lease() -> Result<()> {
    finds("host-local", |node, _, _| {
        remove_files(&node.leases(), "10.")
    })
}

/// Expects that CHECK fails after `break_it` with an error that contains `named`, and that DEL then leaves nothing.
fn finds(named: &str, break_it: Break) -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let result = node.add("c1", &pod)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let names = Names {
        host_side: text(&result["interfaces"][0]["name"])?,
        address: text(&result["ips"][0]["address"])?.replace("/32", ""),
    };
    break_it(&node, &pod, &names)?;
    let check = node.call("CHECK", "c1", Some(&pod));
    let found = check.with("prevResult", result).run()?;
    found.failure(104, &[named])?;
    ensure!(found.printed["cniVersion"] == "1.0.0");
    node.del("c1")?;
    node.expect_no_trace()
}

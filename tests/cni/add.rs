//! The interface, addresses, routes and sizes that ADD sets up in a pod.

use anyhow::{Context, Result, ensure};
use ipip_netlink::sysctl;
use ipip_testkit::{
    cni_node::{CniNode, POD_GSO_MAX},
    shell,
};
use serde_json::{Value, json};
use std::{net::Ipv4Addr, process::Command};

#[test]
fn a_pod_has_a_32_a_gateway_with_a_permanent_neighbour_and_the_datapaths_sizes() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let result = node.add("c1", &pod)?;
    let address = address_of(&result)?;
    ensure!(result["ips"][0]["gateway"] == "169.254.1.1", "{result}");
    let addresses = pod.ip("-4 -o address show eth0")?;
    ensure!(
        addresses.contains(&format!("inet {address}/32")),
        "{addresses}"
    );
    let routes = pod.ip("route")?;
    ensure!(
        routes.contains("default via 169.254.1.1 dev eth0"),
        "{routes}"
    );
    let neighbours = pod.ip("neighbour show dev eth0")?;
    let mac = result["interfaces"][0]["mac"].as_str().context("no MAC")?;
    ensure!(
        neighbours.contains("169.254.1.1")
            && neighbours.contains(mac)
            && neighbours.contains("PERMANENT"),
        "{neighbours}"
    );
    let link = pod.ip("link show eth0")?;
    ensure!(link.contains("mtu 1480"), "{link}");
    let veth = result["interfaces"][0]["name"]
        .as_str()
        .context("no veth")?;
    for (host, ifname) in [(&pod, "eth0"), (&*node, veth)] {
        ensure!(host.gso_max(ifname)? == POD_GSO_MAX, "{ifname}");
    }
    let small = node.pod("small")?;
    let call = node
        .call("ADD", "c2", Some(&small))
        .with("mtu", json!(1300));
    call.run()?.success()?;
    ensure!(small.ip("link show eth0")?.contains("mtu 1300"));
    node.del("c1")?;
    node.del("c2")?;
    node.expect_no_trace()
}

#[test]
fn ipv6_link_local_is_off_and_the_offloads_are_on_that_the_datapath_carries() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let result = node.add("c1", &pod)?;
    let host_side = result["interfaces"][0]["name"]
        .as_str()
        .context("no name")?;
    for (side, ifname) in [(&pod, "eth0"), (&*node, host_side)] {
        let key = format!("net.ipv6.conf.{ifname}.disable_ipv6");
        ensure!(side.enter(|| sysctl(&key))?? == "1");
        ensure!(side.ip(&format!("-6 address show {ifname}"))?.is_empty());
        let features = side.output(Command::new("ethtool").args(["-k", ifname]))?;
        let features = shell::printed("ethtool", Ok(features))?;
        for feature in [
            "tx-checksumming",
            "scatter-gather",
            "tcp-segmentation-offload",
            "generic-segmentation-offload",
        ] {
            let on = format!("{feature}: on");
            ensure!(features.contains(&on), "{ifname}: {features}");
        }
        if ifname == "eth0" {
            for tunnel in [
                "tx-udp_tnl",
                "tx-udp_tnl-csum",
                "tx-gre",
                "tx-ipxip4",
                "tx-sctp",
            ] {
                let off = format!("{tunnel}-segmentation: off");
                ensure!(features.contains(&off), "{tunnel}: {features}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_pods_mac_may_come_from_runtime_config_args_or_cni_args() -> Result<()> {
    let node = CniNode::ready()?;
    let mac = |last: u8| format!("02:00:00:00:00:{last:02x}");
    let by_runtime = json!({"mac": mac(1), "portMappings": [{"hostPort": 1, "containerPort": 2}]});
    for (name, last, field, value, cni_args) in [
        (
            "c1",
            1,
            "runtimeConfig",
            by_runtime,
            format!("IgnoreUnknown=1;MAC={}", mac(9)),
        ),
        (
            "c2",
            2,
            "args",
            json!({"cni": {"mac": mac(2)}, "other": 1}),
            String::new(),
        ),
        (
            "c3",
            3,
            "args",
            json!({}),
            format!("IgnoreUnknown=1;K8S_POD_NAME=web;MAC={}", mac(3)),
        ),
    ] {
        let pod = node.pod(name)?;
        let add = node.call("ADD", name, Some(&pod)).with(field, value);
        let result = add.env("CNI_ARGS", &cni_args).run()?.success()?;
        ensure!(result["interfaces"][1]["mac"] == mac(last), "{result}");
        ensure!(pod.ip("link show eth0")?.contains(&mac(last)));
    }
    Ok(())
}

#[test]
fn the_pods_address_may_come_from_runtime_config_args_or_cni_args() -> Result<()> {
    let node = CniNode::ready()?;
    let ips = |last: u8| json!([format!("10.42.7.{last}/16")]);
    for (name, last, field, value, cni_args) in [
        ("c1", 1, "runtimeConfig", json!({"ips": ips(1)}), ""),
        ("c2", 2, "args", json!({"cni": {"ips": ips(2)}}), ""),
        ("c3", 3, "args", json!({}), "IgnoreUnknown=1;IP=10.42.7.3"),
    ] {
        let pod = node.pod(name)?;
        let add = node.call("ADD", name, Some(&pod)).with(field, value);
        let result = add.env("CNI_ARGS", cni_args).run()?.success()?;
        ensure!(
            address_of(&result)? == Ipv4Addr::new(10, 42, 7, last),
            "{result}"
        );
    }
    // The same address again is refused, and stays with the first pod.
    let pod = node.pod("late")?;
    let add = node.call("ADD", "c4", Some(&pod));
    let add = add.with("runtimeConfig", json!({"ips": ips(1)}));
    ensure!(!add.run()?.success);
    ensure!(node.traces()?.len() == 3 * 5, "{:?}", node.traces()?);
    Ok(())
}

/// Reads the address of a result.
pub fn address_of(result: &Value) -> Result<Ipv4Addr> {
    let text = result["ips"][0]["address"].as_str().context("no address")?;
    Ok(text.trim_end_matches("/32").parse()?)
}

//! Pods in the host network, by InternalIP; and ports that stay closed to the Internet.

use super::{Scenario, Workloads, objects::HOST_WEB};
use crate::kubernetes::certificates::API_PORT;
use anyhow::{Context, Result, ensure};
use std::net::SocketAddrV4;

/// Port of the kubelets.
const KUBELET: u16 = 10250;

pub const SCENARIO: Scenario = Scenario {
    name: "host_network_pods_of_different_clouds_reach_each_other_by_internal_ip",
    what: "hostNetwork pod -> hostNetwork pod",
    by_hand: "-",
    holds_without: false,
    attempt: host_pods,
};

pub const CLOSED: Scenario = Scenario {
    name: "the_kubelets_port_is_closed_to_the_internet",
    what: "port 10250 closed to the Internet, while all of this works",
    by_hand: "open",
    holds_without: true,
    attempt: closed,
};

fn host_pods(workloads: &Workloads) -> Result<String> {
    let address = |node: &str| workloads.internal(node);
    let pairs = workloads.expect_all_connected("host", HOST_WEB, address, str::to_owned)?;
    Ok(format!("{pairs} pairs, each by its InternalIP"))
}

fn closed(workloads: &Workloads) -> Result<String> {
    let stranger = &workloads.cluster.fabric().stranger;
    workloads.on_each(|node| {
        let kubelet = SocketAddrV4::new(workloads.public(node)?, KUBELET);
        ensure!(stranger.connect(kubelet).is_err(), "{kubelet} is open");
        // The control: the kubelet listens, and is reachable from inside.
        let inside = SocketAddrV4::new(workloads.internal(node)?, KUBELET);
        let control_plane = workloads.cluster.control_plane();
        workloads
            .soon(|| control_plane.connect(inside))
            .with_context(|| format!("the control plane should reach the kubelet of {node}"))
            .map(drop)
    })?;
    let api_server = SocketAddrV4::new(workloads.public("a1")?, API_PORT);
    stranger
        .connect(api_server)
        .context("the control: the API server should be open")?;
    Ok("a stranger cannot connect to any kubelet; the control plane can".into())
}

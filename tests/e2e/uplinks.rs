//! Nodes with two uplinks: peers behind each of them, and NAT of the one that kubelet's address is not on.

use crate::reach::everything_passes;
use anyhow::{Context, Result, ensure};
use ipip_abi::wire::{PROTO_IPIP, PROTO_UDP};
use ipip_lab::{Lab, LabNode, LabPod};
use ipip_testkit::{
    capture::{Capture, CaptureDirection, Packet},
    harness::Test,
    ping::Ping,
    sequence::Sequence,
    tests, wait,
};
use std::{fs, net::Ipv4Addr};

pub const TESTS: &[Test<Lab>] = tests![
    pods_behind_either_uplink_are_reached,
    packets_leave_by_the_uplink_that_the_route_to_the_peer_names,
    a_new_order_of_a_nodes_internal_ips_loses_no_packet,
];

pub const NAT_ELSEWHERE_TESTS: &[Test<Lab>] = tests![
    pods_reach_each_other_if_the_public_address_belongs_to_another_uplink_than_the_internal_ip,
    the_outer_source_is_that_of_the_route_between_realms_and_an_internal_ip_inside,
    nodes_reach_pods_of_other_realms_with_the_internal_ip_of_another_uplink,
    pods_of_a_node_whose_internal_ip_is_on_no_interface_are_reached_and_it_reports_the_address,
    policy_routing_by_source_chooses_the_uplink_inside_a_realm,
];

fn pods_behind_either_uplink_are_reached(lab: &Lab) -> Result<()> {
    for peer in ["a2", "a3"] {
        everything_passes(lab.pod("a1")?, lab.pod(peer)?)?;
        everything_passes(lab.pod(peer)?, lab.pod("a1")?)?;
    }
    everything_passes(lab.pod("a2")?, lab.pod("a3")?)
}

fn packets_leave_by_the_uplink_that_the_route_to_the_peer_names(lab: &Lab) -> Result<()> {
    let pod = lab.pod("a1")?;
    for (peer, uplink) in [("a2", "eth0"), ("a3", "eth1")] {
        let to = lab.pod(peer)?;
        let capture = Capture::start(pod.node(), uplink, CaptureDirection::Out)?;
        Ping::to(to.address()).reply_ttl(pod)?;
        let packets = capture.stop()?;
        let mut inner = packets
            .iter()
            .filter(|it| it.is_ipip())
            .filter_map(Packet::inner);
        ensure!(
            inner.any(|it| it.is_echo_request(pod.address(), to.address())),
            "{uplink}: {packets:?}"
        );
    }
    Ok(())
}

fn a_new_order_of_a_nodes_internal_ips_loses_no_packet(lab: &Lab) -> Result<()> {
    const PER_SECOND: u64 = 2000;
    let (pod, peers) = (lab.pod("a1")?, ["a2", "a3"]);
    let inventory = lab.topology().inventory();
    let mut streams = Vec::new();
    for (number, peer) in peers.into_iter().enumerate() {
        let peer = lab.pod(peer)?;
        // The first packet of a path may be lost during address resolution, which is not tested here.
        Ping::to(peer.address()).reply_ttl(pod)?;
        let port = 7200 + number as u16;
        streams.push(Sequence::start(pod, peer, peer.at(port), PER_SECOND)?);
        streams.push(Sequence::start(peer, pod, pod.at(port), PER_SECOND)?);
    }
    let reorder = || {
        for round in 0..4 {
            let mut nodes = inventory.clone();
            ensure!(nodes[0].name == "a1" && nodes[0].internal_ips.len() == 2);
            if round % 2 == 0 {
                nodes[0].internal_ips.reverse();
            }
            let first = nodes[0].internal_ips[0];
            lab.write_inventory(&nodes)?;
            wait::until("a2 and a3 know the new order", || {
                let mut known = peers.iter().map(|peer| underlay(lab.node(peer)?, "a1"));
                known.try_fold(true, |all, it| Ok(all && it? == first))
            })?;
            streams[0].wait_for(PER_SECOND)?;
        }
        Ok(())
    };
    let reordered = reorder();
    lab.write_inventory(&inventory)?;
    for stream in streams {
        let tallied = stream.stop()?;
        ensure!(tallied.sent > PER_SECOND, "too few packets: {tallied:?}");
        ensure!(
            tallied.lost() == 0 && tallied.duplicates == 0,
            "{tallied:?}"
        );
    }
    reordered
}

/// The address to which `node` sends packets for the peer.
fn underlay(node: &LabNode, peer: &str) -> Result<Ipv4Addr> {
    let index = node.peer_index(peer)?;
    Ok(node.maps()?.peers.get(&index.into(), 0)?.underlay.into())
}

fn pods_reach_each_other_if_the_public_address_belongs_to_another_uplink_than_the_internal_ip(
    lab: &Lab,
) -> Result<()> {
    // a1 to b1 is `ipip`, all paths of a2 are `udp`.
    for (one, other) in [("a1", "b1"), ("a2", "b1"), ("a1", "a2")] {
        everything_passes(lab.pod(one)?, lab.pod(other)?)?;
        everything_passes(lab.pod(other)?, lab.pod(one)?)?;
    }
    Ok(())
}

fn the_outer_source_is_that_of_the_route_between_realms_and_an_internal_ip_inside(
    lab: &Lab,
) -> Result<()> {
    for (from, to, uplink, protocol) in [
        ("a1", "b1", 0, PROTO_IPIP),
        ("a2", "b1", 0, PROTO_UDP),
        ("a1", "a2", 1, PROTO_UDP),
        ("a2", "a1", 1, PROTO_UDP),
    ] {
        let pod = lab.pod(from)?;
        let source = pod.node().spec().addresses[uplink];
        leaves(pod, lab.pod(to)?, uplink, source, protocol)
            .with_context(|| format!("{from} to {to}"))?;
    }
    Ok(())
}

/// Expects that a tunnel packet from the node of `pod` leaves through `eth` and this number, with this source.
fn leaves(pod: &LabPod, to: &LabPod, uplink: usize, source: Ipv4Addr, protocol: u8) -> Result<()> {
    let capture = Capture::start(pod.node(), &format!("eth{uplink}"), CaptureDirection::Out)?;
    Ping::to(to.address()).reply_ttl(pod)?;
    let packets = capture.stop()?;
    let mut tunnel = packets.iter().filter(|it| it.protocol == protocol.into());
    ensure!(tunnel.any(|it| it.source == source), "{packets:?}");
    Ok(())
}

fn nodes_reach_pods_of_other_realms_with_the_internal_ip_of_another_uplink(
    lab: &Lab,
) -> Result<()> {
    for (one, other) in [("a1", "b1"), ("a2", "b1"), ("a1", "a2")] {
        Ping::to(lab.pod(other)?.address()).reply_ttl(lab.node(one)?)?;
        Ping::to(lab.pod(one)?.address()).reply_ttl(lab.node(other)?)?;
    }
    Ok(())
}

fn pods_of_a_node_whose_internal_ip_is_on_no_interface_are_reached_and_it_reports_the_address(
    lab: &Lab,
) -> Result<()> {
    for peer in ["a1", "a2", "b1"] {
        everything_passes(lab.pod("c1")?, lab.pod(peer)?)?;
        everything_passes(lab.pod(peer)?, lab.pod("c1")?)?;
    }
    for node in lab.nodes() {
        let report = fs::read_to_string(node.folder().join("state/report.json"))?;
        let is_reported = report.contains("InternalIpNotLocal");
        ensure!(is_reported == (node.spec().name == "c1"), "{report}");
        ensure!(!report.contains("SourceOfAnotherUplink"), "{report}");
    }
    Ok(())
}

fn policy_routing_by_source_chooses_the_uplink_inside_a_realm(lab: &Lab) -> Result<()> {
    const NETWORK: &str = "10.9.0.0/24";
    let (pod, to) = (lab.pod("a1")?, lab.pod("a2")?);
    let node = pod.node();
    let source = node.internal_ip();
    let index = node.peer_index("a2")?;
    let path = || Ok::<_, anyhow::Error>(node.maps()?.peers.get(&index.into(), 0)?);
    let before = path()?;
    // The gateway returns the packets into the network, so that its MAC shows which route was chosen.
    node.ip(&format!("route add {NETWORK} via 10.9.0.1 table 7"))?;
    // Now the main table's route to a2 is the default route through eth0.
    node.ip(&format!("route del {NETWORK} dev eth1"))?;
    node.ip(&format!("rule add from {source} table 7"))?;
    wait::until("a1 follows the rule", || {
        let now = path()?;
        Ok(now.ifindex == before.ifindex && now.next_hop_mac != before.next_hop_mac)
    })?;
    leaves(pod, to, 1, source, PROTO_UDP)?;
    node.ip(&format!(
        "route add {NETWORK} dev eth1 src {source} proto kernel scope link"
    ))?;
    node.ip(&format!("rule del from {source} table 7"))?;
    node.ip("route flush table 7")?;
    wait::until("a1 sends to a2 directly again", || {
        Ok(path()?.next_hop_mac == before.next_hop_mac)
    })
}

//! Which pods and nodes reach each other, and with which source address.

use anyhow::{Context, Result, ensure};
use etherparse::ip_number;
use ipip_abi::Counter;
use ipip_lab::{Lab, LabNode, LabPod, topology::WEB};
use ipip_testkit::{
    capture::{Capture, CaptureDirection, tunnel_packets},
    echo::{EchoServer, tcp_exchange, udp_exchange},
    harness::Test,
    host::Host,
    ping::{Answer, Ping},
    tests, wait,
};
use std::net::SocketAddrV4;

pub const EVERYWHERE: &[Test<Lab>] = tests![
    pods_of_one_node_reach_each_other,
    pods_in_one_cloud_reach_each_other,
    pods_in_clouds_with_the_same_private_range_reach_each_other,
    pods_in_clouds_with_different_ranges_reach_each_other,
    node_reaches_the_internal_ip_of_a_node_in_another_cloud,
    node_reaches_a_pod_of_another_cloud,
    pod_reaches_the_internal_ip_of_a_node_in_another_cloud_with_its_own_address,
    pod_reaches_its_own_node,
    pod_reaches_the_internet_with_its_nodes_address,
    each_node_on_the_path_decrements_the_ttl,
    a_traceroute_between_pods_shows_each_node_once,
];

pub const TESTS: &[Test<Lab>] = tests![
    the_internet_sees_protocol_4_between_public_addresses_and_nothing_else,
    a_node_behind_1_to_1_nat_reaches_its_own_public_address,
    packets_between_pods_bypass_the_host_stack,
    super_packets_stay_whole_in_the_tunnel_unless_the_uplink_segments,
];

const PORT: u16 = 8080;

fn pods_of_one_node_reach_each_other(lab: &Lab) -> Result<()> {
    everything_passes(lab.nth_pod("a1", 0)?, lab.nth_pod("a1", 1)?)
}

fn pods_in_one_cloud_reach_each_other(lab: &Lab) -> Result<()> {
    everything_passes(lab.pod("a1")?, lab.pod("a2")?)?;
    everything_passes(lab.pod("a2")?, lab.pod("a1")?)
}

fn pods_in_clouds_with_the_same_private_range_reach_each_other(lab: &Lab) -> Result<()> {
    everything_passes(lab.pod("a1")?, lab.pod("b1")?)?;
    everything_passes(lab.pod("b1")?, lab.pod("a2")?)
}

fn pods_in_clouds_with_different_ranges_reach_each_other(lab: &Lab) -> Result<()> {
    everything_passes(lab.pod("a1")?, lab.pod("c1")?)?;
    everything_passes(lab.pod("c1")?, lab.pod("b1")?)
}

/// Expects that ping, UDP (both also in fragments) and TCP with four megabytes each way work, and that the other
/// side sees the pod's own address.
pub fn everything_passes(from: &LabPod, to: &LabPod) -> Result<()> {
    Ping::to(to.address()).reply_ttl(from)?;
    Ping::to(to.address()).bytes(4000).reply_ttl(from)?;
    let _server = EchoServer::start(to, PORT)?;
    for bytes in [1, 1000, 8000] {
        let seen = udp_exchange(from, 0, to.at(PORT), bytes)?;
        ensure!(*seen.ip() == from.address(), "UDP: seen as {seen}");
    }
    let seen = tcp_exchange(from, 0, to.at(PORT), 4 << 20)?;
    ensure!(*seen.ip() == from.address(), "TCP: seen as {seen}");
    Ok(())
}

fn node_reaches_the_internal_ip_of_a_node_in_another_cloud(lab: &Lab) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("b1", "a1"), ("a2", "c1"), ("c1", "b1")] {
        let (from, to) = (lab.node(from)?, lab.node(to)?);
        Ping::to(to.internal_ip()).reply_ttl(from)?;
        let _kubelet = EchoServer::start(to, 10250)?;
        let at = SocketAddrV4::new(to.internal_ip(), 10250);
        let seen = tcp_exchange(from, 0, at, 1 << 20)?;
        ensure!(*seen.ip() == from.internal_ip(), "seen as {seen}");
        udp_exchange(from, 0, at, 3000)?;
    }
    Ok(())
}

fn node_reaches_a_pod_of_another_cloud(lab: &Lab) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("b1", "a2"), ("c1", "a1")] {
        let (from, to) = (lab.node(from)?, lab.pod(to)?);
        Ping::to(to.address()).reply_ttl(from)?;
        let _server = EchoServer::start(to, PORT)?;
        let seen = tcp_exchange(from, 0, to.at(PORT), 1 << 20)?;
        ensure!(*seen.ip() == from.internal_ip(), "seen as {seen}");
        udp_exchange(from, 0, to.at(PORT), 3000)?;
    }
    Ok(())
}

fn pod_reaches_the_internal_ip_of_a_node_in_another_cloud_with_its_own_address(
    lab: &Lab,
) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("b1", "a2"), ("c1", "b1")] {
        let (from, to) = (lab.pod(from)?, lab.node(to)?);
        Ping::to(to.internal_ip()).reply_ttl(from)?;
        let _kubelet = EchoServer::start(to, 10250)?;
        let at = SocketAddrV4::new(to.internal_ip(), 10250);
        let seen = tcp_exchange(from, 0, at, 1 << 20)?;
        ensure!(*seen.ip() == from.address(), "seen as {seen}");
    }
    Ok(())
}

fn pod_reaches_its_own_node(lab: &Lab) -> Result<()> {
    let (pod, node) = (lab.pod("a1")?, lab.node("a1")?);
    Ping::to(node.internal_ip()).reply_ttl(pod)?;
    let _server = EchoServer::start(node, PORT)?;
    let seen = tcp_exchange(pod, 0, SocketAddrV4::new(node.internal_ip(), PORT), 1 << 20)?;
    ensure!(*seen.ip() == pod.address(), "seen as {seen}");
    let _server = EchoServer::start(pod, PORT)?;
    tcp_exchange(node, 0, pod.at(PORT), 1 << 20)?;
    Ok(())
}

fn pod_reaches_the_internet_with_its_nodes_address(lab: &Lab) -> Result<()> {
    let _server = EchoServer::start(&lab.fabric().web, 80)?;
    for node in lab.nodes() {
        let pod = lab.pod(&node.spec().name)?;
        let seen = tcp_exchange(pod, 0, SocketAddrV4::new(WEB, 80), 100_000)?;
        ensure!(*seen.ip() == node.public()?, "seen as {seen}");
        udp_exchange(pod, 0, SocketAddrV4::new(WEB, 80), 500)?;
        Ping::to(WEB).reply_ttl(pod)?;
    }
    Ok(())
}

fn each_node_on_the_path_decrements_the_ttl(lab: &Lab) -> Result<()> {
    let pod = lab.pod("a1")?;
    for (to, expected) in [
        (lab.nth_pod("a1", 1)?, 63),
        (lab.pod("a2")?, 62),
        (lab.pod("b1")?, 62),
        (lab.pod("c1")?, 62),
    ] {
        for (one, other) in [(pod, to), (to, pod)] {
            let left = Ping::to(other.address()).reply_ttl(one)?;
            ensure!(
                left == expected,
                "{} to {}: {left} left, not {expected}",
                other.name(),
                one.name()
            );
        }
    }
    let node: &LabNode = lab.node("b1")?;
    // The source node and the destination node of a packet do not route it.
    let left = Ping::to(node.internal_ip()).reply_ttl(pod)?;
    ensure!(left == 63, "node to remote pod: {left} left");
    let left = Ping::to(pod.address()).reply_ttl(node)?;
    ensure!(left == 63, "pod to remote node: {left} left");
    Ok(())
}

fn a_traceroute_between_pods_shows_each_node_once(lab: &Lab) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("c1", "a2")] {
        let (from, to) = (lab.pod(from)?, lab.pod(to)?);
        let (near, far) = (from.node().internal_ip(), to.node().internal_ip());
        // The kernel limits the rate of its errors.
        let answers = |from: &Host, to, ttl, by, is_error| {
            wait::until(&format!("{by} answers TTL {ttl} to {to}"), || {
                let ping = Ping {
                    ttl,
                    ..Ping::to(to)
                };
                Ok(match ping.send(from)? {
                    Answer::TimeExceeded { from } => is_error && from == by,
                    Answer::Reply { from, .. } => !is_error && from == by,
                    _ => false,
                })
            })
        };
        answers(from, to.address(), 1, near, true)?;
        answers(from, to.address(), 2, far, true)?;
        answers(from, to.address(), 3, to.address(), false)?;
        answers(from, far, 1, near, true)?;
        answers(from, far, 2, far, false)?;
        // The last hop of eBGP, for example.
        answers(from.node(), far, 1, far, false)?;
    }
    Ok(())
}

fn the_internet_sees_protocol_4_between_public_addresses_and_nothing_else(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("a1")?, lab.pod("b1")?);
    let capture = lab.capture_on_internet("cloud-a")?;
    everything_passes(from, to)?;
    Ping::to(to.node().internal_ip()).reply_ttl(from.node())?;
    let packets = capture.stop()?;
    let (a, b) = (from.node().public()?, to.node().public()?);
    tunnel_packets(&packets, [a, b])?;
    Ok(())
}

fn a_node_behind_1_to_1_nat_reaches_its_own_public_address(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let _server = EchoServer::start(node, PORT)?;
    let seen = tcp_exchange(node, 0, SocketAddrV4::new(node.public()?, PORT), 1000)?;
    ensure!(*seen.ip() == node.public()?, "seen as {seen}");
    Ok(())
}

fn packets_between_pods_bypass_the_host_stack(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("a1")?, lab.pod("b1")?);
    Ping::to(to.address()).reply_ttl(from)?;
    // Packets that the host stack routes pass ipip0 at the sender and at the receiver.
    let passing = Capture::start(to.node(), "ipip0", CaptureDirection::Both)?;
    let sent = from.node().counter(Counter::PodToTunnel)?;
    let taken = to.node().counter(Counter::TunnelToPod)?;
    for _ in 0..5 {
        Ping::to(to.address()).reply_ttl(from)?;
    }
    ensure!(from.node().counter(Counter::PodToTunnel)? >= sent + 5);
    ensure!(to.node().counter(Counter::TunnelToPod)? >= taken + 5);
    let packets = passing.stop()?;
    let echo = packets.iter().find(|it| it.protocol == ip_number::ICMP);
    ensure!(echo.is_none(), "on ipip0: {echo:?}");
    let forwarded = |node: &LabNode| node.snmp("Ip", "ForwDatagrams");
    let before = forwarded(from.node())?;
    Ping::to(to.address()).reply_ttl(from)?;
    let after = forwarded(from.node())?;
    ensure!(
        after == before,
        "the node forwarded {} packets",
        after - before
    );
    Ok(())
}

fn super_packets_stay_whole_in_the_tunnel_unless_the_uplink_segments(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("a1")?, lab.pod("b1")?);
    let capture = Capture::start(from.node(), "eth0", CaptureDirection::Out)?;
    let _server = EchoServer::start(to, PORT)?;
    tcp_exchange(from, 0, to.at(PORT), 4 << 20)?;
    let packets = capture.stop()?;
    let tcp = packets
        .iter()
        .filter(|it| it.is_ipip())
        .filter_map(|it| it.inner()?.tcp_data());
    let longest = tcp.max().context("no TCP segment in the tunnel")?;
    // If they were segmented before the tunnel, none would exceed the MTU on any uplink.
    let is_whole = longest > 4 * lab.topology().uplink_mtu as usize;
    ensure!(
        is_whole != lab.topology().segmenting_uplinks,
        "the longest segment of {} packets has {longest} bytes",
        packets.len()
    );
    Ok(())
}

//! Nodes in one network exchange packets without an outer header.

use crate::reach::everything_passes;
use anyhow::{Result, ensure};
use ipip_lab::{Lab, Topology};
use ipip_testkit::{
    capture::{Capture, CaptureDirection},
    echo::EchoServer,
    harness::Test,
    ping::Ping,
    tests,
};
use std::net::SocketAddrV4;

pub const TESTS: &[Test<Lab>] = tests![
    pods_reach_each_other_without_an_outer_header,
    pods_and_nodes_reach_each_other_without_an_outer_header,
];

pub fn topology() -> Topology {
    let mut topology = Topology::one_realm();
    topology.agent.encapsulation = Some("direct".into());
    topology
}

fn pods_reach_each_other_without_an_outer_header(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("a1")?, lab.pod("a2")?);
    let capture = Capture::start(to.node(), "eth0", CaptureDirection::Both)?;
    everything_passes(from, to)?;
    everything_passes(to, from)?;
    let packets = capture.stop()?;
    let (from, to) = (from.address(), to.address());
    ensure!(packets.iter().any(|it| it.is_echo_request(from, to)));
    let tunnelled = packets.iter().find(|it| it.inner().is_some());
    ensure!(tunnelled.is_none(), "{tunnelled:?}");
    Ok(())
}

fn pods_and_nodes_reach_each_other_without_an_outer_header(lab: &Lab) -> Result<()> {
    let (pod, node) = (lab.pod("a1")?, lab.node("a2")?);
    Ping::to(node.internal_ip()).reply_ttl(pod)?;
    Ping::to(pod.address()).reply_ttl(node)?;
    let _kubelet = EchoServer::start(node, 10250)?;
    let at = SocketAddrV4::new(node.internal_ip(), 10250);
    let seen = ipip_testkit::echo::tcp_exchange(pod, 0, at, 1 << 20)?;
    ensure!(*seen.ip() == pod.address(), "seen as {seen}");
    Ok(())
}

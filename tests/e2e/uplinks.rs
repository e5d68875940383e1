//! A node with two uplinks, and peers behind each of them.

use crate::reach::everything_passes;
use anyhow::{Result, ensure};
use ipip_lab::Lab;
use ipip_testkit::{
    capture::{Capture, CaptureDirection, Packet},
    harness::Test,
    ping::Ping,
    tests,
};

pub const TESTS: &[Test<Lab>] = tests![
    pods_behind_either_uplink_are_reached,
    packets_leave_by_the_uplink_that_the_route_to_the_peer_names,
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

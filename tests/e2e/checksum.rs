//! Data that was corrupted between the nodes.

use anyhow::{Context, Result, ensure};
use ipip_lab::Lab;
use ipip_testkit::{
    harness::Test,
    packet_builder::{send, udp},
    tests,
};

pub const TESTS: &[Test<Lab>] = tests![a_corrupted_datagram_of_a_pod_does_not_reach_an_application];

const PORT: u16 = 8080;

/// The outer datagram of `udp` has no checksum. A network card or GRO marks it as valid, which says nothing about the
/// inner packet.
fn a_corrupted_datagram_of_a_pod_does_not_reach_an_application(lab: &Lab) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("b1", "c1"), ("c1", "b1")] {
        let (from, to) = (lab.pod(from)?, lab.pod(to)?);
        let receiver = to.udp(PORT)?;
        let before = to.snmp("Udp", "InCsumErrors")?;
        let mut corrupted = udp(from.at(PORT), to.at(PORT), b"corrupted")?;
        *corrupted.last_mut().context("an empty packet")? ^= 1;
        send(from, &corrupted)?;
        send(from, &udp(from.at(PORT), to.at(PORT), b"intact")?)?;
        let mut datagram = [0; 16];
        let len = receiver.recv(&mut datagram)?;
        let received = String::from_utf8_lossy(&datagram[..len]);
        ensure!(received == "intact", "{} received {received:?}", to.name());
        let errors = to.snmp("Udp", "InCsumErrors")? - before;
        ensure!(errors == 1, "{}: {errors} checksum errors", to.name());
    }
    Ok(())
}

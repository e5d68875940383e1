//! The lab with IP in UDP, and with clsact as on kernels without TCX.

use anyhow::{Context, Result, ensure};
use ipip_datapath::{AttachMode, Programs};
use ipip_lab::{Lab, Topology};
use ipip_testkit::{capture::Packet, harness::Test, ping::Ping, tests};
use std::fs;

pub const UDP_TESTS: &[Test<Lab>] = tests![
    the_internet_sees_udp_on_one_port_and_no_protocol_4,
    agents_log_once_whether_gro_merges_packets_in_udp,
];
pub const CLSACT_TESTS: &[Test<Lab>] = tests![all_programs_are_attached_by_clsact];

pub fn udp() -> Topology {
    let mut topology = Topology::three_clouds();
    topology.agent.encapsulation = Some("udp".into());
    topology
}

pub fn clsact() -> Topology {
    let mut topology = Topology::three_clouds();
    topology.agent.attach = Some("clsact".into());
    topology
}

fn the_internet_sees_udp_on_one_port_and_no_protocol_4(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("a1")?, lab.pod("b1")?);
    let (a, b) = (from.node().public()?, to.node().public()?);
    let capture = lab.capture_on_internet("cloud-a")?;
    Ping::to(to.address()).reply_ttl(from)?;
    Ping::to(to.node().internal_ip()).reply_ttl(from.node())?;
    let packets = capture.stop()?;
    let is_tunnel = |it: &Packet| it.udp_ports().is_some_and(|ports| ports.1 == 5555);
    for ends in [(a, b), (b, a)] {
        packets
            .iter()
            .find(|it| is_tunnel(it) && (it.source, it.destination) == ends)
            .with_context(|| format!("no UDP from {} to {}: {packets:?}", ends.0, ends.1))?;
    }
    let other = packets.iter().find(|it| !is_tunnel(it));
    ensure!(other.is_none(), "also seen: {other:?}");
    Ok(())
}

/// GRO only makes packets in UDP faster, so agents are ready with and without it.
fn agents_log_once_whether_gro_merges_packets_in_udp(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let log = fs::read_to_string(node.log_path())?;
        let said = log.matches("tunnel packets in UDP").count();
        ensure!(said == 1, "{}: logged {said} times\n{log}", node.name());
    }
    Ok(())
}

fn all_programs_are_attached_by_clsact(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let attached =
            node.enter(|| Programs::open(node.pins(), AttachMode::Clsact)?.attached())??;
        ensure!(attached.len() >= 4, "too few programs: {attached:?}");
        for attachment in attached {
            ensure!(attachment.mode == AttachMode::Clsact, "{attachment:?}");
        }
    }
    Ok(())
}

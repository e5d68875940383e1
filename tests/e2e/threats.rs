//! Forged packets are dropped on real interfaces, without an answer.

use anyhow::{Result, ensure};
use ipip_abi::DropReason;
use ipip_lab::{Lab, LabNode, topology::STRANGER};
use ipip_testkit::{
    capture::{Capture, CaptureDirection, Packet},
    harness::Test,
    host::Host,
    packet_builder, tests, wait,
};
use std::net::SocketAddrV4;

pub const TESTS: &[Test<Lab>] = tests![
    a_strangers_forged_packet_is_dropped_as_unknown_peer_without_an_answer,
    a_packet_of_a_peer_with_the_source_of_another_peers_pod_is_dropped,
    a_peer_cannot_use_a_node_as_its_router_to_the_internet,
    a_pod_cannot_send_with_the_address_of_another,
    a_pod_cannot_send_a_tunnel_packet_to_a_node,
    a_pod_address_from_an_uplink_without_encapsulation_is_dropped,
];

const PORT: u16 = 9000;

fn a_strangers_forged_packet_is_dropped_as_unknown_peer_without_an_answer(lab: &Lab) -> Result<()> {
    let (victim, claimed) = (lab.pod("a1")?, lab.pod("b1")?);
    let inner = packet_builder::udp(claimed.at(PORT), victim.at(PORT), b"forged")?;
    let packet = packet_builder::ipip(STRANGER, victim.node().public()?, &inner)?;
    let internet = &lab.fabric().internet;
    let capture = Capture::start(internet, "to-stranger", CaptureDirection::Both)?;
    dropped(
        lab,
        &lab.fabric().stranger,
        &packet,
        DropReason::UnknownPeer,
    )?;
    let packets = capture.stop()?;
    let to_stranger = |it: &&Packet| it.destination == STRANGER;
    let answers: Vec<_> = packets.iter().filter(to_stranger).collect();
    ensure!(packets.iter().any(|it| it.source == STRANGER));
    ensure!(answers.is_empty(), "the stranger got {answers:?}");
    Ok(())
}

fn a_packet_of_a_peer_with_the_source_of_another_peers_pod_is_dropped(lab: &Lab) -> Result<()> {
    let (peer, victim, claimed) = (lab.node("a2")?, lab.pod("a1")?, lab.pod("b1")?);
    let inner = packet_builder::udp(claimed.at(PORT), victim.at(PORT), b"forged")?;
    let packet = packet_builder::ipip(peer.internal_ip(), victim.node().internal_ip(), &inner)?;
    dropped(lab, peer, &packet, DropReason::InnerSourceNotOfPeer)
}

fn a_peer_cannot_use_a_node_as_its_router_to_the_internet(lab: &Lab) -> Result<()> {
    let (peer, own) = (lab.node("a2")?, lab.pod("a2")?);
    let outside = SocketAddrV4::new(ipip_lab::topology::WEB, 80);
    let inner = packet_builder::udp(own.at(PORT), outside, b"forged")?;
    let packet = packet_builder::ipip(peer.internal_ip(), lab.node("a1")?.internal_ip(), &inner)?;
    dropped(lab, peer, &packet, DropReason::InnerDestinationNotLocal)
}

fn a_pod_cannot_send_with_the_address_of_another(lab: &Lab) -> Result<()> {
    let (sender, victim) = (lab.pod("a1")?, lab.nth_pod("a1", 1)?);
    let packet = packet_builder::udp(lab.pod("b1")?.at(PORT), victim.at(PORT), b"forged")?;
    dropped(lab, sender, &packet, DropReason::PodSourceSpoofed)
}

fn a_pod_cannot_send_a_tunnel_packet_to_a_node(lab: &Lab) -> Result<()> {
    let (sender, node) = (lab.pod("a1")?, lab.node("a1")?);
    let inner = packet_builder::udp(lab.pod("b1")?.at(PORT), sender.at(PORT), b"forged")?;
    for to in [node.internal_ip(), lab.node("b1")?.public()?] {
        let packet = packet_builder::ipip(sender.address(), to, &inner)?;
        dropped(lab, sender, &packet, DropReason::PodSendsTunnel)?;
    }
    Ok(())
}

fn a_pod_address_from_an_uplink_without_encapsulation_is_dropped(lab: &Lab) -> Result<()> {
    let (peer, victim) = (lab.node("a2")?, lab.node("a1")?);
    let to = SocketAddrV4::new(victim.internal_ip(), PORT);
    let packet = packet_builder::udp(lab.pod("b1")?.at(PORT), to, b"forged")?;
    dropped(lab, peer, &packet, DropReason::UnencapsulatedPodSource)
}

/// Sends `packet` from `sender`, and expects that `a1` counts it under `reason` and that neither the node nor its
/// pods receive it.
fn dropped(lab: &Lab, sender: &Host, packet: &[u8], reason: DropReason) -> Result<()> {
    let node: &LabNode = lab.node("a1")?;
    let sockets = [
        node.udp(PORT)?,
        lab.nth_pod("a1", 0)?.udp(PORT)?,
        lab.nth_pod("a1", 1)?.udp(PORT)?,
    ];
    let before = node.drops(reason)?;
    packet_builder::send(sender, packet)?;
    wait::until(&format!("{} counts {reason:?}", node.name()), || {
        Ok(node.drops(reason)? > before)
    })?;
    for socket in sockets {
        socket.set_nonblocking(true)?;
        ensure!(
            socket.recv(&mut [0; 64]).is_err(),
            "the packet arrived although it was counted as {reason:?}"
        );
    }
    Ok(())
}

//! Machines that repeat genuine probes and answers, or forge ICMP errors about the packets between two nodes.

use super::{
    row,
    traffic::Traffic,
    wait_for_all_paths,
    without_realms::{has_seen_probes_alone, impostor},
};
use crate::probes;
use anyhow::{Context, Result, ensure};
use etherparse::{Icmpv4Type, Ipv4Header, PacketBuilder, icmpv4::DestUnreachableHeader, ip_number};
use ipip_abi::{Counter, DropReason, probe::ProbeMessage, wire::DEFAULT_UDP_PORT};
use ipip_lab::{Lab, LabNode, topology::STRANGER};
use ipip_testkit::{
    capture::{Capture, CaptureDirection, Packet},
    harness::Test,
    host::Host,
    packet_builder, tests, wait,
};
use std::{
    mem::offset_of,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

pub const TESTS: &[Test<Lab>] = tests![
    probes_and_answers_that_are_repeated_change_no_path_and_are_counted,
    forged_icmp_about_tunnel_packets_sets_no_mtu_and_is_counted,
];

const PER_SECOND: u64 = 500;
const UDP_HEADER: usize = 8;

/// What was recorded is sent again twice: at once, and when there are newer probes.
fn probes_and_answers_that_are_repeated_change_no_path_and_are_counted(lab: &Lab) -> Result<()> {
    wait_for_all_paths(lab)?;
    let (a1, b1, b2) = (lab.node("a1")?, lab.node("b1")?, lab.node("b2")?);
    let machine = impostor(lab)?;
    let seen = Capture::start(&machine.host, "eth0", CaptureDirection::In)?;
    let stranger = &lab.fabric().stranger;
    let to_stranger = Capture::start(stranger, "eth0", CaptureDirection::In)?;
    let before = peers(lab)?;
    let traffic = Traffic::start(lab.pod("a1")?, lab.pod("b1")?, 7000, PER_SECOND)?;

    let outside = lab.capture_on_internet("cloud-b")?;
    let gateway = lab.fabric().gateway("cloud-b")?;
    let inside = Capture::start(gateway, "b1-0", CaptureDirection::Both)?;
    let probe_each_other = || -> Result<()> {
        for (node, peer) in [(a1, "b1"), (b1, "a1"), (b1, "b2"), (b2, "b1")] {
            probes::probe(node, peer)?;
        }
        Ok(())
    };
    probe_each_other()?;
    let public = last_probes(&outside.stop()?, a1.public()?, b1.public()?)?;
    let private = last_probes(&inside.stop()?, b2.internal_ip(), b1.internal_ip())?;

    // As the router that passed them, or a machine of the LAN that claims the address of the peer; and with their own addresses.
    let repeat_all = || -> Result<()> {
        let replayed = DropReason::ProbeReplayed;
        let router = &lab.fabric().internet;
        is_counted(
            b1,
            replayed,
            public.iter().map(|it| (router, it, it.source)),
        )?;
        is_counted(
            b1,
            replayed,
            public.iter().map(|it| (stranger, it, STRANGER)),
        )?;
        let lan = &machine.host;
        is_counted(b1, replayed, private.iter().map(|it| (lan, it, it.source)))?;
        // On private candidates, the addresses are part of what is authenticated.
        let forged = DropReason::ProbeNotAuthentic;
        is_counted(
            b1,
            forged,
            private.iter().map(|it| (lan, it, machine.address)),
        )
    };
    repeat_all()?;
    probe_each_other()?;
    repeat_all()?;

    ensure!(peers(lab)? == before, "{before:#?}\n{:#?}", peers(lab)?);
    traffic.stop()?.lost_nothing()?;
    let answers = to_stranger.stop()?;
    ensure!(answers.is_empty(), "the stranger got {answers:?}");
    has_seen_probes_alone(lab, &seen.stop()?)
}

/// The last probe and the last answer from one address to another, in each encapsulation.
fn last_probes(packets: &[Packet], from: Ipv4Addr, to: Ipv4Addr) -> Result<Vec<Packet>> {
    let mut found = Vec::new();
    for protocol in [ip_number::IPV4, ip_number::UDP] {
        for kind in [ProbeMessage::PROBE, ProbeMessage::ANSWER] {
            let is_wanted = |it: &&Packet| {
                let inner = it.inner().map(|inner| inner.payload).unwrap_or_default();
                (it.source, it.destination, it.protocol) == (from, to, protocol)
                    && it.is_probe()
                    && inner.get(UDP_HEADER + offset_of!(ProbeMessage, kind)) == Some(&kind)
            };
            let last = packets.iter().rev().find(is_wanted);
            let last = last.with_context(|| format!("no {protocol:?} of kind {kind} to {to}"))?;
            found.push(last.clone());
        }
    }
    Ok(found)
}

/// Sends packets again, each from a host and with a source, and waits until the node has counted them all as dropped.
fn is_counted<'a>(
    node: &LabNode,
    reason: DropReason,
    packets: impl Iterator<Item = (&'a Host, &'a Packet, Ipv4Addr)>,
) -> Result<()> {
    let before = node.drops(reason)?;
    let mut sent = 0;
    for (host, packet, source) in packets {
        let repeated = match packet.udp_ports() {
            Some((from, to)) => packet_builder::udp(
                SocketAddrV4::new(source, from),
                SocketAddrV4::new(packet.destination, to),
                &packet.payload[UDP_HEADER..],
            ),
            None => packet_builder::ipip(source, packet.destination, &packet.payload),
        };
        packet_builder::send(host, &repeated?)?;
        sent += 1;
    }
    ensure!(sent > 0, "nothing was recorded");
    let what = format!("{} counts {sent} {}", node.spec().name, reason.name());
    let counted = || -> Result<u64> { Ok(node.drops(reason)? - before) };
    wait::until(&what, || Ok(counted()? >= sent))
        .with_context(|| format!("it has counted {:?}", counted().ok()))
}

/// On the LAN and on the Internet, all the time, with MTUs that no path has.
fn forged_icmp_about_tunnel_packets_sets_no_mtu_and_is_counted(lab: &Lab) -> Result<()> {
    wait_for_all_paths(lab)?;
    let (a1, b1) = (lab.node("a1")?, lab.node("b1")?);
    let machine = impostor(lab)?;
    let seen = Capture::start(&machine.host, "eth0", CaptureDirection::In)?;
    let traffic = Traffic::start(lab.pod("a1")?, lab.pod("b1")?, 7000, PER_SECOND)?;
    // The path is searched when it begins to carry traffic, and not again while its packets are small.
    traffic.wait_for(2 * PER_SECOND)?;
    let before = peers(lab)?;
    let hints = b1.counter(Counter::MtuHint)?;
    let outside = lab.capture_on_internet("cloud-b")?;

    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(5) {
        for mtu in [0, 68, 576, 1000, 1279, 1400] {
            let peer = a1.public()?;
            for quoted in [ip_number::IPV4, ip_number::UDP] {
                let own = b1.internal_ip();
                let error = too_large(machine.address, (own, peer, quoted), mtu)?;
                packet_builder::send(&machine.host, &error)?;
            }
            // A gateway passes on only an error about a flow that it knows, so this is not counted on.
            let error = too_large(STRANGER, (b1.public()?, peer, ip_number::IPV4), mtu)?;
            packet_builder::send(&lab.fabric().stranger, &error)?;
            sent += 2;
        }
        ensure!(peers(lab)? == before, "{before:#?}\n{:#?}", peers(lab)?);
        thread::sleep(Duration::from_millis(50));
    }
    wait::until(&format!("b1 counts {sent} forged errors"), || {
        Ok(b1.counter(Counter::MtuHint)? >= hints + sent)
    })?;
    ensure!(peers(lab)? == before, "{before:#?}\n{:#?}", peers(lab)?);

    let own = b1.public()?;
    let is_large = |it: &&Packet| it.source == own && it.is_probe() && it.payload.len() > 1000;
    let packets = outside.stop()?;
    let large = packets.iter().filter(is_large).count() as u64;
    let most = began.elapsed().as_secs() / 2 + 2;
    ensure!(
        (1..=most).contains(&large),
        "{large} probes, not up to {most}"
    );
    traffic.stop()?.lost_nothing()?;
    has_seen_probes_alone(lab, &seen.stop()?)
}

/// An ICMP error to the source of a tunnel packet, which says that the packet was larger than an MTU.
fn too_large(
    from: Ipv4Addr,
    (source, destination, protocol): (Ipv4Addr, Ipv4Addr, etherparse::IpNumber),
    mtu: u16,
) -> Result<Vec<u8>> {
    const REST: [u16; 4] = [0, DEFAULT_UDP_PORT, 1480, 0];
    let mut quoted = Ipv4Header::new(1480, 64, protocol, source.octets(), destination.octets())?;
    quoted.dont_fragment = true;
    quoted.header_checksum = quoted.calc_header_checksum();
    let mut quote = quoted.to_bytes().to_vec();
    quote.extend(REST.iter().flat_map(|it| it.to_be_bytes()));
    let error = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.octets(), source.octets(), 64)
        .icmpv4(Icmpv4Type::DestinationUnreachable(error))
        .write(&mut packet, &quote)?;
    Ok(packet)
}

/// The path of each node to each peer, with its MTU, as `ipipctl peers` shows them.
fn peers(lab: &Lab) -> Result<Vec<String>> {
    let mut shown = Vec::new();
    for node in lab.nodes() {
        for peer in lab.nodes().iter().filter(|it| it.name() != node.name()) {
            let row = row(node, peer)?;
            let fields = ["node", "path", "encapsulation", "underlay", "mtu"];
            let fields = fields.map(|it| row[it].to_string()).join(" ");
            shown.push(format!("{}: {fields}", node.spec().name));
        }
    }
    Ok(shown)
}

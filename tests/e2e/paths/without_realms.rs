//! Nodes whose realms nobody has configured, in clouds of which two have the same private range.

use super::{RETURN, path, reflector::Reflector, traffic::Traffic, wait_for_all_paths};
use crate::inventory::Restored;
use anyhow::{Context, Result, ensure};
use ipip_abi::{Candidate, DropReason};
use ipip_lab::{Lab, Topology, foreign_machine::ForeignMachine, topology::NodeSpec};
use ipip_testkit::{
    capture::{Capture, CaptureDirection, Packet},
    harness::Test,
    ping::{Answer, Ping},
    tests, wait,
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

pub const TESTS: &[Test<Lab>] = tests![
    nodes_without_realm_use_their_lan_and_the_public_path_to_all_others,
    a_machine_with_the_address_of_a_node_elsewhere_receives_no_packet_of_a_pod,
    a_machine_that_reflects_probes_causes_no_change_of_a_path,
];

const PER_SECOND: u64 = 2000;

/// Three clouds, with a second node in cloud-b, so that its network is one that a further machine can join. It has the InternalIP
/// of a2.
pub fn topology() -> Topology {
    let mut topology = Topology::three_clouds();
    let second = NodeSpec::new("b2", "cloud-b", "10.0.0.12", "198.51.100.22", 5);
    topology.nodes.push(second);
    topology.nodes.iter_mut().for_each(|it| it.realm = None);
    topology
}

fn nodes_without_realm_use_their_lan_and_the_public_path_to_all_others(lab: &Lab) -> Result<()> {
    wait_for_all_paths(lab)?;
    for from in lab.pods() {
        for to in lab.pods() {
            Ping::to(to.address()).reply_ttl(from)?;
        }
    }
    Ok(())
}

/// A machine in the network of cloud-b with the InternalIP of a1.
pub fn impostor(lab: &Lab) -> Result<ForeignMachine<'_>> {
    let gateway = lab.fabric().gateway("cloud-b")?;
    let address = lab.node("a1")?.internal_ip();
    let wire = (gateway, "impostor");
    let machine = ForeignMachine::connect(lab.prefix(), lab.trash(), wire, address)?;
    gateway.ip("link set impostor master lan0")?;
    machine.host.ip("route add default via 10.0.0.1")?;
    // A node with strict source validation does not answer when it asks for a MAC, because a1 is elsewhere.
    let neighbours = lab.nodes().iter().filter(|it| it.spec().cloud == "cloud-b");
    for node in neighbours {
        let link = node.ip("-oneline link show dev eth0")?;
        let mut words = link.split_whitespace().skip_while(|it| *it != "link/ether");
        let mac = words.nth(1).context("no MAC")?;
        let entry = format!("{} lladdr {mac} dev eth0 nud permanent", node.internal_ip());
        machine.host.ip(&format!("neighbour replace {entry}"))?;
    }
    Ok(machine)
}

/// Expects that probes have arrived, but no packet from or to a pod.
pub fn has_seen_probes_alone(lab: &Lab, packets: &[Packet]) -> Result<()> {
    let is_of_pod = |it: &Packet| {
        let mut pods = lab.pods().iter().map(|it| it.address());
        pods.any(|pod| [it.source, it.destination].contains(&pod))
    };
    let of_pod = packets
        .iter()
        .find(|it| is_of_pod(it) || it.inner().is_some_and(|it| is_of_pod(&it)));
    if let Some(packet) = of_pod {
        anyhow::bail!("a packet of a pod arrived: {packet}");
    }
    let is_tunnel = |it: &&Packet| it.inner().is_some();
    ensure!(packets.iter().any(|it| is_tunnel(&it)), "no probe arrived");
    Ok(())
}

/// The machine is there before the other nodes of its network know a1, and their pods send to a pod of a1 all the time.
fn a_machine_with_the_address_of_a_node_elsewhere_receives_no_packet_of_a_pod(
    lab: &Lab,
) -> Result<()> {
    wait_for_all_paths(lab)?;
    let machine = impostor(lab)?;
    let (to, from) = (lab.pod("a1")?, [lab.pod("b1")?, lab.pod("b2")?]);
    let answered = || {
        let ping = Ping {
            timeout: Duration::from_millis(200),
            ..Ping::to(to.address())
        };
        let answers = from.map(|pod| ping.send(pod));
        let is_reply = |it: &Result<Answer>| matches!(it, Ok(Answer::Reply { .. }));
        answers.iter().all(is_reply)
    };
    let restored = Restored(lab);
    let mut nodes = lab.topology().inventory();
    nodes.retain(|it| it.name != "a1");
    lab.write_inventory(&nodes)?;
    wait::until("b1 and b2 do not know a1", || {
        let peers = from.map(|pod| pod.node().peers());
        Ok(peers.iter().flatten().all(|it| !it.contains_key("a1")))
    })?;
    let capture = Capture::start(&machine.host, "eth0", CaptureDirection::In)?;
    drop(restored);
    wait::within(RETURN, "pods of b1 and b2 reach a pod of a1", || {
        Ok(answered())
    })?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        ensure!(answered(), "a path to a1 was lost");
    }
    wait_for_all_paths(lab)?;
    has_seen_probes_alone(lab, &capture.stop()?)
}

fn a_machine_that_reflects_probes_causes_no_change_of_a_path(lab: &Lab) -> Result<()> {
    wait_for_all_paths(lab)?;
    let machine = impostor(lab)?;
    let reflector = Reflector {
        host: &machine.host,
        address: machine.address,
        victim: lab.node("a1")?,
    };
    let capture = Capture::start(&machine.host, "eth0", CaptureDirection::In)?;
    let stop = AtomicBool::new(false);
    let (unchanged, reflected) = thread::scope(|scope| {
        let reflector = scope.spawn(|| reflector.run(&stop));
        let unchanged = nothing_changes(lab);
        stop.store(true, Ordering::Relaxed);
        let reflected = reflector.join();
        (
            unchanged,
            reflected.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    unchanged?;
    ensure!(reflected? > 0, "nothing was reflected");
    has_seen_probes_alone(lab, &capture.stop()?)
}

/// Expects that forged probes and answers are counted at b1, which has probed the machine, or at a1, to which the machine
/// passes probes on; and that both use the same path as before, without loss.
fn nothing_changes(lab: &Lab) -> Result<()> {
    let (one, other) = (lab.pod("a1")?, lab.pod("b1")?);
    let ends = [&**one.node(), &**other.node()];
    let forged = || -> Result<[u64; 2]> {
        let [a1, b1] = ends.map(|it| it.drops(DropReason::ProbeNotAuthentic));
        Ok([a1?, b1?])
    };
    let before = forged()?;
    let traffic = Traffic::start(one, other, 7000, PER_SECOND)?;
    let began = Instant::now();
    let mut is_counted = false;
    while !is_counted || began.elapsed() < Duration::from_secs(20) {
        for [node, peer] in [ends, [ends[1], ends[0]]] {
            let used = path(node, peer)?;
            ensure!(
                used == Some(Candidate::PublicIpip),
                "{} uses {used:?}",
                node.name()
            );
        }
        let now = forged()?;
        // Whether b1 gets the machine's packets depends on when the two have asked for each other's MAC.
        is_counted = now[0] > before[0] || now[1] > before[1];
        ensure!(
            is_counted || began.elapsed() < RETURN,
            "no forged probe was counted: {before:?} {now:?}"
        );
        thread::sleep(Duration::from_millis(100));
    }
    traffic.stop()?.lost_nothing()
}

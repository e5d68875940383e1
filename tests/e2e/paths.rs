//! Agents choose the paths between nodes: they leave one that stops working, and return to a better one that works again.

pub mod blocked;
pub mod narrow;
pub mod private_route;
pub mod rates;
pub mod replays;
pub mod stateful;
pub mod without_realms;

mod reflector;
mod traffic;

use anyhow::{Context, Result, bail, ensure};
use ipip_abi::{Candidate, Encapsulation};
use ipip_lab::{Lab, LabNode, Topology, peering::keep_clouds_apart};
use ipip_testkit::{ping::Ping, wait};
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// A better path that works again is used within this time.
const RETURN: Duration = Duration::from_secs(60);
/// A path that stops working is left within 3 seconds. One more for a machine under load.
const FAILOVER: Duration = Duration::from_secs(4);

/// Starts a lab whose clouds [are kept apart](keep_clouds_apart).
pub fn start(topology: Topology) -> Result<Lab> {
    let mut lab = Lab::build(topology)?;
    keep_clouds_apart(lab.fabric(), lab.topology())?;
    lab.start_agents()?;
    lab.start_pods()?;
    lab.nodes().iter().try_for_each(|it| it.wait_promoted())?;
    Ok(lab)
}

/// The path that a node uses to a peer.
fn path(node: &LabNode, peer: &LabNode) -> Result<Option<Candidate>> {
    let maps = node.maps()?;
    let index = node.peer_index(&peer.spec().name)?;
    let entry = maps.peers.get(&index.into(), 0)?;
    let found = Candidate::ALL.iter().copied().find(|it| {
        let underlay = address(peer, *it).ok();
        it.encapsulation() as u8 == entry.encapsulation
            && underlay == Some(Ipv4Addr::from(entry.underlay))
    });
    if found.is_none() && entry.encapsulation != Encapsulation::None as u8 {
        bail!("an unknown path to {}: {entry:?}", peer.spec().name);
    }
    Ok(found)
}

/// Waits until both nodes use this path to each other, as `ipipctl peers` shows, too.
fn wait_for_path(ends: [&LabNode; 2], candidate: Candidate, max_wait: Duration) -> Result<()> {
    for [node, peer] in [ends, [ends[1], ends[0]]] {
        let names = (&node.spec().name, &peer.spec().name);
        let what = format!("{} uses {} to {}", names.0, candidate.name(), names.1);
        wait::within(max_wait, &what, || Ok(path(node, peer)? == Some(candidate)))
            .with_context(|| shown(node, peer))?;
        let row = row(node, peer)?;
        ensure!(
            row["path"] == candidate.name()
                && row["encapsulation"] == candidate.encapsulation().name()
                && row["underlay"] == address(peer, candidate)?.to_string(),
            "{what}: {row:#}"
        );
    }
    Ok(())
}

/// Waits until each node uses the LAN to the nodes of its cloud, and the public path to all others. Sends a packet to each
/// peer meanwhile, because peers without traffic are probed rarely.
fn wait_for_all_paths(lab: &Lab) -> Result<()> {
    let mut pairs = Vec::new();
    for (number, one) in lab.nodes().iter().enumerate() {
        for other in &lab.nodes()[number + 1..] {
            let candidate = match one.spec().cloud == other.spec().cloud {
                true => Candidate::PrivateIpip,
                false => Candidate::PublicIpip,
            };
            pairs.push(([&**one, &**other], candidate));
        }
    }
    let deadline = Instant::now() + RETURN;
    let uses = |[node, peer]: [&LabNode; 2], candidate| -> Result<bool> {
        let ping = Ping {
            timeout: Duration::from_millis(20),
            ..Ping::to(lab.pod(&peer.spec().name)?.address())
        };
        ping.send(lab.pod(&node.spec().name)?)?;
        Ok(path(node, peer)? == Some(candidate))
    };
    let mut missing = pairs.clone();
    while !missing.is_empty() && Instant::now() < deadline {
        missing.clear();
        for &(ends, candidate) in &pairs {
            let both = [uses(ends, candidate)?, uses([ends[1], ends[0]], candidate)?];
            if both != [true; 2] {
                missing.push((ends, candidate));
            }
        }
    }
    pairs
        .into_iter()
        .try_for_each(|(ends, candidate)| wait_for_path(ends, candidate, Duration::ZERO))
}

/// The outer destination of a candidate.
fn address(peer: &LabNode, candidate: Candidate) -> Result<Ipv4Addr> {
    if candidate.is_private() {
        Ok(peer.internal_ip())
    } else {
        peer.public()
    }
}

/// What `ipipctl peers` shows of a peer.
fn row(node: &LabNode, peer: &LabNode) -> Result<serde_json::Value> {
    let rows = node.ipipctl_json(&["peers"])?;
    let mut rows = rows.as_array().into_iter().flatten();
    let row = rows.find(|row| row["node"] == peer.spec().name.as_str());
    Ok(row.context("no such peer")?.clone())
}

/// For the message of a failure: `ipipctl peers`, and `ipipctl probe` of both ends.
fn shown(node: &LabNode, peer: &LabNode) -> String {
    let mut shown = String::new();
    for (node, peer) in [(node, peer), (peer, node)] {
        let verbs: [&[&str]; 2] = [&["peers"], &["probe", &peer.spec().name]];
        for verb in verbs {
            let printed = node
                .ipipctl(verb)
                .map(|it| String::from_utf8_lossy(&[it.stdout, it.stderr].concat()).into_owned());
            let printed = printed.unwrap_or_else(|error| format!("{error:#}\n"));
            shown += &format!(
                "{}: ipipctl {}\n{printed}",
                node.spec().name,
                verb.join(" ")
            );
        }
    }
    shown
}

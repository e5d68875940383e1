//! A node whose public address nobody has stated, behind the 1:1 NAT of its cloud.

use crate::inventory::Restored;
use anyhow::{Context, Result, ensure};
use ipip_abi::{Counter, PeerState};
use ipip_lab::{Lab, LabNode};
use ipip_testkit::{
    harness::Test,
    ping::{Answer, Ping},
    tests, wait,
};
use std::{net::Ipv4Addr, time::Duration};

pub const TESTS: &[Test<Lab>] = tests![
    a_node_is_told_its_public_address_as_peers_of_two_realms_see_it_and_is_reached_when_it_is_stated,
    peers_of_one_realm_alone_suggest_no_public_address,
];

/// A peer without a path is probed each 15 seconds at least.
const MAX_WAIT: Duration = Duration::from_secs(60);

fn a_node_is_told_its_public_address_as_peers_of_two_realms_see_it_and_is_reached_when_it_is_stated(
    lab: &Lab,
) -> Result<()> {
    let b1 = lab.node("b1")?;
    let restored = Restored(lab);
    state_endpoint(lab, b1, None)?;
    let text = suggestion(b1)?;
    for part in [
        "cloud-a",
        "cloud-c",
        "`publicEndpoint: 198.51.100.21` for b1",
    ] {
        ensure!(text.contains(part), "{part}: {text}");
    }
    // It is a suggestion: nobody uses it.
    let unreachable = PeerState::NoPublicEndpoint.name();
    wait::until("a1 has no path to b1", || {
        let peers = lab.node("a1")?.ipipctl_json(&["peers"])?;
        Ok(peers.to_string().contains(unreachable))
    })?;
    let to = lab.pod("b1")?.address();
    let answer = Ping::to(to).send(lab.pod("a1")?)?;
    ensure!(!matches!(answer, Answer::Reply { .. }), "{answer:?}");

    let address = text.split("this node as ").nth(1);
    let address = address.and_then(|it| it.split(';').next());
    let address = address.with_context(|| format!("no address: {text}"))?;
    state_endpoint(lab, b1, Some(address.parse()?))?;
    for from in ["a1", "a2", "c1"] {
        let from = lab.pod(from)?;
        wait::within(MAX_WAIT, "its pod is reached", || {
            Ok(matches!(Ping::to(to).send(from)?, Answer::Reply { .. }))
        })?;
    }
    wait::until("nothing is suggested", || Ok(problem(b1)?.is_none()))?;
    drop(restored);
    Ok(())
}

fn peers_of_one_realm_alone_suggest_no_public_address(lab: &Lab) -> Result<()> {
    let b1 = lab.node("b1")?;
    let _restored = Restored(lab);
    let mut nodes = lab.topology().inventory();
    nodes.retain(|it| it.name != "c1");
    let own = nodes.iter_mut().find(|it| it.name == "b1");
    own.context("no b1")?.public_endpoint = None;
    lab.write_inventory(&nodes)?;
    let before = b1.counter(Counter::AnswerReceived)?;
    wait::within(MAX_WAIT, "peers answer b1", || {
        Ok(b1.counter(Counter::AnswerReceived)? >= before + 20)
    })?;
    let problem = problem(b1)?;
    ensure!(problem.is_none(), "{problem:?}");
    Ok(())
}

/// Replaces the inventory by one that states this public endpoint of a node.
fn state_endpoint(lab: &Lab, node: &LabNode, address: Option<Ipv4Addr>) -> Result<()> {
    let mut nodes = lab.topology().inventory();
    let own = nodes.iter_mut().find(|it| it.name == node.spec().name);
    own.context("no such node")?.public_endpoint = address;
    lab.write_inventory(&nodes)
}

/// The suggestion that `ipipctl status` shows, when there is one.
fn suggestion(node: &LabNode) -> Result<String> {
    let mut found = None;
    wait::within(MAX_WAIT, "a public address is suggested", || {
        found = problem(node)?;
        Ok(found
            .as_ref()
            .is_some_and(|it| it.contains("see this node as")))
    })?;
    found.context("no suggestion")
}

fn problem(node: &LabNode) -> Result<Option<String>> {
    let status = node.ipipctl_json(&["status"])?;
    let problems = status["agent"]["problems"].as_array();
    let mut problems = problems.into_iter().flatten();
    let found = problems.find(|it| it["reason"] == "PublicEndpoint");
    Ok(found.map(|it| it["text"].as_str().unwrap_or_default().to_owned()))
}

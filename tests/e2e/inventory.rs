//! Changes of the inventory while everything runs.

use anyhow::{Context, Result, ensure};
use ipip_abi::DropReason;
use ipip_lab::{Lab, LabNode as Node, inventory, topology::STRANGER};
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange},
    harness::Test,
    host::Host,
    ping::{Answer, Ping},
    tests, wait,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::Duration,
};

pub const TESTS: &[Test<Lab>] = tests![
    packets_of_a_removed_node_are_dropped_until_it_is_a_peer_again,
    a_node_with_an_invalid_value_keeps_its_last_one_and_other_changes_are_used,
    a_node_with_the_public_endpoint_of_another_one_keeps_its_realm_and_other_changes_are_used,
    an_internal_ip_of_two_realms_stays_with_the_first_node,
    text_that_is_no_inventory_changes_nothing,
    an_address_that_moves_to_another_node_is_reached_there,
];

/// Restores the topology's inventory when dropped, and waits until every agent has read it.
pub struct Restored<'a>(pub &'a Lab);

impl Restored<'_> {
    fn restore(&self) -> Result<()> {
        let lab = self.0;
        let inventory = lab.topology().inventory();
        lab.write_inventory(&inventory)?;
        wait::until("every node knows every other", || {
            for node in lab.nodes() {
                let peers = node.peers()?;
                let mut others = inventory.iter().filter(|it| it.name != node.spec().name);
                if !others.all(|other| peers.contains_key(other.name.as_str())) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            eprintln!("restoring the inventory: {error:#}");
        }
    }
}

fn packets_of_a_removed_node_are_dropped_until_it_is_a_peer_again(lab: &Lab) -> Result<()> {
    let (a1, removed) = (lab.node("a1")?, lab.pod("c1")?);
    let pod = lab.pod("a1")?;
    let knows = |known: bool| {
        wait::until(&format!("a1 knows c1: {known}"), || {
            Ok(a1.peers()?.contains_key("c1") == known)
        })
    };
    Ping::to(pod.address()).reply_ttl(removed)?;
    let restored = Restored(lab);
    let mut nodes = lab.topology().inventory();
    nodes.retain(|node| node.name != "c1");
    lab.write_inventory(&nodes)?;
    knows(false)?;
    let before = a1.drops(DropReason::UnknownPeer)?;
    let answer = Ping::to(pod.address()).send(removed)?;
    ensure!(answer == Answer::Silence, "a removed node got {answer:?}");
    ensure!(a1.drops(DropReason::UnknownPeer)? > before);
    // Other peers still work.
    Ping::to(lab.pod("b1")?.address()).reply_ttl(pod)?;
    drop(restored);
    knows(true)?;
    wait::until("c1 is reachable again", || {
        Ok(matches!(
            Ping::to(pod.address()).send(removed)?,
            Answer::Reply { .. }
        ))
    })
}

fn a_node_with_an_invalid_value_keeps_its_last_one_and_other_changes_are_used(
    lab: &Lab,
) -> Result<()> {
    let a1 = lab.node("a1")?;
    let _restored = Restored(lab);
    let mut nodes = lab.topology().inventory();
    nodes.retain(|node| node.name != "c1");
    inventory::write(&lab.inventory_path(), &nodes)?;
    let valid = fs::read_to_string(lab.inventory_path())?;
    inventory::write_text(
        &lab.inventory_path(),
        &valid.replace("10.42.3.0/24", "10.42.3.0/240"),
    )?;
    wait::until("c1 has left", || Ok(!a1.peers()?.contains_key("c1")))?;
    wait_log(a1, "10.42.3.0/240")?;
    for peer in ["a2", "b1"] {
        Ping::to(lab.pod(peer)?.address()).reply_ttl(lab.pod("a1")?)?;
    }
    Ok(())
}

fn a_node_with_the_public_endpoint_of_another_one_keeps_its_realm_and_other_changes_are_used(
    lab: &Lab,
) -> Result<()> {
    let [a1, a2, b1] = [lab.pod("a1")?, lab.pod("a2")?, lab.pod("b1")?];
    let _restored = Restored(lab);
    let mut nodes = lab.topology().inventory();
    nodes.retain(|node| node.name != "c1");
    let endpoint = nodes[0].public_endpoint;
    ensure!((nodes[0].name.as_str(), nodes[1].name.as_str()) == ("a1", "a2"));
    nodes[1].public_endpoint = endpoint;
    lab.write_inventory(&nodes)?;
    wait::until(
        "b1 and a2 have no path to each other, and c1 has left",
        || {
            Ok(
                state(b1.node(), "a2")?.as_deref() == Some("NoPublicEndpoint")
                    && state(a2.node(), "b1")?.as_deref() == Some("NoOwnPublicEndpoint")
                    && state(a2.node(), "c1")?.is_none(),
            )
        },
    )?;
    for (from, to) in [(a1, a2), (a2, a1), (a1, b1), (b1, a1)] {
        Ping::to(to.address()).reply_ttl(from)?;
    }
    for node in [a1.node(), a2.node(), b1.node()] {
        wait_log(node, "is also the publicEndpoint of a1")?;
    }
    let why = "its publicEndpoint is invalid or belongs to an older node";
    ensure_why(b1.node(), "a2", why)
}

fn an_internal_ip_of_two_realms_stays_with_the_first_node(lab: &Lab) -> Result<()> {
    let (from, c1) = (lab.pod("a1")?, lab.node("c1")?);
    let address = c1.spec().addresses[0];
    Ping::to(address).reply_ttl(from)?;
    let _restored = Restored(lab);
    let mut nodes = lab.topology().inventory();
    let mut other = nodes[3].clone();
    ensure!(other.name == "c1");
    other.name = "d1".into();
    other.realm = Some("cloud-d".into());
    other.internal_ips = vec![[172, 31, 0, 9].into(), address];
    other.pod_cidrs = vec!["10.42.9.0/24".parse()?];
    other.public_endpoint = Some(STRANGER);
    nodes.push(other);
    lab.write_inventory(&nodes)?;
    let a1 = from.node();
    wait::until("a1 knows d1", || Ok(a1.peers()?.contains_key("d1")))?;
    Ping::to(address).reply_ttl(from)?;
    ensure_why(
        a1,
        "d1",
        "another node has the same InternalIP and keeps it",
    )
}

fn text_that_is_no_inventory_changes_nothing(lab: &Lab) -> Result<()> {
    let a1 = lab.node("a1")?;
    let _restored = Restored(lab);
    inventory::write_text(&lab.inventory_path(), "nodes:\n  - named: a1\n")?;
    wait_log(a1, "named")?;
    thread::sleep(Duration::from_millis(200));
    for peer in ["a2", "b1", "c1"] {
        Ping::to(lab.pod(peer)?.address()).reply_ttl(lab.pod("a1")?)?;
    }
    Ok(())
}

/// A virtual address, as keepalived or kube-vip moves it.
fn an_address_that_moves_to_another_node_is_reached_there(lab: &Lab) -> Result<()> {
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
    const PORT: u16 = 8100;
    let holders = [lab.node("a1")?, lab.node("a2")?];
    let (node, pod) = (lab.node("b1")?, lab.pod("b1")?);
    let _restored = Restored(lab);
    for (holder, other) in [(0, 1), (1, 0), (0, 1)] {
        let (holder, other) = (holders[holder], holders[other]);
        let name = &holder.spec().name;
        let _ = other.ip(&format!("address del {VIP}/32 dev eth0"));
        holder.ip(&format!("address add {VIP}/32 dev eth0"))?;
        let mut nodes = lab.topology().inventory();
        for it in nodes.iter_mut().filter(|it| it.name == *name) {
            it.internal_ips.push(VIP);
        }
        lab.write_inventory(&nodes)?;
        let server = EchoServer::start(holder, PORT)?;
        let to = SocketAddrV4::new(VIP, PORT);
        for from in [&**node as &Host, pod] {
            let what = format!("{} reaches {VIP} on {name}", from.name());
            wait::until(&what, || Ok(tcp_exchange(from, 0, to, 64).is_ok()))?;
        }
        // Not by chance: its packets went to this node.
        let before = node.traffic(name)?.tx_packets;
        tcp_exchange(pod, 0, to, 64)?;
        ensure!(node.traffic(name)?.tx_packets > before);
        Ping::to(holder.internal_ip()).reply_ttl(node)?;
        Ping::to(other.internal_ip()).reply_ttl(node)?;
        drop(server);
    }
    for holder in holders {
        let _ = holder.ip(&format!("address del {VIP}/32 dev eth0"));
    }
    Ok(())
}

/// The state of a peer, if the node knows it.
fn state(node: &Node, peer: &str) -> Result<Option<String>> {
    Ok(row(node, peer)?.and_then(|row| row["state"].as_str().map(ToOwned::to_owned)))
}

/// Fails unless the node says this about the peer.
fn ensure_why(node: &Node, peer: &str, why: &str) -> Result<()> {
    let row = row(node, peer)?.context("it is no peer")?;
    let said = row["why"].as_str().unwrap_or_default();
    ensure!(said.contains(why), "{why:?} is not in {said:?}");
    Ok(())
}

fn row(node: &Node, peer: &str) -> Result<Option<serde_json::Value>> {
    let peers = node.ipipctl_json(&["peers"])?;
    let rows = peers.as_array().context("not a list")?;
    Ok(rows.iter().find(|row| row["node"] == peer).cloned())
}

fn wait_log(node: &Node, text: &str) -> Result<()> {
    wait::until(&format!("the agent logs {text:?}"), || {
        Ok(node.log_tail(40).contains(text))
    })
}

//! Changes of the inventory while everything runs.

use anyhow::{Result, ensure};
use ipip_abi::DropReason;
use ipip_lab::{Lab, inventory};
use ipip_testkit::{
    harness::Test,
    ping::{Answer, Ping},
    tests, wait,
};
use std::{thread, time::Duration};

pub const TESTS: &[Test<Lab>] = tests![
    packets_of_a_removed_node_are_dropped_until_it_is_a_peer_again,
    an_invalid_inventory_changes_nothing_and_the_log_names_the_value,
];

/// Restores the topology's inventory when dropped, and waits until every agent has read it.
struct Restored<'a>(&'a Lab);

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

fn an_invalid_inventory_changes_nothing_and_the_log_names_the_value(lab: &Lab) -> Result<()> {
    let a1 = lab.node("a1")?;
    let _restored = Restored(lab);
    inventory::write_text(
        &lab.inventory_path(),
        "nodes:\n  - name: a1\n    internalIPs: [10.0.0.11]\n    podCIDRs: [10.42.1.0/240]\n",
    )?;
    wait::until("the agent rejects the inventory", || {
        Ok(a1.log_tail(10).contains("10.42.1.0/240"))
    })?;
    thread::sleep(Duration::from_millis(200));
    for peer in ["a2", "b1", "c1"] {
        Ping::to(lab.pod(peer)?.address()).reply_ttl(lab.pod("a1")?)?;
    }
    Ok(())
}

//! The cached MAC of the next hop follows the neighbour table.

use anyhow::{Result, ensure};
use ipip_abi::{Counter, Mac};
use ipip_datapath::next_hops_until;
use ipip_lab::Lab;
use ipip_testkit::{
    harness::Test,
    host::Host,
    ping::{Answer, Ping},
    sequence::Sequence,
    tests, wait,
};
use std::{thread, time::Duration};

pub const TESTS: &[Test<Lab>] = tests![
    the_cache_follows_a_gateway_with_a_new_mac,
    without_an_agent_a_gateway_with_a_new_mac_is_found_within_a_minute,
    the_kernel_keeps_one_neighbour_for_all_addresses_in_the_tunnel,
];

const PER_SECOND: u64 = 1000;
const NEW_MAC: Mac = Mac([0x02, 0xfe, 0, 0, 0, 0x01]);

/// Restores the gateway's MAC when dropped.
struct OldMac<'a> {
    gateway: &'a Host,
    mac: String,
}

impl Drop for OldMac<'_> {
    fn drop(&mut self) {
        let set = self
            .gateway
            .ip(&format!("link set lan0 address {}", self.mac));
        if let Err(error) = set {
            eprintln!("restoring a MAC: {error:#}");
        }
    }
}

fn the_cache_follows_a_gateway_with_a_new_mac(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("a1")?, lab.pod("b1")?);
    let gateway = lab.fabric().gateway("cloud-a")?;
    Ping::to(to.address()).reply_ttl(from)?;
    let next_hop = || -> Result<Mac> {
        let index = from.node().peer_index("b1")?;
        Ok(from
            .node()
            .maps()?
            .peers
            .get(&index.into(), 0)?
            .next_hop_mac)
    };
    let old = OldMac {
        gateway,
        mac: next_hop()?.to_string(),
    };
    let stream = Sequence::start(from, to, to.at(7100), PER_SECOND)?;
    gateway.ip(&format!("link set lan0 address {NEW_MAC}"))?;
    wait::until("a1 sends to the gateway's new MAC", || {
        Ok(next_hop()? == NEW_MAC)
    })?;
    Ping::to(to.address()).reply_ttl(from)?;
    stream.wait_for(300)?;
    let tallied = stream.stop()?;
    // The agent observes the change. Its next resync would come 15 seconds later on average.
    ensure!(
        tallied.lost() < 3 * PER_SECOND,
        "packets went to the old MAC for too long: {tallied:?}"
    );
    let mac = old.mac.clone();
    // The kernel accepts at most one gratuitous ARP a second (locktime).
    thread::sleep(Duration::from_millis(1100));
    drop(old);
    wait::until("a1 sends to the gateway's old MAC again", || {
        Ok(next_hop()?.to_string() == mac)
    })
}

/// A bridge, as in cloud a, also takes frames for its earlier MAC.
fn without_an_agent_a_gateway_with_a_new_mac_is_found_within_a_minute(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("b1")?, lab.pod("a1")?);
    let (node, gateway) = (from.node(), lab.fabric().gateway("cloud-b")?);
    Ping::to(to.address()).reply_ttl(from)?;
    let until = || Ok::<u32, anyhow::Error>(node.maps()?.next_hops_until.get(&0, 0)?);
    // The agent's promise ends after a minute at most.
    let promised = until()?;
    ensure!(promised <= next_hops_until(Duration::from_secs(60))?);
    ensure!(promised >= next_hops_until(Duration::ZERO)?);
    node.stop_agent()?;
    let index = node.peer_index("a1")?;
    let old = OldMac {
        gateway,
        mac: node
            .maps()?
            .peers
            .get(&index.into(), 0)?
            .next_hop_mac
            .to_string(),
    };
    gateway.ip(&format!("link set lan0 address {NEW_MAC}"))?;
    let lost = Ping::to(to.address()).send(from)?;
    // As if the minute were over.
    node.maps()?.next_hops_until.set(0, promised - 100, 0)?;
    let before = node.counter(Counter::NeighbourFallback)?;
    let found = wait::until("b1 finds the gateway's new MAC", || {
        let answer = Ping::to(to.address()).send(from)?;
        Ok(matches!(answer, Answer::Reply { .. }))
    });
    let after = node.counter(Counter::NeighbourFallback)?;
    thread::sleep(Duration::from_millis(1100));
    drop(old);
    node.start_agent()?;
    node.wait_ready(Duration::from_secs(60))?;
    ensure!(lost == Answer::Silence, "{lost:?}");
    found?;
    ensure!(after > before);
    wait::until("b1 reaches a1 with its agent", || {
        let answer = Ping::to(to.address()).send(from)?;
        Ok(matches!(answer, Answer::Reply { .. }))
    })
}

/// Its table has room for 1024 by default, and the agent sends probes to each peer.
fn the_kernel_keeps_one_neighbour_for_all_addresses_in_the_tunnel(lab: &Lab) -> Result<()> {
    let from = lab.node("a1")?;
    for to in ["b1", "c1"] {
        Ping::to(lab.pod(to)?.address()).reply_ttl(from)?;
        Ping::to(lab.node(to)?.internal_ip()).reply_ttl(from)?;
    }
    let kept = from.ip("-4 neighbour show dev ipip0 nud all")?;
    let kept: Vec<&str> = kept.lines().collect();
    ensure!(
        matches!(kept[..], [it] if it.starts_with("192.0.0.8 ")),
        "{kept:?}"
    );
    Ok(())
}

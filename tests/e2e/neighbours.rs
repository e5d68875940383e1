//! The cached MAC of the next hop follows the neighbour table.

use anyhow::{Result, ensure};
use ipip_abi::Mac;
use ipip_lab::Lab;
use ipip_testkit::{harness::Test, host::Host, ping::Ping, sequence::Sequence, tests, wait};
use std::{thread, time::Duration};

pub const TESTS: &[Test<Lab>] = tests![the_cache_follows_a_gateway_with_a_new_mac];

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

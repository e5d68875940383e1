//! A router on the way with a smaller MTU than the uplinks.

use super::traffic::Traffic;
use anyhow::{Context, Result};
use ipip_abi::Encapsulation;
use ipip_lab::{Lab, LabNode, narrow::Narrow};
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange, udp_exchange},
    harness::Test,
    tests, wait,
};
use std::time::{Duration, Instant};

pub const TESTS: &[Test<Lab>] = tests![a_router_of_1280_bytes_is_found_although_icmp_is_dropped];

/// One more that takes minutes.
pub const LONG_TESTS: &[Test<Lab>] =
    tests![a_router_of_1400_bytes_is_found_with_icmp_and_the_larger_mtu_later];

/// The MTU is found within this time.
const FOUND: Duration = Duration::from_secs(5);
/// A larger one is found within this time: the first attempt is made after a minute.
pub const GROWN: Duration = Duration::from_secs(120);
const PORT: u16 = 8081;
const BULK: usize = 16 << 20;

fn a_router_of_1400_bytes_is_found_with_icmp_and_the_larger_mtu_later(lab: &Lab) -> Result<()> {
    let ends = ["a2", "b1"];
    passes(lab, ends, 1400, false)?;
    grows(lab, ends)
}

fn a_router_of_1280_bytes_is_found_although_icmp_is_dropped(lab: &Lab) -> Result<()> {
    passes(lab, ["c1", "b1"], 1280, true)
}

/// Expects that bulk TCP and large datagrams pass the narrow router.
fn passes(lab: &Lab, names: [&str; 2], mtu: u32, drops_icmp: bool) -> Result<()> {
    let [one, other] = [lab.pod(names[0])?, lab.pod(names[1])?];
    let ends = [&**one.node(), &**other.node()];
    let usual = lab.topology().uplink_mtu;
    both_have(ends, usual, FOUND)?;
    let _servers = [
        EchoServer::start(one, PORT)?,
        EchoServer::start(other, PORT)?,
    ];
    let exchange = || {
        let began = Instant::now();
        tcp_exchange(one, 0, other.at(PORT), BULK)?;
        Ok::<_, anyhow::Error>(began.elapsed().as_secs_f64())
    };
    exchange()?;

    let narrow = Narrow::start(lab.fabric(), lab.topology(), "cloud-b", mtu, drops_icmp)?;
    let first = exchange()?;
    both_have(ends, mtu, FOUND)?;
    let second = exchange()?;
    eprintln!(
        "MTU {mtu}: {BULK} bytes there and back took {first:.2} s while it was found, then {second:.2} s"
    );
    udp_exchange(one, 0, other.at(PORT), 8192)?;
    udp_exchange(other, 0, one.at(PORT), 8192)?;
    narrow.end()
}

/// Expects that the usual MTU is found again.
fn grows(lab: &Lab, names: [&str; 2]) -> Result<()> {
    let [one, other] = [lab.pod(names[0])?, lab.pod(names[1])?];
    let ends = [&**one.node(), &**other.node()];
    // A path without traffic is not searched.
    let traffic = Traffic::start(one, other, 7002, 100)?;
    both_have(ends, lab.topology().uplink_mtu, GROWN)?;
    traffic.stop()?.lost_nothing()
}

/// Waits until both nodes use a path with this MTU of its network.
pub fn both_have(ends: [&LabNode; 2], mtu: u32, max_wait: Duration) -> Result<()> {
    for [node, peer] in [ends, [ends[1], ends[0]]] {
        let (name, peer) = (&node.spec().name, &peer.spec().name);
        let mut found = 0;
        wait::within(max_wait, &format!("{name} knows the MTU to {peer}"), || {
            let entry = node.maps()?.peers.get(&node.peer_index(peer)?.into(), 0)?;
            let encapsulation = Encapsulation::try_from(entry.encapsulation).ok();
            let overhead = encapsulation.map_or(0, Encapsulation::overhead);
            found = u32::from(entry.mtu + overhead);
            Ok(found == mtu)
        })
        .with_context(|| format!("{found}, not {mtu}"))?;
    }
    Ok(())
}

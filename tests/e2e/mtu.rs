//! Pods get an MTU that fits, and larger packets get an ICMP error.

use anyhow::{Result, ensure};
use ipip_lab::{Lab, LabPod};
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange},
    harness::Test,
    ping::{Answer, Ping},
    tests, wait,
};
use std::time::Duration;

pub const TESTS: &[Test<Lab>] = tests![
    the_largest_packet_of_a_pod_fits_and_one_byte_more_does_not,
    a_pod_with_a_too_large_mtu_gets_an_icmp_error_with_the_mtu_that_fits,
    a_new_pod_has_the_gso_size_of_its_nodes_uplink,
];

/// 20 bytes of IP and 8 of ICMP.
const HEADERS: usize = 28;

fn the_largest_packet_of_a_pod_fits_and_one_byte_more_does_not(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("a1")?, lab.pod("b1")?);
    let fits = lab.topology().uplink_mtu as usize - 20 - HEADERS;
    let full = Ping::to(to.address()).bytes(fits).dont_fragment();
    full.reply_ttl(from)?;
    let answer = full.bytes(fits + 1).send(from)?;
    ensure!(answer == Answer::TooBigForOwnRoute, "got {answer:?}");
    Ok(())
}

fn a_pod_with_a_too_large_mtu_gets_an_icmp_error_with_the_mtu_that_fits(lab: &Lab) -> Result<()> {
    let pod: LabPod = lab.start_pod("a1", "large")?;
    let to = lab.pod("b1")?;
    let fits = lab.topology().uplink_mtu as u16 - 20;
    pod.ip("link set eth0 mtu 1500")?;
    pod.node()
        .ip(&format!("link set {} mtu 1500", pod.veth()?))?;
    let too_large = Ping::to(to.address()).bytes(1500 - HEADERS);
    // Without DF, the packet is fragmented.
    too_large.reply_ttl(&pod)?;
    let answer = too_large.dont_fragment().send(&pod)?;
    ensure!(
        matches!(answer, Answer::FragmentationNeeded { mtu, .. } if mtu == fits),
        "not `fragmentation needed` with {fits}: {answer:?}"
    );
    let _server = EchoServer::start(to, 8080)?;
    tcp_exchange(&pod, 0, to.at(8080), 1 << 20)?;
    pod.delete()
}

/// BIG TCP: new pods get the larger GSO size of the uplink, and their packets arrive.
fn a_new_pod_has_the_gso_size_of_its_nodes_uplink(lab: &Lab) -> Result<()> {
    const SIZE: u32 = 192 << 10;
    /// The kernel's default.
    const COMMON: u32 = 65_536;
    let (node, to) = (lab.node("a1")?, lab.pod("a1")?);
    let set = |size, pods| {
        node.set_gso_max("eth0", size)?;
        // The kernel sends no event for the size alone, and agents resync only every 30 seconds.
        node.ip("link set eth0 alias changed")?;
        wait::within(
            Duration::from_secs(20),
            "the agent writes the size to CONFIG",
            || Ok(ipip_datapath::read_config(node.pins())?.pod_gso_max == pods),
        )
    };
    set(SIZE, SIZE)?;
    let pod = lab.start_pod("a1", "big")?;
    ensure!(pod.gso_max("eth0")? == SIZE && node.gso_max(pod.veth()?)? == SIZE);
    let _server = EchoServer::start(to, 8080)?;
    tcp_exchange(&pod, 0, to.at(8080), 8 << 20)?;
    set(COMMON, 0)?;
    let usual = lab.start_pod("a1", "usual")?;
    ensure!(usual.gso_max("eth0")? == COMMON);
    pod.delete()?;
    usual.delete()
}

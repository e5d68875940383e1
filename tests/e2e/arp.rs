//! Pods and guests that ask for their gateway by ARP, and pods that forge ARP.

use anyhow::{Context, Result, ensure};
use ipip_abi::{Counter, DropReason, Mac};
use ipip_lab::{Lab, LabPod, topology::WEB};
use ipip_netlink::{Netlink, sysctl};
use ipip_testkit::{harness::Test, host::Host, ping::Ping, tests, wait};
use std::time::Duration;

pub const TESTS: &[Test<Lab>] = tests![
    a_pod_without_its_permanent_neighbour_entry_has_its_network,
    a_guest_that_took_over_the_pods_addresses_has_its_network,
    a_guest_with_the_pods_address_and_another_mac_reaches_and_is_reached_by_pods,
    the_host_resolves_a_pod_whose_permanent_neighbour_entry_is_lost,
    forged_arp_of_a_pod_leaves_no_neighbour_entry_on_the_node,
];

/// MAC of the pod's interface after a guest took over the pod's own MAC.
const PORT_MAC: &str = "02:fe:00:00:00:07";
/// MAC of a guest that did not.
const GUEST_MAC: Mac = Mac([0x02, 0xfe, 0, 0, 0, 0x08]);

fn a_pod_without_its_permanent_neighbour_entry_has_its_network(lab: &Lab) -> Result<()> {
    let pod = lab.start_pod("a1", "flushed")?;
    let before = pod.node().counter(Counter::ArpAnswered)?;
    pod.ip("neigh del 169.254.1.1 dev eth0")?;
    has_network(lab, &pod, &pod)?;
    pod.ip("neigh flush dev eth0")?;
    has_network(lab, &pod, &pod)?;
    let answered = pod.node().counter(Counter::ArpAnswered)? - before;
    ensure!(answered >= 2, "{answered} requests were answered");
    pod.delete()
}

/// What KubeVirt's bridge binding does with the guest of a virtual machine.
fn a_guest_that_took_over_the_pods_addresses_has_its_network(lab: &Lab) -> Result<()> {
    let pod = lab.start_pod("a1", "machine")?;
    let eth0 = pod.enter(|| Netlink::open()?.link("eth0"))??;
    let mac = Mac(eth0.context("the pod has no eth0")?.mac);
    let guest = take_over(lab, &pod, mac)?;
    has_network(lab, &pod, &guest)?;
    pod.delete()
}

fn a_guest_with_the_pods_address_and_another_mac_reaches_and_is_reached_by_pods(
    lab: &Lab,
) -> Result<()> {
    let pod = lab.start_pod("a1", "other-mac")?;
    let guest = take_over(lab, &pod, GUEST_MAC)?;
    for peer in [lab.pod("b1")?, lab.pod("a1")?] {
        Ping::to(peer.address()).reply_ttl(&guest)?;
        Ping::to(pod.address()).reply_ttl(peer)?;
    }
    pod.delete()
}

/// Moves the pod's address to a guest behind a bridge in the pod. The guest has `mac`, and the pod's interface another
/// one than before.
fn take_over(lab: &Lab, pod: &LabPod, mac: Mac) -> Result<Host> {
    let guest = Host::create(format!("{}-guest", pod.name()), lab.trash())?;
    pod.ip("address flush dev eth0")?;
    pod.ip(&format!("link set eth0 address {PORT_MAC}"))?;
    pod.ip("link add br0 type bridge")?;
    pod.ip(&format!(
        "link add tap0 type veth peer name eth0 netns {}",
        guest.name()
    ))?;
    for port in ["eth0", "tap0"] {
        pod.ip(&format!("link set {port} master br0 up"))?;
    }
    pod.ip("link set br0 up")?;
    guest.ip(&format!("link set eth0 address {mac} up"))?;
    guest.ip(&format!("address add {}/32 dev eth0", pod.address()))?;
    guest.ip("route add 169.254.1.1 dev eth0")?;
    guest.ip("route add default via 169.254.1.1")?;
    Ok(guest)
}

fn the_host_resolves_a_pod_whose_permanent_neighbour_entry_is_lost(lab: &Lab) -> Result<()> {
    let pod = lab.start_pod("a1", "unresolved")?;
    let node = pod.node();
    node.ip(&format!("neigh del {} dev {}", pod.address(), pod.veth()?))?;
    Ping::to(pod.address()).reply_ttl(node)?;
    pod.delete()
}

fn forged_arp_of_a_pod_leaves_no_neighbour_entry_on_the_node(lab: &Lab) -> Result<()> {
    let pod = lab.start_pod("a1", "forger")?;
    let node = pod.node();
    let veth = pod.veth()?;
    let dropped = node.drops(DropReason::PodArp)?;
    let _restored = NoReversePathFilter::new(node, veth)?;
    pod.ip(&format!("route add {} dev eth0", node.internal_ip()))?;
    const SENDERS: u64 = 3;
    for last in 1..=SENDERS {
        let sender = format!("198.19.0.{last}");
        pod.ip(&format!("address add {sender}/32 dev lo"))?;
        let ping = Ping {
            from: Some(sender.parse()?),
            timeout: Duration::from_millis(100),
            ..Ping::to(node.internal_ip())
        };
        ping.send(&pod)?;
        // Otherwise the pod's kernel would not ask again.
        pod.ip(&format!("neigh del {} dev eth0", node.internal_ip()))?;
    }
    wait::until("the node drops the pod's ARP", || {
        Ok(node.drops(DropReason::PodArp)? >= dropped + SENDERS)
    })?;
    let neighbours = node.ip(&format!("neigh show dev {veth}"))?;
    ensure!(!neighbours.contains("198.19."), "{neighbours}");
    Ok(())
}

/// Expects that `host`, which has the pod's address, reaches and is reached by everything.
fn has_network(lab: &Lab, pod: &LabPod, host: &Host) -> Result<()> {
    let (neighbour, remote) = (lab.pod("a1")?, lab.pod("b1")?);
    for to in [
        remote.address(),
        neighbour.address(),
        pod.node().internal_ip(),
        WEB,
    ] {
        Ping::to(to).reply_ttl(host)?;
    }
    for from in [remote, neighbour] {
        Ping::to(pod.address()).reply_ttl(from)?;
    }
    Ping::to(pod.address()).reply_ttl(pod.node()).map(drop)
}

/// Restores a node's reverse path filter when dropped. The filter would refuse some senders of forged ARP.
struct NoReversePathFilter<'a> {
    node: &'a Host,
    before: String,
}

/// The larger one of this value and the interface's own counts.
const FILTER_OF_ALL: &str = "net.ipv4.conf.all.rp_filter";

impl<'a> NoReversePathFilter<'a> {
    fn new(node: &'a Host, ifname: &str) -> Result<Self> {
        let before = node.enter(|| sysctl(FILTER_OF_ALL))??;
        let restored = Self { node, before };
        node.sysctl(FILTER_OF_ALL, "0")?;
        node.sysctl(&format!("net.ipv4.conf.{ifname}.rp_filter"), "0")?;
        Ok(restored)
    }
}

impl Drop for NoReversePathFilter<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.node.sysctl(FILTER_OF_ALL, &self.before) {
            eprintln!("restoring the reverse path filter: {error:#}");
        }
    }
}

//! Setups without this project: pods, routes and devices as other projects configure them.

use super::{ManualPod, SetupKind, flannel};
use anyhow::{Context, Result};
use ipip_lab::{Lab, topology::gateway_of};
use ipip_testkit::host::Host;
use std::net::Ipv4Addr;

/// The device of kernel ipip; `ipip0` is a device of ours.
const IPIP: &str = "ipip1";

/// Makes the two pods and connects them; `None` if the kernel lacks the device type.
pub fn connect(kind: SetupKind, lab: &Lab) -> Result<Option<[ManualPod; 2]>> {
    if kind == SetupKind::Bridge {
        return on_a_bridge(lab).map(Some);
    }
    if kind == SetupKind::KernelIpip && !has_ipip(lab) {
        return Ok(None);
    }
    let header = match kind {
        SetupKind::PlainOurMtu | SetupKind::KernelIpip => 20,
        SetupKind::Vxlan => 50,
        _ => 0,
    };
    let mtu = lab.topology().uplink_mtu - header;
    let pods = [routed_pod(lab, 0, mtu)?, routed_pod(lab, 1, mtu)?];
    for (own, other) in [(0, 1), (1, 0)] {
        match kind {
            SetupKind::Vxlan => flannel::connect(lab, own, other, mtu)?,
            SetupKind::KernelIpip => kernel_ipip(lab, own, other, mtu)?,
            _ => plain_routes(lab, own, other)?,
        }
    }
    Ok(Some(pods))
}

/// Whether the kernel has the device type `ipip`.
fn has_ipip(lab: &Lab) -> bool {
    let node = &lab.nodes()[0];
    // Without an address the probe would be a duplicate of `tunl0`, which the module makes itself.
    node.ip("link add probe type ipip local 192.0.2.1").is_ok()
        && node.ip("link delete probe").is_ok()
}

/// The address with this number in a node's pod range.
fn address_of(lab: &Lab, node: usize, number: u32) -> Ipv4Addr {
    let network = lab.topology().nodes[node].pod_cidr;
    Ipv4Addr::from_bits(network.network().to_bits() + number)
}

/// A pod with a veth, a host route and a fixed neighbour entry, as our plugin makes it, but without programs.
fn routed_pod(lab: &Lab, node: usize, mtu: u32) -> Result<ManualPod> {
    let address = address_of(lab, node, 2);
    let node = &lab.nodes()[node];
    let host = Host::create(format!("{}-p1", node.name()), lab.trash())?;
    let [host_mac, pod_mac] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
    node.ip(&format!(
        "link add pod1 address {host_mac} mtu {mtu} type veth \
         peer name eth0 address {pod_mac} mtu {mtu} netns {}",
        host.name()
    ))?;
    node.ip("link set pod1 up")?;
    node.ip(&format!("route add {address} dev pod1"))?;
    node.ip(&format!(
        "neigh add {address} lladdr {pod_mac} dev pod1 nud permanent"
    ))?;
    host.ip(&format!("addr add {address}/32 dev eth0"))?;
    host.ip("link set eth0 up")?;
    host.ip("route add 169.254.1.1 dev eth0 scope link")?;
    host.ip("route add default via 169.254.1.1")?;
    host.ip(&format!(
        "neigh add 169.254.1.1 lladdr {host_mac} dev eth0 nud permanent"
    ))?;
    node.sysctl("net.ipv4.ip_forward", "1")?;
    // The source check costs a route lookup for each packet, and these setups do not need it.
    for key in ["all", "default", "eth0", "pod1"] {
        node.sysctl(&format!("net.ipv4.conf.{key}.rp_filter"), "0")?;
    }
    Ok(ManualPod { host, address })
}

/// Two pods on the bridge of the first node, as the reference plugin `bridge` makes it with
/// `isGateway`.
fn on_a_bridge(lab: &Lab) -> Result<[ManualPod; 2]> {
    let node = &lab.nodes()[0];
    let mtu = lab.topology().uplink_mtu;
    let gateway = address_of(lab, 0, 1);
    node.ip(&format!("link add cni0 mtu {mtu} type bridge"))?;
    node.ip(&format!("addr add {gateway}/24 dev cni0"))?;
    node.ip("link set cni0 up")?;
    node.sysctl("net.ipv4.ip_forward", "1")?;
    // kube-proxy needs bridge netfilter; the bridge is faster without it.
    let off = node.sysctl("net.bridge.bridge-nf-call-iptables", "0");
    if off.is_err() {
        eprintln!("this kernel has no bridge netfilter loaded: nothing to turn off for the bridge");
    }
    let pod = |number: u32| -> Result<ManualPod> {
        let address = address_of(lab, 0, 1 + number);
        let host = Host::create(format!("{}-p{number}", node.name()), lab.trash())?;
        node.ip(&format!(
            "link add pod{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            host.name()
        ))?;
        node.ip(&format!("link set pod{number} master cni0 up"))?;
        host.ip(&format!("addr add {address}/24 dev eth0"))?;
        host.ip("link set eth0 up")?;
        host.ip(&format!("route add default via {gateway}"))?;
        Ok(ManualPod { host, address })
    };
    Ok([pod(1)?, pod(2)?])
}

/// Routes to the other node's pods on the node and on the router; packets travel without encapsulation.
fn plain_routes(lab: &Lab, own: usize, other: usize) -> Result<()> {
    let topology = lab.topology();
    let (from, to) = (&topology.nodes[own], &topology.nodes[other]);
    let router = lab.fabric().gateway(&from.cloud)?;
    router.ip(&format!(
        "route add {} via {}",
        to.pod_cidr, to.addresses[0]
    ))?;
    let cloud = &topology.clouds[0];
    let lan = cloud
        .network_of(from.addresses[0])
        .context("the node's address is in no network of its cloud")?;
    lab.nodes()[own].ip(&format!(
        "route add {} via {}",
        to.pod_cidr,
        gateway_of(cloud.networks[lan])
    ))?;
    Ok(())
}

/// Connects node `own` to node `other` as Calico does: one device for all nodes; the route's gateway is the outer
/// destination.
fn kernel_ipip(lab: &Lab, own: usize, other: usize, mtu: u32) -> Result<()> {
    let topology = lab.topology();
    let (from, to) = (&topology.nodes[own], &topology.nodes[other]);
    let node = &lab.nodes()[own];
    node.ip(&format!(
        "link add {IPIP} mtu {mtu} type ipip local {}",
        from.addresses[0]
    ))?;
    bring_up(node, IPIP, from.pod_cidr.network())?;
    let (range, underlay) = (to.pod_cidr, to.addresses[0]);
    node.ip(&format!(
        "route add {range} via {underlay} dev {IPIP} onlink"
    ))?;
    Ok(())
}

/// Gives a tunnel device the first address of the node's pod range, as flannel and Calico do, and sets it up.
pub fn bring_up(node: &Host, device: &str, address: Ipv4Addr) -> Result<()> {
    node.ip(&format!("addr add {address}/32 dev {device}"))?;
    node.ip(&format!("link set {device} up"))?;
    node.sysctl(&format!("net.ipv4.conf.{device}.rp_filter"), "0")
}

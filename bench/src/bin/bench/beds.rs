//! The beds: the same machines and wires, connected in different ways.

use crate::flannel;
use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, Topology, topology::gateway_of};
use ipip_netlink::{Offload, set_offload};
use ipip_testkit::{host::Host, shell};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

/// What connects the pods of a bed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// This project.
    Ours(Ours),
    /// This project as [`Other`] has it.
    Other(Ours),
    /// Routes, with the largest MTU of pods that fits.
    Plain,
    /// Routes, with the MTU of pods that ours has.
    PlainOurMtu,
    /// Kernel VXLAN as flannel sets it, with flannel's rules.
    Vxlan,
    /// Kernel ipip as Calico sets it.
    KernelIpip,
    /// Both pods on one node, on a bridge as the reference plugin sets it.
    Bridge,
}

/// How this project connects them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Ours {
    /// As it is installed.
    Ipip,
    /// As it is installed, on uplinks that take larger packets to be segmented (BIG TCP).
    BigTcp,
    /// With `encapsulation: udp`.
    Udp,
    /// The same, on such uplinks.
    BigTcpUdp,
    /// Both pods on one node.
    OneNode,
}

impl Ours {
    /// Whether uplinks, and with them pods, take larger packets than is usual.
    pub fn is_big_tcp(self) -> bool {
        matches!(self, Self::BigTcp | Self::BigTcpUdp)
    }
}

/// Bytes of the largest packets where uplinks take larger ones than is usual.
const BIG_TCP: u32 = 192 << 10;

/// What [`Kind::Other`] has of its own.
#[derive(Clone, Debug, Default)]
pub struct Other {
    /// The folder of its agent and plugin; none: those of this build.
    pub programs: Option<PathBuf>,
    /// A script of bash that changes a bed when it is built.
    pub set_up: Option<PathBuf>,
}

/// Two pods on nodes over a router, or on one node.
pub struct Bed {
    /// What connects the pods.
    pub kind: Kind,
    // Before `lab`, which removes the namespaces.
    pods: Pods,
    lab: Lab,
}

enum Pods {
    /// Made by the CNI plugin, owned by the lab.
    Real,
    /// Made here, with their addresses.
    ByHand([(Host, Ipv4Addr); 2]),
}

impl Bed {
    /// Builds it on uplinks of this MTU; none where the kernel lacks what it needs.
    pub fn build(kind: Kind, uplink_mtu: u32, other: &Other) -> Result<Option<Self>> {
        let mut topology = Topology::over_a_router();
        topology.uplink_mtu = uplink_mtu;
        let ours = match kind {
            Kind::Ours(ours) | Kind::Other(ours) => Some(ours),
            _ => None,
        };
        if matches!(ours, Some(Ours::Udp | Ours::BigTcpUdp)) {
            topology.agent.encapsulation = Some("udp".into());
        }
        if ours.is_some_and(Ours::is_big_tcp) {
            topology.uplink_gso_max = Some(BIG_TCP);
        }
        if matches!(kind, Kind::Other(_)) {
            topology.programs.clone_from(&other.programs);
        }
        let pods = match ours {
            Some(Ours::OneNode) => [2, 0],
            _ => [1, 1],
        };
        for (node, pods) in topology.nodes.iter_mut().zip(pods) {
            node.pods = pods;
        }
        let (pods, lab) = match ours {
            Some(_) => {
                let lab = Lab::start(topology).with_context(|| format!("{kind:?}"))?;
                (Pods::Real, lab)
            }
            None => {
                let lab = Lab::build(topology)?;
                if kind == Kind::KernelIpip && !has_ipip(&lab) {
                    return Ok(None);
                }
                let pods = by_hand(kind, &lab).with_context(|| format!("{kind:?}"))?;
                (Pods::ByHand(pods), lab)
            }
        };
        let bed = Self { kind, pods, lab };
        let ranges = bed.lab.topology().nodes.iter().map(|node| node.pod_cidr);
        let [first, second] = [0, 1].map(|index| bed.address(index));
        let same_node = ranges.filter(|it| it.contains(first) || it.contains(second));
        ensure!(
            (same_node.count() == 1) == (ours == Some(Ours::OneNode) || kind == Kind::Bridge),
            "{kind:?}: the pods {first} and {second} are not on the nodes that they should be on"
        );
        for index in 0..2 {
            // Else the measurement of connections ends as one of the search for a free port.
            bed.pod(index).sysctl("net.ipv4.tcp_max_tw_buckets", "0")?;
        }
        if let (Kind::Other(_), Some(script)) = (kind, &other.set_up) {
            bed.set_up(script)?;
        }
        Ok(Some(bed))
    }

    /// Runs a script that knows the namespaces and the veths of the pods by its environment.
    fn set_up(&self, script: &Path) -> Result<()> {
        let names = |hosts: Vec<&Host>| {
            hosts
                .iter()
                .map(|it| it.name())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let pods = self.lab.pods();
        let veths: Vec<&str> = pods.iter().map(|pod| pod.veth()).collect::<Result<_>>()?;
        let mut command = Command::new("bash");
        command
            .arg("-eu")
            .arg(script)
            .env("NODES", names(self.nodes().collect()))
            .env("ROUTER", names(vec![self.router()?]))
            .env("PODS", names(pods.iter().map(|pod| &**pod).collect()))
            .env(
                "POD_NODES",
                names(pods.iter().map(|pod| &***pod.node()).collect()),
            )
            .env("VETHS", veths.join(" "));
        shell::printed(&script.display().to_string(), command.output()).map(drop)
    }

    /// The first or the second pod.
    pub fn pod(&self, index: usize) -> &Host {
        match &self.pods {
            Pods::Real => &self.lab.pods()[index],
            Pods::ByHand(pods) => &pods[index].0,
        }
    }

    /// Its address.
    pub fn address(&self, index: usize) -> Ipv4Addr {
        match &self.pods {
            Pods::Real => self.lab.pods()[index].address(),
            Pods::ByHand(pods) => pods[index].1,
        }
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.lab.nodes().iter().map(|node| &***node)
    }

    /// From now on packets of the MTU's size travel between the nodes, and each node merges them.
    pub fn segment(&self) -> Result<()> {
        for node in self.nodes() {
            // A veth merges only what comes from one that segments.
            node.enter(|| set_offload("eth0", Offload::Tso, false))??;
            node.enter(|| set_offload("eth0", Offload::Gro, true))??;
        }
        for lan in ["lan0", "lan1"] {
            self.router()?
                .enter(|| set_offload(lan, Offload::Tso, false))??;
        }
        Ok(())
    }

    /// What lies between the nodes.
    fn router(&self) -> Result<&Host> {
        let cloud = &self.lab.topology().clouds[0];
        self.lab.fabric().gateway(&cloud.name)
    }
}

/// Whether the kernel has a device of type `ipip`.
fn has_ipip(lab: &Lab) -> bool {
    // One without an address would be like tunl0, which the module itself makes.
    lab.nodes()[0]
        .ip("link add probe type ipip local 192.0.2.1")
        .is_ok()
        && lab.nodes()[0].ip("link delete probe").is_ok()
}

fn by_hand(kind: Kind, lab: &Lab) -> Result<[(Host, Ipv4Addr); 2]> {
    if kind == Kind::Bridge {
        return bridge(lab);
    }
    let mtu = lab.topology().uplink_mtu
        - match kind {
            Kind::PlainOurMtu | Kind::KernelIpip => 20,
            Kind::Vxlan => 50,
            _ => 0,
        };
    let pods = [pod(lab, 0, mtu)?, pod(lab, 1, mtu)?];
    for (own, other) in [(0, 1), (1, 0)] {
        match kind {
            Kind::Vxlan => flannel::connect(lab, own, other, mtu)?,
            Kind::KernelIpip => kernel_ipip(lab, own, other, mtu)?,
            _ => route(lab, own, other)?,
        }
    }
    Ok(pods)
}

/// The Nth address of a node's range.
fn address_of(lab: &Lab, node: usize, number: u32) -> Ipv4Addr {
    let network = lab.topology().nodes[node].pod_cidr;
    Ipv4Addr::from_bits(network.network().to_bits() + number)
}

/// A pod as our plugin makes it, but with nothing attached.
fn pod(lab: &Lab, node: usize, mtu: u32) -> Result<(Host, Ipv4Addr)> {
    let address = address_of(lab, node, 2);
    let node = &lab.nodes()[node];
    let pod = Host::create(format!("{}-p1", node.name()), lab.trash())?;
    let [host_mac, pod_mac] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
    node.ip(&format!(
        "link add pod1 address {host_mac} mtu {mtu} type veth \
         peer name eth0 address {pod_mac} mtu {mtu} netns {}",
        pod.name()
    ))?;
    node.ip("link set pod1 up")?;
    node.ip(&format!("route add {address} dev pod1"))?;
    node.ip(&format!(
        "neigh add {address} lladdr {pod_mac} dev pod1 nud permanent"
    ))?;
    pod.ip(&format!("addr add {address}/32 dev eth0"))?;
    pod.ip("link set eth0 up")?;
    pod.ip("route add 169.254.1.1 dev eth0 scope link")?;
    pod.ip("route add default via 169.254.1.1")?;
    pod.ip(&format!(
        "neigh add 169.254.1.1 lladdr {host_mac} dev eth0 nud permanent"
    ))?;
    node.sysctl("net.ipv4.ip_forward", "1")?;
    // Without it the others would be slower than they need be.
    for key in ["all", "default", "eth0", "pod1"] {
        node.sysctl(&format!("net.ipv4.conf.{key}.rp_filter"), "0")?;
    }
    Ok((pod, address))
}

/// Two pods on the bridge of the first node, as the reference plugin `bridge` makes it with
/// `isGateway`.
fn bridge(lab: &Lab) -> Result<[(Host, Ipv4Addr); 2]> {
    let node = &lab.nodes()[0];
    let mtu = lab.topology().uplink_mtu;
    let gateway = address_of(lab, 0, 1);
    node.ip(&format!("link add cni0 mtu {mtu} type bridge"))?;
    node.ip(&format!("addr add {gateway}/24 dev cni0"))?;
    node.ip("link set cni0 up")?;
    node.sysctl("net.ipv4.ip_forward", "1")?;
    // kube-proxy needs bridge netfilter; the bridge is faster without.
    let off = node.sysctl("net.bridge.bridge-nf-call-iptables", "0");
    if off.is_err() {
        eprintln!("no bridge netfilter here: nothing to turn off for the bridge");
    }
    let pod = |number: u32| {
        let address = address_of(lab, 0, 1 + number);
        let pod = Host::create(format!("{}-p{number}", node.name()), lab.trash())?;
        node.ip(&format!(
            "link add pod{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            pod.name()
        ))?;
        node.ip(&format!("link set pod{number} master cni0 up"))?;
        pod.ip(&format!("addr add {address}/24 dev eth0"))?;
        pod.ip("link set eth0 up")?;
        pod.ip(&format!("route add default via {gateway}"))?;
        anyhow::Ok((pod, address))
    };
    Ok([pod(1)?, pod(2)?])
}

/// Pod addresses travel as they are, and the router knows them.
fn route(lab: &Lab, own: usize, other: usize) -> Result<()> {
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
        .context("a node outside its cloud")?;
    lab.nodes()[own].ip(&format!(
        "route add {} via {}",
        to.pod_cidr,
        gateway_of(cloud.networks[lan])
    ))?;
    Ok(())
}

/// As Calico sets it: one device for all nodes, the route's gateway is the outer destination.
fn kernel_ipip(lab: &Lab, own: usize, other: usize, mtu: u32) -> Result<()> {
    const DEVICE: &str = "ipip1";
    let topology = lab.topology();
    let (from, to) = (&topology.nodes[own], &topology.nodes[other]);
    let node = &lab.nodes()[own];
    node.ip(&format!(
        "link add {DEVICE} mtu {mtu} type ipip local {}",
        from.addresses[0]
    ))?;
    bring_up(node, DEVICE, from.pod_cidr.network())?;
    let (range, underlay) = (to.pod_cidr, to.addresses[0]);
    node.ip(&format!(
        "route add {range} via {underlay} dev {DEVICE} onlink"
    ))?;
    Ok(())
}

/// Gives a tunnel device the node's first pod address, as both do.
pub fn bring_up(node: &Host, device: &str, address: Ipv4Addr) -> Result<()> {
    node.ip(&format!("addr add {address}/32 dev {device}"))?;
    node.ip(&format!("link set {device} up"))?;
    node.sysctl(&format!("net.ipv4.conf.{device}.rp_filter"), "0")
}

//! The three pairs of nodes: the same machines and wires, connected in three ways.

use anyhow::{Context, Result};
use ipip_tests::{Lab, Topology, host::Host, topology::gateway_of};
use std::net::Ipv4Addr;

/// Two nodes over a router with one pod each.
pub struct Bed {
    /// What connects the pods.
    pub name: &'static str,
    // Before `lab`, which removes the namespaces.
    pods: Pods,
    lab: Lab,
}

enum Pods {
    /// Made by the CNI plugin, owned by the lab.
    Real,
    /// Made here: client and server.
    ByHand(Host, Host),
}

/// Whether, and how, packets between nodes of a bed made by hand are wrapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Between {
    Plain,
    Vxlan,
}

impl Bed {
    /// All three; the first is ours, the others are what it is compared with.
    pub fn all() -> Result<Vec<Self>> {
        let beds = vec![
            Self {
                name: "ours",
                pods: Pods::Real,
                lab: Lab::start(Topology::over_a_router()).context("ours")?,
            },
            Self::by_hand("plain", Between::Plain).context("plain")?,
            Self::by_hand("vxlan", Between::Vxlan).context("vxlan")?,
        ];
        for pod in beds.iter().flat_map(|bed| [bed.client(), bed.server()]) {
            // Else the measurement of connections ends as one of the search for a free port.
            pod.sysctl("net.ipv4.tcp_max_tw_buckets", "0")?;
        }
        Ok(beds)
    }

    /// The pod that offers the load.
    pub fn client(&self) -> &Host {
        match &self.pods {
            Pods::Real => &self.lab.pods()[0],
            Pods::ByHand(client, _) => client,
        }
    }

    /// The pod that takes it.
    pub fn server(&self) -> &Host {
        match &self.pods {
            Pods::Real => &self.lab.pods()[1],
            Pods::ByHand(_, server) => server,
        }
    }

    /// The address of the server.
    pub fn address(&self) -> Ipv4Addr {
        match &self.pods {
            Pods::Real => self.lab.pods()[1].address(),
            Pods::ByHand(..) => pod_address(&self.lab, 1),
        }
    }

    fn by_hand(name: &'static str, between: Between) -> Result<Self> {
        let lab = Lab::build(Topology::over_a_router())?;
        let mtu = lab.topology().uplink_mtu
            - match between {
                Between::Plain => 0,
                Between::Vxlan => 50,
            };
        let client = pod(&lab, 0, mtu)?;
        let server = pod(&lab, 1, mtu)?;
        for (own, other) in [(0, 1), (1, 0)] {
            match between {
                Between::Plain => route(&lab, own, other)?,
                Between::Vxlan => vxlan(&lab, own, other, mtu)?,
            }
        }
        Ok(Self {
            name,
            pods: Pods::ByHand(client, server),
            lab,
        })
    }
}

/// The address of the only pod of a node: the second of its range.
fn pod_address(lab: &Lab, node: usize) -> Ipv4Addr {
    let network = lab.topology().nodes[node].pod_cidr;
    Ipv4Addr::from_bits(network.network().to_bits() + 2)
}

/// A pod as our plugin makes it, but with nothing attached.
fn pod(lab: &Lab, node: usize, mtu: u32) -> Result<Host> {
    let address = pod_address(lab, node);
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
    Ok(pod)
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

/// As flannel sets it: no learning, the other node's entries are static.
fn vxlan(lab: &Lab, own: usize, other: usize, mtu: u32) -> Result<()> {
    const DEVICE: &str = "flannel.1";
    let mac = |node: usize| format!("02:00:00:00:01:{node:02x}");
    let topology = lab.topology();
    let (from, to) = (&topology.nodes[own], &topology.nodes[other]);
    let node = &lab.nodes()[own];
    let (range, underlay) = (to.pod_cidr, to.addresses[0]);
    node.ip(&format!(
        "link add {DEVICE} address {} mtu {mtu} type vxlan id 1 local {} dev eth0 \
         dstport 8472 nolearning",
        mac(own),
        from.addresses[0]
    ))?;
    node.ip(&format!(
        "addr add {}/32 dev {DEVICE}",
        from.pod_cidr.network()
    ))?;
    node.ip(&format!("link set {DEVICE} up"))?;
    node.sysctl("net.ipv4.conf.flannel.1.rp_filter", "0")?;
    let via = range.network();
    node.ip(&format!("route add {range} via {via} dev {DEVICE} onlink"))?;
    node.ip(&format!(
        "neigh add {via} lladdr {} dev {DEVICE} nud permanent",
        mac(other)
    ))?;
    ipip_tests::shell::run(&format!(
        "bridge -n {} fdb append {} dev {DEVICE} dst {underlay} self permanent",
        node.name(),
        mac(other)
    ))?;
    Ok(())
}

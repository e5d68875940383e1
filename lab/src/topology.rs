//! The description of a lab. A test gets a variant by changing one field.

use crate::{inventory::InventoryNode, probe_keys};
use ipnetwork::Ipv4Network;
use serde::Serialize;
use std::{env, net::Ipv4Addr, path::PathBuf};

/// Address of a host on the Internet that is not a node.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 66);
/// Address of a public server on the Internet.
pub const WEB: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 80);

/// If this variable is set, the uplinks of every topology [segment](Topology::segmenting_uplinks).
pub const SEGMENTING: &str = "IPIP_LAB_SEGMENTING";

/// Clouds, the nodes in them, and the settings of all agents.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The clouds around the Internet.
    pub clouds: Vec<Cloud>,
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
    /// MTU of the nodes' uplinks and of all links behind them, in bytes.
    pub uplink_mtu: u32,
    /// `gso_ipv4_max_size` in bytes, of the uplinks and of the gateways' ports to them; `None` keeps the kernel's
    /// default.
    pub uplink_gso_max: Option<u32>,
    /// Whether uplinks and the gateways' ports to them behave like cards without segmentation offloads: only packets of at
    /// most the MTU are on the wire, and the nodes merge them on arrival (GRO). Otherwise large packets pass
    /// whole, as between veths.
    pub segmenting_uplinks: bool,
    /// Whether the gateways translate addresses. Otherwise they only route.
    pub nat: bool,
    /// Settings of every agent.
    pub agent: AgentConfig,
    /// The folder of the agent and the plugin, if not those of this build.
    pub programs: Option<PathBuf>,
}

/// A cloud: networks behind one gateway that does 1:1 NAT.
#[derive(Clone, Debug)]
pub struct Cloud {
    /// Its name, which is also its nodes' realm unless they say otherwise.
    pub name: String,
    /// Its private networks. The gateway has the first address of each and routes between them.
    pub networks: Vec<Ipv4Network>,
    /// Its range of public addresses.
    pub public: Ipv4Network,
}

/// A node of a cloud.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its name, as in the inventory.
    pub name: String,
    /// The cloud it is in.
    pub cloud: String,
    /// One uplink (`eth0`, `eth1`, ...) with each of these addresses, in the cloud's network that
    /// holds it. The default route leads through the first.
    pub addresses: Vec<Ipv4Addr>,
    /// Its InternalIPs, if they are not `addresses`.
    pub internal_ips: Option<Vec<Ipv4Addr>>,
    /// The public address that the gateway translates to the first of `addresses`.
    pub public: Option<Ipv4Addr>,
    /// Its pod CIDR.
    pub pod_cidr: Ipv4Network,
    /// Its realm in the inventory.
    pub realm: Option<String>,
    /// Its encapsulation in the inventory, if it overrides the agents' setting.
    pub encapsulation: Option<String>,
    /// Pods that the lab starts on it.
    pub pods: usize,
}

/// The settings of an agent that a lab may vary. A field that is `None` keeps the agent's default.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// `ipip`, `udp` or `direct`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<String>,
    /// `auto`, `tcx` or `clsact`; the CNI plugin gets the same value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach: Option<String>,
    /// `drop` or `pass`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub foreign_ipip: Option<String>,
    /// Whether the node SNATs its pods' packets to the Internet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<bool>,
    /// Interfaces for whose machines a node routes to pods and remote nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routed_interfaces: Option<Vec<String>>,
    /// MTU of pods, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Files that name the node's resolvers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver_files: Option<Vec<PathBuf>>,
    /// Folder from which CNI plugins are installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_bin_source: Option<PathBuf>,
    /// Folder into which CNI plugins are installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Folder in which the list of CNI plugins is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_conf_dir: Option<PathBuf>,
}

impl Topology {
    /// Three clouds, two of them with the same private range, and four nodes: `a1` and `a2` in
    /// cloud a, `b1` in cloud b, `c1` in cloud c; two pods on `a1`, one on each other node.
    pub fn three_clouds() -> Self {
        Self {
            clouds: vec![
                Cloud::new("cloud-a", "10.0.0.0/24", "203.0.113.0/24"),
                Cloud::new("cloud-b", "10.0.0.0/24", "198.51.100.0/24"),
                Cloud::new("cloud-c", "192.168.7.0/24", "192.0.2.0/24"),
            ],
            nodes: vec![
                NodeSpec {
                    pods: 2,
                    ..NodeSpec::new("a1", "cloud-a", "10.0.0.11", "203.0.113.11", 1)
                },
                NodeSpec::new("a2", "cloud-a", "10.0.0.12", "203.0.113.12", 2),
                NodeSpec::new("b1", "cloud-b", "10.0.0.21", "198.51.100.21", 3),
                NodeSpec::new("c1", "cloud-c", "192.168.7.31", "192.0.2.31", 4),
            ],
            uplink_mtu: 1500,
            uplink_gso_max: None,
            segmenting_uplinks: env::var_os(SEGMENTING).is_some(),
            nat: true,
            agent: AgentConfig::default(),
            programs: None,
        }
    }

    /// One cloud with the nodes `a1` and `a2` in one network.
    pub fn one_realm() -> Self {
        let mut topology = Self::three_clouds();
        topology.clouds.truncate(1);
        topology.nodes.truncate(2);
        topology
    }

    /// One cloud with two networks: `a1` has an uplink in each, `a2` is in the first and `a3` in
    /// the second.
    pub fn two_uplinks() -> Self {
        let mut topology = Self::one_realm();
        topology.clouds[0].networks.push(network("10.0.1.0/24"));
        topology.nodes[0].addresses.push(address("10.0.1.11"));
        topology.nodes.push(NodeSpec::new(
            "a3",
            "cloud-a",
            "10.0.1.13",
            "203.0.113.13",
            3,
        ));
        topology
    }

    /// Three clouds. The public addresses of `a1` and `a2` belong to `eth0`, with the default route, and their
    /// InternalIPs to `eth1`; `a2` uses `udp`. The InternalIP of `c1` is its public address, which no interface has.
    pub fn nat_elsewhere() -> Self {
        let mut topology = Self::three_clouds();
        topology.clouds[0].networks.push(network("10.9.0.0/24"));
        for (node, second) in topology.nodes.iter_mut().zip(["10.9.0.11", "10.9.0.12"]) {
            node.addresses.push(address(second));
            node.internal_ips = Some(vec![address(second)]);
        }
        topology.nodes[1].encapsulation = Some("udp".into());
        let c1 = &mut topology.nodes[3];
        c1.internal_ips = c1.public.map(|public| vec![public]);
        topology
    }

    /// Two nodes of one realm, each in a network of its own, and a router between them that does not
    /// translate addresses.
    pub fn over_a_router() -> Self {
        let mut topology = Self::two_uplinks();
        topology.nat = false;
        topology.nodes.remove(1);
        topology.nodes[0].addresses.truncate(1);
        topology
    }

    /// How many uplinks are in a network of a cloud.
    pub fn uplinks_in(&self, cloud: &str, network: Ipv4Network) -> usize {
        self.nodes
            .iter()
            .filter(|node| node.cloud == cloud)
            .flat_map(|node| &node.addresses)
            .filter(|address| network.contains(**address))
            .count()
    }

    /// The nodes as lines of the inventory.
    pub fn inventory(&self) -> Vec<InventoryNode> {
        self.nodes.iter().map(NodeSpec::inventory).collect()
    }
}

impl Cloud {
    /// A cloud with one network.
    pub fn new(name: &str, private: &str, public: &str) -> Self {
        Self {
            name: name.into(),
            networks: vec![network(private)],
            public: network(public),
        }
    }

    /// Which of its networks holds `address`.
    pub fn network_of(&self, address: Ipv4Addr) -> Option<usize> {
        self.networks
            .iter()
            .position(|network| network.contains(address))
    }
}

impl NodeSpec {
    /// A node of its cloud's realm with one uplink, one pod, and the pod CIDR 10.42.`number`.0/24.
    pub fn new(name: &str, cloud: &str, private: &str, public: &str, number: u8) -> Self {
        Self {
            name: name.into(),
            cloud: cloud.into(),
            addresses: vec![address(private)],
            internal_ips: None,
            public: Some(address(public)),
            pod_cidr: network(&format!("10.42.{number}.0/24")),
            realm: Some(cloud.into()),
            encapsulation: None,
            pods: 1,
        }
    }

    /// Its InternalIPs.
    pub fn internal_ips(&self) -> &[Ipv4Addr] {
        self.internal_ips.as_ref().unwrap_or(&self.addresses)
    }

    /// Its entry in the inventory.
    pub fn inventory(&self) -> InventoryNode {
        InventoryNode {
            name: self.name.clone(),
            internal_ips: self.internal_ips().into(),
            pod_cidrs: vec![self.pod_cidr],
            public_endpoint: self.public,
            realm: self.realm.clone(),
            encapsulation: self.encapsulation.clone(),
            probe_key: Some(probe_keys::public(&self.name)),
        }
    }
}

/// The address of a network's gateway: the first one.
pub fn gateway_of(network: Ipv4Network) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.network().to_bits() + 1)
}

/// Parses a constant network.
fn network(text: &str) -> Ipv4Network {
    text.parse()
        .unwrap_or_else(|error| panic!("{text} is not a network: {error}"))
}

/// Parses a constant address.
fn address(text: &str) -> Ipv4Addr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text} is not an address: {error}"))
}

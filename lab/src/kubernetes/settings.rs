//! The settings of a cluster.

use crate::topology::{NodeSpec, Topology};
use anyhow::{Context, Result};
use ipnetwork::Ipv4Network;
use std::net::{Ipv4Addr, SocketAddrV4};

/// A cluster in the clouds of a topology. The first node runs the control plane.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The clouds and nodes. Its settings of agents, pods and pod CIDRs are not used.
    pub topology: Topology,
    /// How kube-proxy implements Services.
    pub proxy: ProxyMode,
    /// The network that connects the pods.
    pub network: PodNetwork,
    /// Clouds with a cloud provider, which sets the nodes' public address and region. Nodes of other clouds are
    /// annotated and labelled by hand.
    pub providers: Vec<String>,
    /// Whether nodes have what tells their realm: a region, or the label.
    pub realms: bool,
    /// The addresses of all pods.
    pub pod_network: Ipv4Network,
    /// Whether the agents claim the nodes' pod CIDRs from `pod_network`. Otherwise the controllers allocate them.
    pub own_pool: bool,
    /// The addresses of all Services.
    pub service_network: Ipv4Network,
}

/// How kube-proxy implements Services.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum ProxyMode {
    /// With iptables.
    Iptables,
    /// With nftables.
    Nftables,
}

/// The network that connects the pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum PodNetwork {
    /// Nothing: the nodes stay `NotReady`, and there is no CoreDNS.
    None,
    /// The reference plugin `bridge` on each node: nothing connects the nodes.
    Bridge,
    /// This project, by its own manifests and image.
    Ipip,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            topology: Topology::three_clouds(),
            proxy: ProxyMode::Iptables,
            network: PodNetwork::None,
            providers: vec!["cloud-a".into(), "cloud-b".into()],
            realms: true,
            pod_network: network([10, 42, 0, 0]),
            own_pool: false,
            service_network: network([10, 96, 0, 0]),
        }
    }
}

impl Settings {
    /// The node with the control plane.
    pub fn control_plane(&self) -> Result<&NodeSpec> {
        self.topology.nodes.first().context("no node")
    }

    /// The address at which all machines reach the API server.
    pub fn api_server(&self) -> Result<SocketAddrV4> {
        let node = self.control_plane()?;
        let public = node
            .public
            .with_context(|| format!("{} has no public address", node.name))?;
        Ok(SocketAddrV4::new(public, super::certificates::API_PORT))
    }

    /// Whether a node has a cloud provider.
    pub fn has_provider(&self, node: &NodeSpec) -> bool {
        self.providers.contains(&node.cloud)
    }

    /// The node that runs CoreDNS: the last one, so that names are resolved across clouds. If nothing joins
    /// the clouds, it is the first one, because only pods beside the API server reach it by its Service.
    pub fn dns_node(&self) -> Result<&str> {
        let nodes = &self.topology.nodes;
        let node = match self.network {
            PodNetwork::Ipip => nodes.last(),
            PodNetwork::None | PodNetwork::Bridge => nodes.first(),
        };
        Ok(&node.context("the topology has no node")?.name)
    }

    /// The address of the Service `kube-dns`.
    pub fn dns(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.service_network.network().to_bits() + 10)
    }
}

impl ProxyMode {
    /// The name in kube-proxy's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// A /16 network from a constant.
fn network(address: [u8; 4]) -> Ipv4Network {
    Ipv4Network::new(address.into(), 16)
        .unwrap_or_else(|error| panic!("{address:?}/16 is not a network: {error}"))
}

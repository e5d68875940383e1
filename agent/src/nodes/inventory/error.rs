//! Errors in an inventory.

use ipnetwork::Ipv4Network;
use std::{fmt, net::Ipv4Addr};

/// An inventory that cannot be used, or not completely.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// It is not YAML of the expected form.
    #[error(
        "line {line} ({text:?}): {message}; remedy: correct this line, each node has name, internalIPs, podCIDRs and optionally publicEndpoint, realm, encapsulation, probeKey"
    )]
    Form {
        /// The line's number, from 1.
        line: u64,
        /// The line.
        text: String,
        /// The parser's message.
        message: String,
    },
    /// This agent's own node is missing.
    #[error(
        "nodes: no node is called {name:?}, which is this node; remedy: add it to the inventory, or set nodeName to its name there"
    )]
    OwnNodeMissing {
        /// The name of this node.
        name: String,
    },
}

/// A value of an inventory that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidField {
    /// The line, from 1, if the source is a file.
    pub line: Option<u64>,
    /// The field.
    pub field: Field,
    /// The value.
    pub value: String,
    /// The fault.
    pub fault: Fault,
}

/// A field of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Field {
    /// `name`
    Name,
    /// `internalIPs`
    InternalIps,
    /// `podCIDRs`
    PodCidrs,
    /// `publicEndpoint`
    PublicEndpoint,
    /// `encapsulation`
    Encapsulation,
    /// `probeKey`
    ProbeKey,
}

/// The fault of a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It is not a node name.
    NotAName,
    /// It is not an IPv4 address in dotted form.
    NotAnAddress,
    /// It is not an IPv4 network.
    NotANetwork,
    /// Bits below the prefix are set. Contains the network without them.
    HostBits(Ipv4Network),
    /// It is in a range that is never routed: this-network, loopback, link-local, multicast, reserved.
    NotRoutable,
    /// It is not an encapsulation.
    NotAnEncapsulation,
    /// It is not a public key.
    NotAKey,
    /// Another node, at this line, has the same name.
    NameTaken(Option<u64>),
    /// It overlaps this network of this node.
    Overlaps(Ipv4Network, String, Option<u64>),
    /// This node has the same public endpoint.
    EndpointTaken(String, Option<u64>),
    /// This node has the same InternalIP in the same realm; it may be the node itself.
    InternalIpTaken(String, Option<u64>),
    /// The public endpoint is an InternalIP of this node.
    EndpointIsInternalIp(String, Option<u64>),
    /// The address lies in this network of this node.
    HeldBy(Ipv4Network, String),
    /// The network contains this address of this node.
    HoldsNode(Ipv4Addr, String, Option<u64>),
    /// The maps hold no more than this number of entries of this kind.
    NoRoom(u32, &'static str),
    /// The prefix of a pod CIDR is shorter than this.
    TooWide(u8),
    /// It lies in none of these networks, in which all pod CIDRs lie.
    OutsideOfPods(Vec<Ipv4Network>),
    /// It has addresses in this network of pods.
    InPods(Ipv4Network),
    /// It has addresses in this network of Services.
    InServices(Ipv4Network),
    /// It holds this address of an API server.
    HoldsApiServer(Ipv4Addr),
    /// The Node that the API server has does not have it in this field.
    NotOfNode(&'static str),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::InternalIps => "internalIPs",
            Self::PodCidrs => "podCIDRs",
            Self::PublicEndpoint => "publicEndpoint",
            Self::Encapsulation => "encapsulation",
            Self::ProbeKey => "probeKey",
        })
    }
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}, ")?;
        }
        write!(f, "{}: {:?} ", self.field, self.value)?;
        match &self.fault {
            Fault::NotAName => write!(
                f,
                "is not a node name; remedy: lower-case letters, digits, - and ., at most 253"
            ),
            Fault::NotAnAddress => {
                write!(f, "is not an IPv4 address; remedy: write it like 10.0.0.11")
            }
            Fault::NotANetwork => write!(
                f,
                "is not an IPv4 network; remedy: write it like 10.42.1.0/24"
            ),
            Fault::HostBits(network) => {
                write!(f, "has bits set below its prefix; remedy: write {network}")
            }
            Fault::NotRoutable => write!(
                f,
                "is this-network, loopback, link-local, multicast or reserved; remedy: use an address that can be routed"
            ),
            Fault::NotAnEncapsulation => {
                write!(f, "is not an encapsulation; remedy: ipip, udp or direct")
            }
            Fault::NotAKey => write!(
                f,
                "is not a public key; remedy: the one that the node's agent logs, 44 characters of base64"
            ),
            Fault::NameTaken(line) => write!(
                f,
                "is also the name of another node{}; remedy: give each node its own name",
                at(*line)
            ),
            Fault::Overlaps(network, node, line) => write!(
                f,
                "overlaps {network} of {node}{}; remedy: give each node its own pod CIDRs",
                at(*line)
            ),
            Fault::EndpointTaken(node, line) => write!(
                f,
                "is also the publicEndpoint of {node}{}; remedy: give each node its own public address (1:1 NAT){}",
                at(*line),
                renamed(node, *line)
            ),
            Fault::InternalIpTaken(node, line) => write!(
                f,
                "is also an InternalIP of {node}{} in the same realm; remedy: correct one of them, or give the nodes different realms{}",
                at(*line),
                renamed(node, *line)
            ),
            Fault::EndpointIsInternalIp(node, line) => write!(
                f,
                "is also an InternalIP of {node}{}; remedy: correct one of them",
                at(*line)
            ),
            Fault::HeldBy(network, node) => write!(
                f,
                "lies in {network} of {node}; remedy: choose pod CIDRs that contain no node's address"
            ),
            Fault::HoldsNode(address, node, line) => write!(
                f,
                "holds {address} of {node}{}; remedy: choose pod CIDRs that contain no node's address",
                at(*line)
            ),
            Fault::NoRoom(most, what) => write!(
                f,
                "does not fit, because the maps hold {most} {what}; remedy: split the cluster, or use fewer and larger pod CIDRs"
            ),
            Fault::TooWide(least) => write!(
                f,
                "is wider than a /{least}; remedy: give each node a smaller range"
            ),
            Fault::OutsideOfPods(networks) => write!(
                f,
                "is not in the pod ranges of the cluster ({}); remedy: if it is a range for pods, set podCIDRs of all agents to all such ranges",
                list(networks)
            ),
            Fault::InPods(network) => write!(
                f,
                "is in the pod range {network}; remedy: use an address outside of it, or set podCIDRs of all agents to smaller ranges"
            ),
            Fault::InServices(network) => write!(
                f,
                "is in the Service range {network}; remedy: use another one, or set serviceCIDRs of all agents if this range is wrong"
            ),
            Fault::HoldsApiServer(address) => write!(
                f,
                "holds {address}, an endpoint of the Service kubernetes; remedy: choose pod CIDRs without it"
            ),
            Fault::NotOfNode(field) => write!(
                f,
                "is not in {field} of the Node; remedy: correct the Node; if it is correct, find out who writes the objects of this node"
            ),
        }
    }
}

/// The remedy in Kubernetes, where the values have no lines, if `node` is the former name of a renamed machine.
fn renamed(node: &str, line: Option<u64>) -> String {
    if line.is_some() {
        return String::new();
    }
    format!("; if {node} is the former name of this machine: kubectl delete node {node}")
}

/// Networks with commas between.
fn list(networks: &[Ipv4Network]) -> String {
    let texts: Vec<String> = networks.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// The position of another value, if it is in a file.
fn at(line: Option<u64>) -> String {
    line.map_or_else(String::new, |line| format!(" (line {line})"))
}

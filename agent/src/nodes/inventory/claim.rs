//! The fields of one node as texts, and their parser, which all node sources use.

use super::{Fault, Field, InvalidField, Node};
use crate::{names, probe_key::NotAKey};
use ipip_abi::{Addr, Encapsulation, is_never_a_pod_address, overlaps_never_pod_range};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// The fields of a node as its source has them.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// The name.
    pub name: Text<'a>,
    /// The InternalIPs, like `10.0.0.11`.
    pub internal_ips: Vec<Text<'a>>,
    /// The pod CIDRs, like `10.42.1.0/24`.
    pub pod_cidrs: Vec<Text<'a>>,
    /// The public endpoint, like `203.0.113.11`.
    pub public_endpoint: Option<Text<'a>>,
    /// The realm.
    pub realm: Option<Text<'a>>,
    /// The encapsulation, by its name.
    pub encapsulation: Option<Text<'a>>,
    /// The key of its probes, in base64.
    pub probe_key: Option<Text<'a>>,
}

/// A field's text, and its line (from 1) if the source is a file.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// The text.
    pub text: &'a str,
    /// The line.
    pub line: Option<u64>,
}

/// A value that only one node can have.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Value<'a> {
    /// An InternalIP in a realm.
    InternalIp(Ipv4Addr, &'a str),
    /// A public endpoint.
    PublicEndpoint(Ipv4Addr),
    /// A pod CIDR.
    PodCidr(Ipv4Network),
}

/// A node without its values that cannot be used, and the lines of its fields.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParsedNode {
    /// The node.
    pub node: Node,
    /// The line of its name.
    pub name_line: Option<u64>,
    /// A line for each InternalIP of the node.
    pub ip_lines: Vec<Option<u64>>,
    /// A line for each pod CIDR of the node.
    pub cidr_lines: Vec<Option<u64>>,
    /// The line of its public endpoint.
    pub endpoint_line: Option<u64>,
    /// The values that cannot be used.
    pub invalid: Vec<InvalidField>,
}

impl Claim<'_> {
    /// Parses every field.
    pub fn parse(&self) -> ParsedNode {
        let mut invalid = Vec::new();
        let mut refuse = |field, text: &Text<'_>, fault| {
            invalid.push(InvalidField {
                line: text.line,
                field,
                value: text.text.to_owned(),
                fault,
            });
        };
        let name = self.name.text;
        if !names::is_node_name(name) {
            refuse(Field::Name, &self.name, Fault::NotAName);
        }
        let (mut internal_ips, mut ip_lines) = (Vec::new(), Vec::new());
        for it in &self.internal_ips {
            match parse_address(it.text) {
                Ok(address) => {
                    internal_ips.push(address);
                    ip_lines.push(it.line);
                }
                Err(fault) => refuse(Field::InternalIps, it, fault),
            }
        }
        let (mut pod_cidrs, mut cidr_lines) = (Vec::new(), Vec::new());
        for it in &self.pod_cidrs {
            match parse_network(it.text) {
                Ok(network) => {
                    pod_cidrs.push(network);
                    cidr_lines.push(it.line);
                }
                Err(fault) => refuse(Field::PodCidrs, it, fault),
            }
        }
        let mut endpoint = None;
        if let Some(it) = &self.public_endpoint {
            match parse_address(it.text) {
                Ok(address) => endpoint = Some((address, it.line)),
                Err(fault) => refuse(Field::PublicEndpoint, it, fault),
            }
        }
        let mut encapsulation = None;
        if let Some(it) = &self.encapsulation {
            match parse_encapsulation(it.text) {
                Ok(named) => encapsulation = Some(named),
                Err(fault) => refuse(Field::Encapsulation, it, fault),
            }
        }
        let mut key = None;
        if let Some(it) = &self.probe_key {
            match it.text.parse() {
                Ok(parsed) => key = Some(parsed),
                Err(NotAKey) => refuse(Field::ProbeKey, it, Fault::NotAKey),
            }
        }
        let realm = self.realm.map_or("", |realm| realm.text);
        ParsedNode {
            node: Node {
                is_found_near: false,
                name: name.to_owned(),
                internal_ips,
                pod_cidrs,
                public_endpoint: endpoint.map(|(address, _)| address),
                realm: realm.to_owned(),
                encapsulation,
                probe_key: key,
            },
            name_line: self.name.line,
            ip_lines,
            cidr_lines,
            endpoint_line: endpoint.and_then(|(_, line)| line),
            invalid,
        }
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self { text, line: None }
    }
}

impl<'a> From<&'a String> for Text<'a> {
    fn from(text: &'a String) -> Self {
        Self::from(text.as_str())
    }
}

impl ParsedNode {
    /// The InternalIPs with their lines.
    pub fn internal_ips(&self) -> impl Iterator<Item = (Ipv4Addr, Option<u64>)> {
        let ips = self.node.internal_ips.iter().copied();
        ips.zip(self.ip_lines.iter().copied())
    }

    /// The pod CIDRs with their lines.
    pub fn pod_cidrs(&self) -> impl Iterator<Item = (Ipv4Network, Option<u64>)> {
        let cidrs = self.node.pod_cidrs.iter().copied();
        cidrs.zip(self.cidr_lines.iter().copied())
    }

    /// The public endpoint with its line.
    pub fn endpoint(&self) -> Option<(Ipv4Addr, Option<u64>)> {
        Some((self.node.public_endpoint?, self.endpoint_line))
    }

    /// Replaces each field that has an invalid value by that of `last`, the same node before the fault.
    pub fn keep_valid(&mut self, last: &Node) {
        for InvalidField { field, line, .. } in &self.invalid {
            match field {
                Field::Name => {}
                Field::InternalIps => {
                    self.node.internal_ips.clone_from(&last.internal_ips);
                    self.ip_lines = vec![*line; last.internal_ips.len()];
                }
                Field::PodCidrs => {
                    self.node.pod_cidrs.clone_from(&last.pod_cidrs);
                    self.cidr_lines = vec![*line; last.pod_cidrs.len()];
                }
                Field::PublicEndpoint => {
                    self.node.public_endpoint = last.public_endpoint;
                    self.endpoint_line = *line;
                }
                Field::Encapsulation => self.node.encapsulation = last.encapsulation,
                Field::ProbeKey => self.node.probe_key = last.probe_key,
            }
        }
    }
}

impl Node {
    /// The values of this node that other nodes could claim, too.
    pub fn values(&self) -> impl Iterator<Item = Value<'_>> {
        let ips = self.internal_ips.iter();
        let ips = ips.map(|ip| Value::InternalIp(*ip, &self.realm));
        let endpoint = self.public_endpoint.map(Value::PublicEndpoint);
        let cidrs = self.pod_cidrs.iter().copied().map(Value::PodCidr);
        ips.chain(endpoint).chain(cidrs)
    }
}

impl From<Node> for ParsedNode {
    fn from(node: Node) -> Self {
        Self {
            name_line: None,
            ip_lines: vec![None; node.internal_ips.len()],
            cidr_lines: vec![None; node.pod_cidrs.len()],
            endpoint_line: None,
            invalid: Vec::new(),
            node,
        }
    }
}

/// Parses an address that can be routed.
pub fn parse_address(text: &str) -> Result<Ipv4Addr, Fault> {
    let address: Ipv4Addr = text.parse().map_err(|_| Fault::NotAnAddress)?;
    if is_never_a_pod_address(Addr::from(address)) {
        return Err(Fault::NotRoutable);
    }
    Ok(address)
}

/// Parses a network that can be routed. Bits below the prefix must be zero.
pub fn parse_network(text: &str) -> Result<Ipv4Network, Fault> {
    // `Ipv4Network` takes a bare address for a /32, which is more likely a forgotten prefix.
    if !text.contains('/') {
        return Err(Fault::NotANetwork);
    }
    let network: Ipv4Network = text.parse().map_err(|_| Fault::NotANetwork)?;
    let clean =
        Ipv4Network::new(network.network(), network.prefix()).map_err(|_| Fault::NotANetwork)?;
    if network != clean {
        return Err(Fault::HostBits(clean));
    }
    if overlaps_never_pod_range(Addr::from(clean.network()), clean.prefix()) {
        return Err(Fault::NotRoutable);
    }
    Ok(clean)
}

fn parse_encapsulation(text: &str) -> Result<Encapsulation, Fault> {
    Encapsulation::by_name(text).ok_or(Fault::NotAnEncapsulation)
}

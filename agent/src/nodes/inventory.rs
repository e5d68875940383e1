//! The inventory: the nodes and what is known of each, and whether they go together.
//!
//! A file is refused as a whole, so that its writer sees every mistake at once. Objects of many
//! writers are judged by [`admission`]: there one bad node must not stop the others.

pub mod admission;

use crate::{encapsulation, names, yaml};
use ipip_abi::{Addr, Encapsulation, is_never_a_pod_address, maps};
use ipnetwork::Ipv4Network;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

/// The nodes, in the order of the file. Only a valid inventory exists as this type.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inventory {
    /// The nodes; their names are unique.
    pub nodes: Vec<Node>,
}

/// A node, as its line of the inventory describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its private addresses; the first one is its underlay address inside its realm.
    pub internal_ips: Vec<Ipv4Addr>,
    /// The ranges of its pods.
    pub pod_cidrs: Vec<Ipv4Network>,
    /// Its address as other realms must dial it.
    pub public_endpoint: Option<Ipv4Addr>,
    /// The realm; nodes without one share the unnamed realm.
    pub realm: String,
    /// How packets to it and from it travel, where that differs from the configured default.
    pub encapsulation: Option<Encapsulation>,
}

impl Inventory {
    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// InternalIPs that more than one node has. They are of different realms, so both are right
    /// and no packet can be addressed to either.
    pub fn shared_internal_ips(&self) -> BTreeSet<Ipv4Addr> {
        let mut seen = BTreeSet::new();
        let addresses = self.nodes.iter().flat_map(|node| &node.internal_ips);
        addresses
            .filter(|address| !seen.insert(**address))
            .copied()
            .collect()
    }
}

/// Why an inventory is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// It is not YAML of the expected form.
    #[error(
        "line {line} ({text:?}): {message}; remedy: correct this line, each node has name, internalIPs, podCIDRs and optionally publicEndpoint, realm, encapsulation"
    )]
    Form {
        /// Where, from 1.
        line: u64,
        /// The line.
        text: String,
        /// What is wrong there.
        message: String,
    },
    /// Values that cannot be used, alone or together.
    #[error("{}", join(.0))]
    Values(Vec<Problem>),
    /// The node on which this agent runs is missing.
    #[error(
        "nodes: no node is called {name:?}, which is this node; remedy: add it to the inventory, or set nodeName to its name there"
    )]
    OwnNodeMissing {
        /// The name looked for.
        name: String,
    },
    /// More nodes or addresses than the maps hold.
    #[error(
        "nodes: {count} {what}, but the maps hold {most}; remedy: split the cluster, or use fewer and larger pod CIDRs"
    )]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
}

/// One value of an inventory that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Where, from 1, if it stands in a file.
    pub line: Option<u64>,
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it, and what to do.
    pub fault: Fault,
}

/// What is wrong with a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Not a node name.
    NotAName,
    /// Not an IPv4 address in dotted form.
    NotAnAddress,
    /// Not an IPv4 network.
    NotANetwork,
    /// Bits below the prefix are set.
    HostBits(Ipv4Network),
    /// Loopback, link-local, multicast or reserved.
    NeverTravels,
    /// Not an encapsulation.
    NotAnEncapsulation,
    /// Another node has the name.
    NameTaken(Option<u64>),
    /// Another network overlaps.
    Overlaps(Ipv4Network, String, Option<u64>),
    /// Another node has the public endpoint.
    EndpointTaken(String, Option<u64>),
    /// Another node of the realm has the InternalIP, or the same node twice.
    InternalIpTaken(String, Option<u64>),
    /// The public endpoint of one node is the InternalIP of another.
    EndpointIsInternalIp(String, Option<u64>),
    /// The address lies in another node's network.
    HeldBy(Ipv4Network, String),
    /// The network holds the address of a node.
    HoldsNode(Ipv4Addr, String, Option<u64>),
}

impl fmt::Display for Problem {
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
            Fault::NeverTravels => write!(
                f,
                "is this-network, loopback, link-local, multicast or reserved; remedy: use an address that can be routed"
            ),
            Fault::NotAnEncapsulation => {
                write!(f, "is not an encapsulation; remedy: ipip, udp or direct")
            }
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
                "is also the publicEndpoint of {node}{}; remedy: one public address a node, each with 1:1 NAT",
                at(*line)
            ),
            Fault::InternalIpTaken(node, line) => write!(
                f,
                "is also an InternalIP of {node}{} in the same realm; remedy: correct one of them, or give the nodes different realms",
                at(*line)
            ),
            Fault::EndpointIsInternalIp(node, line) => write!(
                f,
                "is also an InternalIP of {node}{}; remedy: correct one of them",
                at(*line)
            ),
            Fault::HeldBy(network, node) => write!(
                f,
                "lies in {network} of {node}; remedy: pod CIDRs must be apart from every node's addresses"
            ),
            Fault::HoldsNode(address, node, line) => write!(
                f,
                "holds {address} of {node}{}; remedy: pod CIDRs must be apart from every node's addresses",
                at(*line)
            ),
        }
    }
}

/// Reads an inventory for the node `own_name`, or says everything that is wrong with it.
pub fn parse(text: &str, own_name: &str) -> Result<Inventory, InventoryError> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        InventoryError::Form {
            line,
            text: yaml::line(text, line),
            message: error.without_snippet().to_string(),
        }
    })?;
    let mut problems = Vec::new();
    let entries: Vec<Entry> = file
        .nodes
        .iter()
        .map(|line| line.read(&mut problems))
        .collect();
    judge_names(&entries, &mut problems);
    judge_together(&entries, &mut problems);
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.line);
        return Err(InventoryError::Values(problems));
    }
    let inventory = Inventory {
        nodes: entries.into_iter().map(|entry| entry.node).collect(),
    };
    judge_sizes(&inventory)?;
    if inventory.node(own_name).is_none() {
        return Err(InventoryError::OwnNodeMissing {
            name: own_name.to_owned(),
        });
    }
    Ok(inventory)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: Spanned<String>,
    #[serde(rename = "internalIPs", default)]
    internal_ips: Vec<Spanned<String>>,
    #[serde(rename = "podCIDRs", default)]
    pod_cidrs: Vec<Spanned<String>>,
    #[serde(rename = "publicEndpoint")]
    public_endpoint: Option<Spanned<String>>,
    realm: Option<Spanned<String>>,
    encapsulation: Option<Spanned<String>>,
}

/// A node, and the lines of what it consists of.
struct Entry {
    node: Node,
    name_line: Option<u64>,
    ip_lines: Vec<Option<u64>>,
    cidr_lines: Vec<Option<u64>>,
    endpoint_line: Option<u64>,
}

impl Line {
    /// What can be read; what cannot is left out of the node and added to `problems`.
    fn read(&self, problems: &mut Vec<Problem>) -> Entry {
        if !names::is_node_name(&self.name.value) {
            problems.push(problem("name", &self.name, Fault::NotAName));
        }
        let mut read = |field, text: &Spanned<String>| match parse_address(&text.value) {
            Ok(address) => Some((address, Some(text.referenced.line()))),
            Err(fault) => {
                problems.push(problem(field, text, fault));
                None
            }
        };
        let endpoint = self
            .public_endpoint
            .as_ref()
            .and_then(|text| read("publicEndpoint", text));
        let ips = self.internal_ips.iter();
        let (internal_ips, ip_lines) = ips.filter_map(|text| read("internalIPs", text)).unzip();
        let cidrs = self.pod_cidrs.iter();
        let (pod_cidrs, cidr_lines) = cidrs
            .filter_map(|text| match parse_network(&text.value) {
                Ok(network) => Some((network, Some(text.referenced.line()))),
                Err(fault) => {
                    problems.push(problem("podCIDRs", text, fault));
                    None
                }
            })
            .unzip();
        let encapsulation = self.encapsulation.as_ref().and_then(|text| {
            let parsed = encapsulation::parse(&text.value);
            if parsed.is_none() {
                problems.push(problem("encapsulation", text, Fault::NotAnEncapsulation));
            }
            parsed
        });
        Entry {
            node: Node {
                name: self.name.value.clone(),
                internal_ips,
                pod_cidrs,
                public_endpoint: endpoint.map(|(address, _)| address),
                realm: self
                    .realm
                    .as_ref()
                    .map_or_else(String::new, |realm| realm.value.clone()),
                encapsulation,
            },
            name_line: Some(self.name.referenced.line()),
            ip_lines,
            cidr_lines,
            endpoint_line: endpoint.and_then(|(_, line)| line),
        }
    }
}

impl Entry {
    fn internal_ips(&self) -> impl Iterator<Item = (Ipv4Addr, Option<u64>)> {
        let ips = self.node.internal_ips.iter().copied();
        ips.zip(self.ip_lines.iter().copied())
    }

    fn pod_cidrs(&self) -> impl Iterator<Item = (Ipv4Network, Option<u64>)> {
        let cidrs = self.node.pod_cidrs.iter().copied();
        cidrs.zip(self.cidr_lines.iter().copied())
    }

    fn endpoint(&self) -> Option<(Ipv4Addr, Option<u64>)> {
        Some((self.node.public_endpoint?, self.endpoint_line))
    }
}

fn judge_names(entries: &[Entry], problems: &mut Vec<Problem>) {
    let mut lines = BTreeMap::new();
    for entry in entries {
        if let Some(first) = lines.insert(&entry.node.name, entry.name_line) {
            problems.push(Problem {
                line: entry.name_line,
                field: "name",
                value: entry.node.name.clone(),
                fault: Fault::NameTaken(first),
            });
        }
    }
}

/// Whether nodes of different names go together.
fn judge_together(entries: &[Entry], problems: &mut Vec<Problem>) {
    judge_addresses(entries, problems);
    judge_networks(entries, problems);
}

fn judge_addresses(entries: &[Entry], problems: &mut Vec<Problem>) {
    let mut by_realm = BTreeMap::new();
    let mut by_ip = BTreeMap::new();
    for entry in entries {
        for (address, line) in entry.internal_ips() {
            let owner = (entry, line);
            by_ip.entry(address).or_insert_with(Vec::new).push(owner);
            if let Some((other, first)) = by_realm.insert((&entry.node.realm, address), owner) {
                problems.push(Problem {
                    line,
                    field: "internalIPs",
                    value: address.to_string(),
                    fault: Fault::InternalIpTaken(other.node.name.clone(), first),
                });
            }
        }
    }
    let mut by_endpoint = BTreeMap::new();
    for entry in entries {
        let Some((address, line)) = entry.endpoint() else {
            continue;
        };
        let taken = by_endpoint
            .insert(address, (entry, line))
            .map(|(other, first)| Fault::EndpointTaken(other.node.name.clone(), first));
        let owners = by_ip.get(&address).into_iter().flatten();
        let internal = owners
            .filter(|(other, _)| other.node.name != entry.node.name)
            .map(|(other, first)| Fault::EndpointIsInternalIp(other.node.name.clone(), *first));
        problems.extend(taken.into_iter().chain(internal).map(|fault| Problem {
            line,
            field: "publicEndpoint",
            value: address.to_string(),
            fault,
        }));
    }
}

fn judge_networks(entries: &[Entry], problems: &mut Vec<Problem>) {
    // Networks either nest or are apart. In order of (first address, prefix length) one that
    // overlaps an earlier one overlaps the widest that reaches so far.
    let mut networks: Vec<(Ipv4Network, Option<u64>, &Entry)> = entries
        .iter()
        .flat_map(|entry| entry.pod_cidrs().map(move |(n, line)| (n, line, entry)))
        .collect();
    networks.sort_by_key(|(network, line, _)| (network.network(), network.prefix(), *line));
    let mut wide: Vec<(Ipv4Network, Option<u64>, &Entry)> = Vec::new();
    for (network, line, entry) in networks {
        match wide.last() {
            Some((other, first, owner)) if other.contains(network.network()) => {
                problems.push(Problem {
                    line,
                    field: "podCIDRs",
                    value: network.to_string(),
                    fault: Fault::Overlaps(*other, owner.node.name.clone(), *first),
                });
            }
            _ => wide.push((network, line, entry)),
        }
    }
    for owner in entries {
        for (address, address_line) in owner.internal_ips().chain(owner.endpoint()) {
            let after = wide.partition_point(|(network, ..)| network.network() <= address);
            let Some((network, line, _)) = after.checked_sub(1).map(|at| wide[at]) else {
                continue;
            };
            if network.contains(address) {
                problems.push(Problem {
                    line,
                    field: "podCIDRs",
                    value: network.to_string(),
                    fault: Fault::HoldsNode(address, owner.node.name.clone(), address_line),
                });
            }
        }
    }
}

fn judge_sizes(inventory: &Inventory) -> Result<(), InventoryError> {
    let sum = |each: fn(&Node) -> usize| inventory.nodes.iter().map(each).sum::<usize>();
    for (what, count, most) in [
        ("nodes", inventory.nodes.len(), maps::MAX_PEERS),
        (
            "pod CIDRs and InternalIPs",
            sum(|node| node.pod_cidrs.len() + node.internal_ips.len()),
            maps::MAX_ROUTES,
        ),
        (
            "InternalIPs and public endpoints",
            sum(|node| node.internal_ips.len() + usize::from(node.public_endpoint.is_some())),
            maps::MAX_NODE_ADDRS,
        ),
    ] {
        let most = most as usize;
        if count > most {
            return Err(InventoryError::TooMany { what, count, most });
        }
    }
    Ok(())
}

/// An address that can be routed.
pub(crate) fn parse_address(text: &str) -> Result<Ipv4Addr, Fault> {
    let address: Ipv4Addr = text.parse().map_err(|_| Fault::NotAnAddress)?;
    if is_never_a_pod_address(Addr::from(address)) {
        return Err(Fault::NeverTravels);
    }
    Ok(address)
}

/// A network that can be routed, without host bits.
pub(crate) fn parse_network(text: &str) -> Result<Ipv4Network, Fault> {
    // `Ipv4Network` takes a bare address for a /32, which is more likely a forgotten prefix.
    let network = text.contains('/').then(|| text.parse::<Ipv4Network>().ok());
    let network = network.flatten().ok_or(Fault::NotANetwork)?;
    let Ok(clean) = Ipv4Network::new(network.network(), network.prefix()) else {
        return Err(Fault::NotANetwork);
    };
    if network.ip() != network.network() {
        return Err(Fault::HostBits(clean));
    }
    let never: [(Ipv4Addr, u8); 5] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(224, 0, 0, 0), 4),
        (Ipv4Addr::new(240, 0, 0, 0), 4),
    ];
    let overlaps = never.into_iter().any(|(first, prefix)| {
        let length = prefix.min(clean.prefix());
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        first.to_bits() & mask == clean.network().to_bits() & mask
    });
    if overlaps {
        return Err(Fault::NeverTravels);
    }
    Ok(clean)
}

fn problem(field: &'static str, text: &Spanned<String>, fault: Fault) -> Problem {
    Problem {
        line: Some(text.referenced.line()),
        field,
        value: text.value.clone(),
        fault,
    }
}

/// Where another value stands, if that is a line of a file.
fn at(line: Option<u64>) -> String {
    line.map_or_else(String::new, |line| format!(" (line {line})"))
}

fn join(problems: &[Problem]) -> String {
    const SHOWN: usize = 10;
    let mut texts: Vec<String> = problems
        .iter()
        .take(SHOWN)
        .map(Problem::to_string)
        .collect();
    if problems.len() > SHOWN {
        texts.push(format!("and {} more", problems.len() - SHOWN));
    }
    texts.join("\n")
}

#[cfg(test)]
mod tests;

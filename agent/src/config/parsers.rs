//! Parsers of the settings: each turns a text into a value, or returns `None` if the text cannot be used.

use crate::{names, other_networks::table, pod_pool};
use ipip_abi::{Addr, Encapsulation, overlaps_never_pod_range};
use ipip_netlink::is_link_name;
use ipnetwork::Ipv4Network;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};
use tracing_subscriber::EnvFilter;

/// Size in bytes of the largest packet that every IPv4 host must accept (RFC 791).
const LEAST_MTU: u16 = 576;

/// Source of the nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NodeSourceKind {
    /// The Kubernetes API in a pod or with a kubeconfig, otherwise the inventory file.
    Auto,
    /// The inventory file.
    File,
    /// The Kubernetes API.
    Kubernetes,
}

/// What happens to IP-in-IP packets (protocol 4) that come from no peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ForeignIpip {
    /// They are dropped.
    Drop,
    /// The host gets them.
    Pass,
}

/// What becomes of the public address that peers see, if nobody has stated one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LearnedEndpoint {
    /// The agent reports it, and how to state it.
    Suggest,
    /// The agent publishes it.
    Use,
    /// Nothing.
    Ignore,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// Plain lines.
    Text,
    /// One JSON object a line.
    Json,
}

pub fn any<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

pub fn node_name(text: &str) -> Option<String> {
    names::is_node_name(text).then(|| text.to_owned())
}

pub fn node_source(text: &str) -> Option<NodeSourceKind> {
    match text {
        "auto" => Some(NodeSourceKind::Auto),
        "kubernetes" => Some(NodeSourceKind::Kubernetes),
        "file" => Some(NodeSourceKind::File),
        _ => None,
    }
}

pub fn optional_host(text: &str) -> Option<Option<String>> {
    if text.is_empty() {
        return Some(None);
    }
    let is_host =
        text.parse::<IpAddr>().is_ok() || names::is_dns_subdomain(&text.to_ascii_lowercase());
    is_host.then(|| Some(text.to_owned()))
}

pub fn port(text: &str) -> Option<u16> {
    any(text).filter(|&port| port != 0)
}

pub fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

pub fn optional_path(text: &str) -> Option<Option<PathBuf>> {
    Some(path(text))
}

pub fn absolute_path(text: &str) -> Option<PathBuf> {
    path(text).filter(|path| path.is_absolute())
}

pub fn optional_absolute_path(text: &str) -> Option<Option<PathBuf>> {
    if text.is_empty() {
        return Some(None);
    }
    absolute_path(text).map(Some)
}

/// Runtimes and programs that add plugins skip names that start with a dot, and read a list only from this suffix.
pub fn conflist(text: &str) -> Option<String> {
    let stem = text.strip_suffix(".conflist")?;
    let is_name =
        !stem.is_empty() && !stem.starts_with('.') && !stem.contains(['/', '\0', '\n', ' ']);
    is_name.then(|| text.to_owned())
}

pub fn absolute_paths(text: &str) -> Option<Vec<PathBuf>> {
    elements(text)
        .map(|path| Path::new(path).is_absolute().then(|| path.into()))
        .collect()
}

/// Networks that can be routed, of which no two overlap.
/// Addresses and networks without host bits.
pub fn networks(text: &str) -> Option<Vec<Ipv4Network>> {
    elements(text)
        .map(|text| {
            let network: Ipv4Network = text.parse().ok()?;
            (network.ip() == network.network()).then_some(network)
        })
        .collect()
}

pub fn disjoint_networks(text: &str) -> Option<Vec<Ipv4Network>> {
    let mut networks = Vec::new();
    for network in elements(text).map(network) {
        let network = network?;
        if networks.iter().any(|it| pod_pool::overlap(it, &network)) {
            return None;
        }
        networks.push(network);
    }
    Some(networks)
}

fn network(text: &str) -> Option<Ipv4Network> {
    // A bare address is more likely a forgotten prefix than a /32.
    let network: Ipv4Network = text.contains('/').then(|| any(text))??;
    let routed = !overlaps_never_pod_range(Addr::from(network.network()), network.prefix());
    (routed && network.ip() == network.network()).then_some(network)
}

/// Prefix lengths of blocks with at least 13 addresses for pods.
pub fn mask_size(text: &str) -> Option<u8> {
    any(text).filter(|size| (16..=28).contains(size))
}

pub fn encapsulation(text: &str) -> Option<Encapsulation> {
    Encapsulation::by_name(text)
}

/// Names that the kernel accepts.
pub fn interfaces(text: &str) -> Option<Vec<String>> {
    elements(text)
        .map(|name| is_link_name(name).then(|| name.to_owned()))
        .collect()
}

/// Names that the kernel accepts; one that ends with `*` stands for all that begin so.
pub fn interface_patterns(text: &str) -> Option<Vec<String>> {
    let names_one = |name: &String| !name.trim_end_matches('*').is_empty();
    interfaces(text).filter(|names| names.iter().all(names_one))
}

/// Names of networks that `prepare` can clean up after.
pub fn other_networks(text: &str) -> Option<Vec<String>> {
    elements(text)
        .map(|name| table::by_name(name).map(|network| network.name.to_owned()))
        .collect()
}

pub fn mtu(text: &str) -> Option<Option<u16>> {
    if text == "auto" {
        return Some(None);
    }
    any(text).filter(|&mtu| mtu >= LEAST_MTU).map(Some)
}

pub fn foreign_ipip(text: &str) -> Option<ForeignIpip> {
    match text {
        "drop" => Some(ForeignIpip::Drop),
        "pass" => Some(ForeignIpip::Pass),
        _ => None,
    }
}

pub fn learned_endpoint(text: &str) -> Option<LearnedEndpoint> {
    match text {
        "suggest" => Some(LearnedEndpoint::Suggest),
        "use" => Some(LearnedEndpoint::Use),
        "ignore" => Some(LearnedEndpoint::Ignore),
        _ => None,
    }
}

pub fn log_filter(text: &str) -> Option<String> {
    EnvFilter::try_new(text).is_ok().then(|| text.to_owned())
}

pub fn log_format(text: &str) -> Option<LogFormat> {
    match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

/// The elements of a list; an empty text has none.
pub fn elements(text: &str) -> impl Iterator<Item = &str> {
    let list = (!text.is_empty()).then_some(text);
    list.into_iter().flat_map(|text| text.split(','))
}

//! Derives a node's [`IpipNodeSpec`] from its Node. Pure.

use super::crd::{IpipNodeSpec, MAX_INTERNAL_IPS, MAX_POD_CIDRS};
use crate::nodes::inventory::{parse_address, parse_network};
use ipip_abi::Encapsulation;
use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::Node;
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

/// Annotation: the address at which other realms reach the node, or `none`.
pub const PUBLIC_ENDPOINT: &str = "ipip.dev/public-endpoint";
/// Label: the realm, empty for the unnamed one.
pub const REALM: &str = "ipip.dev/realm";
/// Annotation: the encapsulation of paths from and to the node.
pub const ENCAPSULATION: &str = "ipip.dev/encapsulation";

const REGION: &str = "topology.kubernetes.io/region";

/// Annotations of other projects with the public address, in order of preference: first those that a
/// person writes, then those that a program detects. A private address that a program detected is the
/// address of an interface and no public endpoint.
const FOREIGN: [(&str, Author); 4] = [
    (
        "flannel.alpha.coreos.com/public-ip-overwrite",
        Author::Person,
    ),
    ("k3s.io/external-ip", Author::Person),
    ("flannel.alpha.coreos.com/public-ip", Author::Program),
    ("projectcalico.org/IPv4Address", Author::Program),
];

#[derive(Clone, Copy, Eq, PartialEq)]
enum Author {
    Person,
    Program,
}

/// The spec of a node, and the values of its Node that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Derived {
    /// The spec to publish.
    pub spec: IpipNodeSpec,
    /// The source of the public endpoint, such as `annotation ipip.dev/public-endpoint`.
    pub endpoint_from: Option<String>,
    /// Values that were ignored.
    pub invalid: Vec<InvalidValue>,
}

/// A value on the Node that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidValue {
    /// The field or annotation.
    pub field: String,
    /// The value.
    pub value: String,
    /// The values that can be used.
    pub remedy: &'static str,
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:?} cannot be used; remedy: {}",
            self.field, self.value, self.remedy
        )
    }
}

/// The node lacks a field that its spec needs.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Incomplete {
    /// It has no pod CIDR.
    #[error(
        "spec.podCIDRs: the Node has no IPv4 pod CIDR yet; remedy: if it stays so, run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr (kubeadm: networking.podSubnet), or set clusterPodCIDRs"
    )]
    PodCidr,
    /// It has no block of the pool, for this reason.
    #[error("{0}")]
    Block(String),
    /// The kubelet has not published its address.
    #[error(
        "status.addresses: the Node has no IPv4 InternalIP yet; remedy: if it stays so, set the kubelet's --node-ip"
    )]
    InternalIp,
}

/// The pod CIDRs that the node claimed from the pool, or the reason why it has none.
pub type Claimed<'a> = Result<&'a [String], String>;

/// Derives the spec of `node`, without its probe key, which its agent has. Its pod CIDRs are those of the Node, or `claimed`
/// if there is a pool. If the public endpoint or the encapsulation is invalid, the value of `last`, the last published spec,
/// is used. InternalIPs keep the order of `last`, so that the first one, the underlay address, does not change with the
/// order on the Node.
///
/// # Errors
/// The node has no IPv4 InternalIP or no IPv4 pod CIDR yet.
pub fn derive(
    node: &Node,
    claimed: Option<Claimed<'_>>,
    last: Option<&IpipNodeSpec>,
) -> Result<Derived, Incomplete> {
    let mut invalid = Vec::new();
    let mut internal_ips = internal_ips(node);
    if internal_ips.is_empty() {
        return Err(Incomplete::InternalIp);
    }
    if let Some(last) = last {
        let place = |ip: &Ipv4Addr| {
            last.internal_ips
                .iter()
                .position(|it| *it == ip.to_string())
        };
        internal_ips.sort_by_key(|ip| place(ip).unwrap_or(usize::MAX));
    }
    shorten(
        &mut internal_ips,
        MAX_INTERNAL_IPS,
        "status.addresses",
        &mut invalid,
    );
    let mut pod_cidrs = match claimed {
        Some(claimed) => claimed.map_err(Incomplete::Block)?.to_vec(),
        None => pod_cidrs(node, &mut invalid),
    };
    if pod_cidrs.is_empty() {
        return Err(Incomplete::PodCidr);
    }
    shorten(&mut pod_cidrs, MAX_POD_CIDRS, "spec.podCIDRs", &mut invalid);
    let (public_endpoint, endpoint_from) = match endpoint(node, &internal_ips) {
        Ok(Some((address, from))) => (Some(address.to_string()), Some(from)),
        Ok(None) => (None, None),
        Err(value) => {
            invalid.push(value);
            let last = last.and_then(|last| last.public_endpoint.clone());
            let from = last.as_ref().map(|_| "the last good value".into());
            (last, from)
        }
    };
    let encapsulation = match text(&node.metadata.annotations, ENCAPSULATION) {
        Some(word) if Encapsulation::by_name(word).is_none() => {
            invalid.push(InvalidValue {
                field: format!("annotation {ENCAPSULATION}"),
                value: word.into(),
                remedy: "ipip, udp or direct",
            });
            last.and_then(|last| last.encapsulation.clone())
        }
        word => word.map(Into::into),
    };
    Ok(Derived {
        spec: IpipNodeSpec {
            internal_ips: internal_ips.iter().map(Ipv4Addr::to_string).collect(),
            pod_cidrs,
            public_endpoint,
            realm: realm(node),
            encapsulation,
            probe_key: None,
        },
        endpoint_from,
        invalid,
    })
}

/// Whether `node` states its public endpoint, or that it has none, be the value valid or not.
pub fn states_endpoint(node: &Node) -> bool {
    let has_annotation = text(&node.metadata.annotations, PUBLIC_ENDPOINT).is_some();
    has_annotation || !matches!(endpoint(node, &internal_ips(node)), Ok(None))
}

/// The IPv4 InternalIPs of `node`.
pub fn internal_ips(node: &Node) -> Vec<Ipv4Addr> {
    addresses(node, "InternalIP")
}

/// The IPv4 pod CIDRs of `node` that can be routed.
pub fn networks(node: &Node) -> Vec<Ipv4Network> {
    let cidrs = pod_cidrs(node, &mut Vec::new());
    cidrs
        .iter()
        .filter_map(|it| parse_network(it).ok())
        .collect()
}

/// Leaves out what an IpipNode has no room for, so that the API server accepts the others.
fn shorten<T: ToString>(
    values: &mut Vec<T>,
    most: usize,
    field: &str,
    invalid: &mut Vec<InvalidValue>,
) {
    let rest = values.split_off(most.min(values.len()));
    if let Some(first) = rest.first() {
        let more = rest.len() - 1;
        invalid.push(InvalidValue {
            field: field.into(),
            value: match more {
                0 => first.to_string(),
                _ => format!("{} and {more} more", first.to_string()),
            },
            remedy: "a node has at most 64 InternalIPs and 16 pod CIDRs, the others are not used",
        });
    }
}

fn pod_cidrs(node: &Node, invalid: &mut Vec<InvalidValue>) -> Vec<String> {
    let spec = node.spec.as_ref();
    let several = spec.and_then(|spec| spec.pod_cidrs.clone());
    let one = || spec?.pod_cidr.clone().map(|cidr| vec![cidr]);
    let cidrs = several.or_else(one).unwrap_or_default();
    // A dual-stack cluster has IPv6 ranges too.
    let ipv4 = cidrs.into_iter().filter(|cidr| !cidr.contains(':'));
    ipv4.filter(|cidr| match parse_network(cidr) {
        Ok(_) => true,
        Err(_) => {
            invalid.push(InvalidValue {
                field: "spec.podCIDRs".into(),
                value: cidr.clone(),
                remedy: "an IPv4 network that can be routed, like 10.42.1.0/24",
            });
            false
        }
    })
    .collect()
}

/// The public endpoint and its source.
fn endpoint(
    node: &Node,
    internal: &[Ipv4Addr],
) -> Result<Option<(Ipv4Addr, String)>, InvalidValue> {
    let annotations = &node.metadata.annotations;
    if let Some(value) = text(annotations, PUBLIC_ENDPOINT) {
        if value == "none" {
            return Ok(None);
        }
        let field = format!("annotation {PUBLIC_ENDPOINT}");
        return match parse_address(value) {
            Ok(address) => Ok(Some((address, field))),
            Err(_) => Err(InvalidValue {
                field,
                value: value.into(),
                remedy: "an IPv4 address that can be routed, like 203.0.113.11, or none",
            }),
        };
    }
    if let Some(address) = addresses(node, "ExternalIP").first() {
        return Ok(Some((*address, "ExternalIP".into())));
    }
    for (key, by) in FOREIGN {
        let Some(value) = text(annotations, key) else {
            continue;
        };
        let field = format!("annotation {key}");
        // k3s writes several addresses, Calico adds a prefix length.
        let parts = value.split(',').map(|part| {
            let part = part.trim();
            part.split_once('/').map_or(part, |(address, _)| address)
        });
        let addresses: Vec<&str> = parts.filter(|part| !is_ipv6(part)).collect();
        let Some(address) = addresses.iter().find_map(|it| parse_address(it).ok()) else {
            if addresses.is_empty() {
                continue;
            }
            return Err(InvalidValue {
                field,
                value: value.into(),
                remedy: "an IPv4 address that can be routed, like 203.0.113.11",
            });
        };
        let of_an_interface =
            internal.contains(&address) || by == Author::Program && address.is_private();
        if !of_an_interface {
            return Ok(Some((address, field)));
        }
    }
    Ok(None)
}

fn is_ipv6(text: &str) -> bool {
    matches!(text.parse(), Ok(IpAddr::V6(_)))
}

/// The realm of the label, or provider and region: nodes in one region of one provider are assumed to
/// share a private network.
fn realm(node: &Node) -> Option<String> {
    let labels = &node.metadata.labels;
    if let Some(realm) = labels.as_ref().and_then(|labels| labels.get(REALM)) {
        return Some(realm.clone()).filter(|realm| !realm.is_empty());
    }
    let region = text(labels, REGION)?;
    let id = node.spec.as_ref().and_then(|it| it.provider_id.as_deref());
    let provider = id.and_then(|id| id.split_once("://")).map(|(name, _)| name);
    let usable = |name: &&str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let realm = match provider.filter(usable) {
        Some(provider) => format!("{provider}.{region}"),
        None => region.to_owned(),
    };
    // A realm has at most 63 bytes and ends with a letter or digit, like the value of a label. Provider and region
    // together can have more.
    let cut: String = realm.chars().take(63).collect();
    Some(
        cut.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
            .to_owned(),
    )
}

/// The IPv4 addresses of the type `kind`, in the Node's order, without duplicates.
fn addresses(node: &Node, kind: &str) -> Vec<Ipv4Addr> {
    let status = node.status.as_ref();
    let all = status.and_then(|status| status.addresses.as_ref());
    let mut found = Vec::new();
    for it in all.into_iter().flatten().filter(|it| it.type_ == kind) {
        if let Ok(address) = parse_address(&it.address)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

fn text<'a>(texts: &'a Option<BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    let text = texts.as_ref()?.get(key)?.trim();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests;

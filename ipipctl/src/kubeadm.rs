//! `ipipctl kubeadm-config`: a kubeadm configuration for a cluster over several clouds. It asks
//! nothing of this host.

use anyhow::{Result, bail};
use clap::Args;
use ipnetwork::Ipv4Network;
use std::{fmt::Write, net::Ipv4Addr};

/// Where the API server listens, and where kubeadm has others look for it.
const PORT: u16 = 6443;
/// The longest prefix from which kubeadm's /24 of each node can be cut, with room for two nodes.
const LONGEST_POD_CIDR: u8 = 23;
/// The label that tells the agent a node's realm.
const REALM_LABEL: &str = "ipip.dev/realm";

/// What the configuration is for.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Address or name by which every node reaches this node's API server
    #[arg(long, value_name = "IP|HOST", value_parser = endpoint)]
    #[arg(required_unless_present = "join", conflicts_with = "join")]
    public_endpoint: Option<String>,
    /// Range of all pods; each node gets a /24 of it
    #[arg(long, value_name = "CIDR", value_parser = pod_cidr)]
    #[arg(required_unless_present = "join", conflicts_with = "join")]
    pod_cidr: Option<Ipv4Network>,
    /// Range of Services
    #[arg(long, value_name = "CIDR", value_parser = network, default_value = "10.96.0.0/12")]
    #[arg(conflicts_with = "join")]
    service_cidr: Ipv4Network,
    /// This node's private address; without it the one of its default route
    #[arg(long, value_name = "IP", value_parser = internal_ip)]
    internal_ip: Option<Ipv4Addr>,
    /// This node's name; without it the host's
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    node_name: Option<String>,
    /// This node's realm: nodes of one realm use each other's private addresses
    #[arg(long, value_name = "NAME", value_parser = realm)]
    realm: Option<String>,
    /// Version of the control plane; without it kubeadm's own
    #[arg(long, value_name = "VERSION", value_parser = version, conflicts_with = "join")]
    kubernetes_version: Option<String>,
    /// For a node that joins: the public endpoint of the control plane
    #[arg(long, value_name = "IP|HOST", value_parser = endpoint)]
    #[arg(requires_all = ["token", "ca_cert_hash"])]
    join: Option<String>,
    /// For a node that joins: what `kubeadm token create` printed on the control plane
    #[arg(long, value_name = "TOKEN", value_parser = token, requires = "join")]
    token: Option<String>,
    /// For a node that joins: what `kubeadm token create --print-join-command` names
    #[arg(long, value_name = "HASH", value_parser = ca_cert_hash, requires = "join")]
    ca_cert_hash: Option<String>,
}

/// The configuration as YAML.
pub fn kubeadm_config(options: &Options) -> Result<String> {
    if let (Some(join), Some(token), Some(hash)) =
        (&options.join, &options.token, &options.ca_cert_hash)
    {
        return Ok(join_configuration(options, join, token, hash));
    }
    let (Some(endpoint), Some(pods)) = (&options.public_endpoint, options.pod_cidr) else {
        bail!("--public-endpoint and --pod-cidr, or --join, say what to write");
    };
    let services = options.service_cidr;
    if pods.overlaps(services) {
        bail!(
            "--pod-cidr {pods} overlaps --service-cidr {services}: choose two ranges apart from \
             each other"
        );
    }
    for (option, range) in [("--pod-cidr", pods), ("--service-cidr", services)] {
        if let Some(address) = options.internal_ip
            && range.contains(address)
        {
            bail!(
                "--internal-ip {address} lies in {option} {range}: choose a range that no node's \
                 network uses"
            );
        }
    }
    Ok(init_configuration(options, endpoint, pods))
}

fn init_configuration(options: &Options, endpoint: &str, pods: Ipv4Network) -> String {
    let services = options.service_cidr;
    let mut yaml = String::from(
        "# Made by `ipipctl kubeadm-config`; use it as `kubeadm init --config FILE`.\n\
         apiVersion: kubeadm.k8s.io/v1beta4\n\
         kind: InitConfiguration\n",
    );
    let mut names = format!("    - \"{endpoint}\"\n");
    if let Some(address) = options.internal_ip {
        // The public one is on no interface, so nothing could listen on it.
        let _ = write!(
            yaml,
            "localAPIEndpoint:\n  advertiseAddress: \"{address}\"\n"
        );
        let _ = writeln!(names, "    - \"{address}\"");
    }
    yaml.push_str(&node_registration(options));
    yaml.push_str("---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n");
    if let Some(version) = &options.kubernetes_version {
        let _ = writeln!(yaml, "kubernetesVersion: \"{version}\"");
    }
    let _ = write!(
        yaml,
        "controlPlaneEndpoint: \"{endpoint}:{PORT}\"\n\
         apiServer:\n  certSANs:\n{names}\
         networking:\n  podSubnet: \"{pods}\"\n  serviceSubnet: \"{services}\"\n\
         ---\n\
         apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
         kind: KubeProxyConfiguration\n\
         clusterCIDR: \"{pods}\"\n"
    );
    yaml
}

fn join_configuration(options: &Options, endpoint: &str, token: &str, hash: &str) -> String {
    format!(
        "# Made by `ipipctl kubeadm-config`; use it as `kubeadm join --config FILE`.\n\
         apiVersion: kubeadm.k8s.io/v1beta4\n\
         kind: JoinConfiguration\n\
         discovery:\n  \
           bootstrapToken:\n    \
             apiServerEndpoint: \"{endpoint}:{PORT}\"\n    \
             token: \"{token}\"\n    \
             caCertHashes:\n      \
               - \"{hash}\"\n\
         {}",
        node_registration(options)
    )
}

fn node_registration(options: &Options) -> String {
    let mut yaml = String::new();
    if let Some(name) = &options.node_name {
        let _ = writeln!(yaml, "  name: \"{name}\"");
    }
    let labels = options.realm.as_ref();
    let arguments = [
        ("node-ip", options.internal_ip.map(|it| it.to_string())),
        (
            "node-labels",
            labels.map(|it| format!("{REALM_LABEL}={it}")),
        ),
    ];
    let given = arguments
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| (name, value)));
    let given: String = given
        .map(|(name, value)| format!("    - name: {name}\n      value: \"{value}\"\n"))
        .collect();
    if !given.is_empty() {
        let _ = write!(yaml, "  kubeletExtraArgs:\n{given}");
    }
    match yaml.is_empty() {
        true => yaml,
        false => format!("nodeRegistration:\n{yaml}"),
    }
}

fn endpoint(text: &str) -> Result<String, &'static str> {
    match text.parse::<Ipv4Addr>() {
        Ok(ip) if is_host(ip) => Ok(ip.to_string()),
        Ok(_) => Err("no host has this address: use the address that nodes of other clouds dial"),
        Err(_) if is_dns_name(text) && !looks_like_address(text) => Ok(text.to_owned()),
        Err(_) => Err(
            "use an IPv4 address or a DNS name in lower case, without port or scheme \
             (the port is 6443)",
        ),
    }
}

fn internal_ip(text: &str) -> Result<Ipv4Addr, &'static str> {
    let ip = text.parse().ok().filter(|ip| is_host(*ip));
    ip.ok_or("use the IPv4 address of this node's interface, such as 10.0.0.11")
}

fn network(text: &str) -> Result<Ipv4Network, String> {
    let parsed = text
        .contains('/')
        .then(|| text.parse::<Ipv4Network>().ok())
        .flatten();
    let network = parsed.ok_or("use an IPv4 range such as 10.42.0.0/16")?;
    if network.ip() == network.network() {
        return Ok(network);
    }
    Err(format!(
        "it names an address inside a range: write {}/{}",
        network.network(),
        network.prefix()
    ))
}

fn pod_cidr(text: &str) -> Result<Ipv4Network, String> {
    let network = network(text)?;
    if network.prefix() <= LONGEST_POD_CIDR {
        return Ok(network);
    }
    Err(format!(
        "each node takes a /24 of it: use a prefix of {LONGEST_POD_CIDR} or shorter, such as \
         10.42.0.0/16"
    ))
}

fn node_name(text: &str) -> Result<String, &'static str> {
    let fits = is_dns_name(text);
    fits.then(|| text.to_owned())
        .ok_or("use a DNS name in lower case: letters, digits, '-' and '.'")
}

fn realm(text: &str) -> Result<String, &'static str> {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let fits = bytes.len() <= 63
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes
            .iter()
            .all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(it));
    fits.then(|| text.to_owned()).ok_or(
        "it becomes a label: use at most 63 letters, digits, '-', '_' and '.', with a letter or \
         digit at both ends",
    )
}

fn version(text: &str) -> Result<String, &'static str> {
    let numbers = text.strip_prefix('v').unwrap_or_default().split('.');
    let numbers: Vec<_> = numbers.map(str::parse::<u16>).collect();
    (numbers.len() == 3 && numbers.iter().all(Result::is_ok))
        .then(|| text.to_owned())
        .ok_or("use a full version such as v1.36.3")
}

fn token(text: &str) -> Result<String, &'static str> {
    let is_part = |part: &str, len| {
        part.len() == len
            && part
                .bytes()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit())
    };
    let fits = text
        .split_once('.')
        .is_some_and(|(id, secret)| is_part(id, 6) && is_part(secret, 16));
    fits.then(|| text.to_owned())
        .ok_or("use what `kubeadm token create` prints: six characters, '.', sixteen characters")
}

fn ca_cert_hash(text: &str) -> Result<String, &'static str> {
    let fits = text
        .strip_prefix("sha256:")
        .is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|it| it.is_ascii_hexdigit()));
    fits.then(|| text.to_owned()).ok_or(
        "use what `kubeadm token create --print-join-command` prints after \
         --discovery-token-ca-cert-hash: sha256: and 64 hexadecimal digits",
    )
}

fn is_host(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast()
}

fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

/// A mistyped address is no name, although its letters would do.
fn looks_like_address(text: &str) -> bool {
    text.bytes().all(|it| it.is_ascii_digit() || it == b'.')
}

#[cfg(test)]
mod tests;

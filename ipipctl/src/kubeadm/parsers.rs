//! Parsers of the options. Errors are remedies: clap puts the option and its value before them.

use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// The longest prefix that has room for two nodes: kubeadm assigns a /24 to each node.
const LONGEST_POD_CIDR: u8 = 23;

/// An endpoint: an IPv4 address or a DNS name, without a port.
pub fn endpoint(text: &str) -> Result<String, &'static str> {
    match text.parse::<Ipv4Addr>() {
        Ok(ip) if is_host(ip) => Ok(ip.to_string()),
        Ok(_) => Err("not the address of a host: use the address that nodes of other clouds dial"),
        Err(_) if is_dns_name(text) && !looks_like_address(text) => Ok(text.to_owned()),
        Err(_) => Err(
            "use an IPv4 address or a DNS name in lower case, without port or scheme \
             (the port is 6443)",
        ),
    }
}

/// The address of an interface of this node.
pub fn internal_ip(text: &str) -> Result<Ipv4Addr, &'static str> {
    let ip = text.parse().ok().filter(|ip| is_host(*ip));
    ip.ok_or("use the IPv4 address of this node's interface, such as 10.0.0.11")
}

/// A range whose address is its first one.
pub fn network(text: &str) -> Result<Ipv4Network, String> {
    const REMEDY: &str = "use an IPv4 range such as 10.42.0.0/16";
    // Without a prefix length, the parser would accept an address as a /32.
    if !text.contains('/') {
        return Err(REMEDY.into());
    }
    let network: Ipv4Network = text.parse().map_err(|_| REMEDY)?;
    if network.ip() == network.network() {
        return Ok(network);
    }
    Err(format!(
        "this is an address inside a range: write {}/{}",
        network.network(),
        network.prefix()
    ))
}

/// A range that has room for two nodes.
pub fn pod_cidr(text: &str) -> Result<Ipv4Network, String> {
    let network = network(text)?;
    if network.prefix() <= LONGEST_POD_CIDR {
        return Ok(network);
    }
    Err(format!(
        "each node gets a /24 of this range: use a prefix of {LONGEST_POD_CIDR} or shorter, such as \
         10.42.0.0/16"
    ))
}

/// A node name: an RFC 1123 subdomain.
pub fn node_name(text: &str) -> Result<String, &'static str> {
    let fits = is_dns_name(text);
    fits.then(|| text.to_owned())
        .ok_or("use a DNS name in lower case: letters, digits, '-' and '.'")
}

/// A realm: the value of a Kubernetes label.
pub fn realm(text: &str) -> Result<String, &'static str> {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let fits = bytes.len() <= 63
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes
            .iter()
            .all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(it));
    fits.then(|| text.to_owned()).ok_or(
        "the realm becomes a label: use at most 63 letters, digits, '-', '_' and '.', with a letter or \
         digit at both ends",
    )
}

/// A full version of Kubernetes.
pub fn version(text: &str) -> Result<String, &'static str> {
    let numbers = text.strip_prefix('v').unwrap_or_default().split('.');
    let numbers: Vec<_> = numbers.map(str::parse::<u16>).collect();
    (numbers.len() == 3 && numbers.iter().all(Result::is_ok))
        .then(|| text.to_owned())
        .ok_or("use a full version such as v1.36.3")
}

/// A bootstrap token.
pub fn token(text: &str) -> Result<String, &'static str> {
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

/// The hash of the public key of the cluster's CA.
pub fn ca_cert_hash(text: &str) -> Result<String, &'static str> {
    let fits = text
        .strip_prefix("sha256:")
        .is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|it| it.is_ascii_hexdigit()));
    fits.then(|| text.to_owned()).ok_or(
        "use what `kubeadm token create --print-join-command` prints after \
         --discovery-token-ca-cert-hash: sha256: and 64 hexadecimal digits",
    )
}

/// Whether `ip` can be the address of a host.
fn is_host(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast()
}

/// Whether `text` is an RFC 1123 subdomain.
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

/// A mistyped address must not be accepted as a DNS name, although its characters are allowed there.
fn looks_like_address(text: &str) -> bool {
    text.bytes().all(|it| it.is_ascii_digit() || it == b'.')
}

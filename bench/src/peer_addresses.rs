//! Names and addresses of simulated nodes. No two of up to 5,120 nodes share one.

use anyhow::Result;
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// The name of the node with this number.
pub fn name(number: u32) -> String {
    format!("node-{number:05}")
}

/// Its InternalIP.
pub fn internal_ip(number: u32) -> Ipv4Addr {
    let [.., high, low] = number.to_be_bytes();
    Ipv4Addr::new(172, 16 + high, low, 7)
}

/// Its public endpoint.
pub fn public_endpoint(number: u32) -> Ipv4Addr {
    let [.., high, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 51 + high, low, 7)
}

/// Its pod CIDR.
pub fn pod_cidr(number: u32) -> Result<Ipv4Network> {
    let [.., high, low] = number.to_be_bytes();
    Ok(Ipv4Network::new(Ipv4Addr::new(10, 100 + high, low, 0), 24)?)
}

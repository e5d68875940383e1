//! IPv4 addresses of interfaces.

use crate::{Netlink, Result, Scope};
use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
};
use std::net::IpAddr;

/// An IPv4 address of an interface.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address with the length of its prefix.
    pub network: Ipv4Network,
    /// The range in which it is valid.
    pub scope: Scope,
}

impl Netlink {
    /// Lists all IPv4 addresses.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let table = self.dump("list addresses", RouteNetlinkMessage::GetAddress(request))?;
        Ok(table.iter().filter_map(address).collect())
    }

    /// Adds an address of global scope to the interface `index`.
    pub fn add_address(&mut self, index: u32, network: Ipv4Network) -> Result<()> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        request.header.index = index;
        request.header.prefix_len = network.prefix();
        let address = IpAddr::V4(network.ip());
        request.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ];
        // A point-to-point prefix (RFC 3021) and a /32 have no broadcast address.
        if network.prefix() < 31 {
            let broadcast = AddressAttribute::Broadcast(network.broadcast());
            request.attributes.push(broadcast);
        }
        self.change(
            || format!("add address {network} to link {index}"),
            RouteNetlinkMessage::NewAddress(request),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Deletes an address of the interface `index`.
    pub fn delete_address(&mut self, index: u32, network: Ipv4Network) -> Result<()> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        request.header.index = index;
        request.header.prefix_len = network.prefix();
        request.attributes = vec![AddressAttribute::Local(IpAddr::V4(network.ip()))];
        self.change(
            || format!("delete address {network} of link {index}"),
            RouteNetlinkMessage::DelAddress(request),
            0,
        )
    }
}

pub(crate) fn address(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    // `Local` is the interface's own address; `Address` is the peer's on a point-to-point link.
    let ip = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
            _ => None,
        })?;
    Some(Address {
        index: message.header.index,
        network: Ipv4Network::new(ip, message.header.prefix_len).ok()?,
        scope: Scope::from(u8::from(message.header.scope)),
    })
}

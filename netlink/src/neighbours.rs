//! IPv4 neighbours (ARP).

use crate::{Netlink, Result};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::RouteType,
};
use std::net::Ipv4Addr;

/// An entry of the ARP table.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Neighbour {
    /// Index of the interface.
    pub index: u32,
    /// The neighbour's IPv4 address.
    pub address: Ipv4Addr,
    /// The neighbour's Ethernet address, if one was ever resolved.
    pub mac: Option<[u8; 6]>,
    /// Whether the kernel would send to that Ethernet address now.
    pub usable: bool,
    /// Whether the neighbour has answered a short time ago (`NUD_REACHABLE`).
    pub reachable: bool,
    /// Whether the entry is permanent: it never expires and is never resolved.
    pub permanent: bool,
}

impl Netlink {
    /// Lists all IPv4 neighbours.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        let table = self.dump(
            "list neighbours",
            RouteNetlinkMessage::GetNeighbour(request),
        )?;
        Ok(table.iter().filter_map(neighbour).collect())
    }

    /// Adds `address` as a permanent neighbour on the interface `index`, or replaces its entry.
    pub fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Result<()> {
        let mut request = request(index, address);
        request.header.state = NeighbourState::Permanent;
        request
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.into()));
        self.change(
            || format!("set neighbour {address} on link {index}"),
            RouteNetlinkMessage::NewNeighbour(request),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Makes the kernel resolve or confirm `address` on the interface `index`, as if it had a packet
    /// to send there (`NTF_USE`).
    pub fn use_neighbour(&mut self, index: u32, address: Ipv4Addr) -> Result<()> {
        let mut request = request(index, address);
        request.header.flags = NeighbourFlags::Use;
        self.change(
            || format!("resolve neighbour {address} on link {index}"),
            RouteNetlinkMessage::NewNeighbour(request),
            NLM_F_CREATE,
        )
    }
}

fn request(index: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.kind = RouteType::Unicast;
    let address = NeighbourAddress::Inet(address);
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    message
}

pub(crate) fn neighbour(message: &RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => address = Some(*it),
            NeighbourAttribute::LinkLayerAddress(it) => mac = it[..].try_into().ok(),
            _ => {}
        }
    }
    let state = message.header.state;
    let valid = matches!(
        state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    Some(Neighbour {
        index: message.header.ifindex,
        address: address?,
        mac,
        usable: valid && mac.is_some(),
        reachable: state == NeighbourState::Reachable,
        permanent: state == NeighbourState::Permanent,
    })
}

//! Connections that the kernel tracks.

use crate::{NetNs, Netlink, Result};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Status, Tuple},
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr};

/// `CTA_ID`.
const ID: u16 = 12;
/// `CTA_ZONE`.
const ZONE: u16 = 18;

/// Reads and deletes IPv4 connections of one network namespace.
pub struct Conntrack(Netlink<NetfilterMessage>);

/// A tracked connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// Source of its first packet.
    pub source: Ipv4Addr,
    /// Destination of its first packet.
    pub destination: Ipv4Addr,
    /// Source of a reply, before it is translated back: the destination after DNAT.
    pub reply_source: Ipv4Addr,
    /// Destination of a reply, before it is translated back: the source after SNAT.
    pub reply_destination: Ipv4Addr,
    /// Whether a reply has been seen.
    pub is_answered: bool,
    /// What identifies it to the kernel.
    pub(crate) key: Vec<ConntrackAttribute>,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Netlink::open_protocol(NETLINK_NETFILTER).map(Self)
    }

    /// Opens a socket in `ns`; the calling thread stays in its own namespace.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Passes each connection to `visit`. There may be hundreds of thousands, so none is kept. A connection may be
    /// passed twice.
    pub fn each(&mut self, mut visit: impl FnMut(Flow)) -> Result<()> {
        let request = message(ConntrackMessage::Get(Vec::new()));
        self.0.each("list tracked connections", request, |answer| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) =
                answer.inner
                && let Some(flow) = flow(attributes)
            {
                visit(flow);
            }
        })
    }

    /// Deletes a connection, so that its next packet begins a new one. If it has ended, this is no error.
    pub fn delete(&mut self, flow: &Flow) -> Result<()> {
        let attempt = || {
            let (from, to) = (flow.source, flow.destination);
            format!("delete the tracked connection from {from} to {to}")
        };
        let request = message(ConntrackMessage::Delete(flow.key.clone()));
        match self.0.change(attempt, request, 0) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            done => done,
        }
    }
}

fn message(inner: ConntrackMessage) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    NetfilterMessage::new(header, inner)
}

pub(crate) fn flow(attributes: Vec<ConntrackAttribute>) -> Option<Flow> {
    let (mut first, mut reply, mut is_answered) = (None, None, false);
    for attribute in &attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => first = addresses(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = addresses(tuple),
            ConntrackAttribute::CtaStatus(status) => {
                is_answered = status.contains(Status::SeenReply);
            }
            _ => {}
        }
    }
    let ((source, destination), (reply_source, reply_destination)) = (first?, reply?);
    let identifies = |it: &ConntrackAttribute| match it {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        // The ID tells the connection from a later one between the same ports.
        ConntrackAttribute::Other(it) => matches!(netlink_packet_core::Nla::kind(it), ID | ZONE),
        _ => false,
    };
    Some(Flow {
        source,
        destination,
        reply_source,
        reply_destination,
        is_answered,
        key: attributes.into_iter().filter(identifies).collect(),
    })
}

/// Source and destination of a tuple.
fn addresses(tuple: &[Tuple]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let addresses = tuple.iter().find_map(|it| match it {
        Tuple::Ip(addresses) => Some(addresses),
        _ => None,
    })?;
    let (mut source, mut destination) = (None, None);
    for address in addresses {
        match address {
            IPTuple::SourceAddress(IpAddr::V4(it)) => source = Some(*it),
            IPTuple::DestinationAddress(IpAddr::V4(it)) => destination = Some(*it),
            _ => {}
        }
    }
    Some((source?, destination?))
}

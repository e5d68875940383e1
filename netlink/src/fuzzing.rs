//! Entry points of the fuzz targets: bytes as the kernel sends them, read in each way in which this crate does.
//!
//! The kernel is trusted, but names, rules and attributes in its messages are those of other programs, and newer kernels
//! send messages that this version does not know.

use crate::{
    Changes, Watched, addresses, conntrack, features, filters, fou, generic::GenericMessage,
    legacy::Entries, links, neighbours, nftables, routes, rules, ruleset_events, socket,
};
use netlink_packet_core::{NetlinkDeserializable, NetlinkPayload, NetlinkSerializable};
use netlink_packet_generic::GenlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::ConntrackMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use std::{fmt::Debug, hint::black_box};

/// The smallest entry of iptables: `struct ipt_entry`.
const ENTRY_BYTES: usize = 112;

/// A datagram of `NETLINK_ROUTE`.
///
/// # Panics
/// What would be written differs from what was read.
pub fn route_datagram(datagram: &[u8]) {
    let mut changes = Changes::default();
    for message in bounded(datagram) {
        changes.note(message, Some(1));
    }
    for message in parsed::<RouteNetlinkMessage>(datagram) {
        black_box(links::link(&message));
        black_box(neighbours::neighbour(&message));
        black_box(addresses::address(&message));
        black_box(filters::program_name(&message));
        for route in routes::routes(&message) {
            // The kernel lists no route with host bits.
            if route.destination.ip() == route.destination.network() {
                let again = written(RouteNetlinkMessage::NewRoute(routes::request(&route)));
                assert_eq!(routes::routes(&again), [route]);
            }
        }
        if let Some(rule) = rules::rule(message) {
            let again = written(RouteNetlinkMessage::NewRule(rule.message.clone()));
            let again = rules::rule(again).unwrap();
            // Unknown attributes may differ: the library loses one flag of an attribute that has both, as none of the kernel.
            assert_eq!(again.message.header, rule.message.header);
            let attributes = |it: &rules::Rule| it.message.attributes.len();
            assert_eq!(attributes(&again), attributes(&rule));
            assert_eq!((again.priority, again.table), (rule.priority, rule.table));
        }
    }
    black_box(changes);
}

/// A datagram of `NETLINK_NETFILTER`: tables, chains, rules, elements and connections.
///
/// # Panics
/// What would be written differs from what was read.
pub fn netfilter_datagram(datagram: &[u8]) {
    const WATCHED: &[Watched] = &[Watched {
        table: "ipip",
        chain: Some("postrouting"),
    }];
    for message in bounded(datagram).into_iter().flatten() {
        black_box(ruleset_events::is_watched(message, WATCHED));
    }
    for message in parsed::<NetfilterMessage>(datagram) {
        match message.inner {
            NetfilterMessageInner::NfTables(message) => nftables::read(message),
            NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => {
                let Some(flow) = conntrack::flow(attributes) else {
                    continue;
                };
                let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
                let delete = ConntrackMessage::Delete(flow.key.clone());
                let again = written(NetfilterMessage::new(header, delete)).inner;
                assert!(matches!(
                    again,
                    NetfilterMessageInner::Conntrack(ConntrackMessage::Delete(it))
                        if it.len() == flow.key.len()
                ));
            }
            _ => {}
        }
    }
}

/// A datagram of `NETLINK_GENERIC`: families, FOU sockets and features of interfaces.
pub fn generic_datagram(datagram: &[u8]) {
    for message in parsed::<GenlMessage<GenericMessage>>(datagram) {
        black_box(fou::socket(&message.payload));
        for set in 0..4 {
            black_box(features::names(&message.payload, set));
        }
    }
}

/// The rules of iptables-legacy. The first two bytes are the offset of the chain.
///
/// # Panics
/// More rules were read than there are.
pub fn legacy_rules(input: &[u8]) {
    let Some((start, rules)) = input.split_first_chunk() else {
        return;
    };
    let start = u16::from_ne_bytes(*start).into();
    if let Some(filter) = Entries(rules).filter(start) {
        let longest = filter.called.values().chain([&filter.rules]).map(Vec::len);
        assert!(longest.max() <= Some(rules.len() / ENTRY_BYTES));
    }
}

/// The bytes of each message. Fails if they are more than the datagram has.
fn bounded(datagram: &[u8]) -> Vec<Option<&[u8]>> {
    let messages: Vec<_> = socket::messages(datagram).map(Result::ok).collect();
    let bytes: usize = messages.iter().flatten().map(|it| it.len()).sum();
    assert!(bytes <= datagram.len());
    messages
}

/// The messages of a protocol. Errors are read, too.
fn parsed<M: NetlinkDeserializable>(datagram: &[u8]) -> Vec<M> {
    let messages = socket::messages(datagram).flatten();
    let messages = messages.flat_map(socket::deserialize::<M>);
    messages
        .filter_map(|message| match message.payload {
            NetlinkPayload::InnerMessage(message) => Some(message),
            NetlinkPayload::Error(answer) => {
                black_box(socket::check(&|| String::new(), &answer).err());
                None
            }
            NetlinkPayload::Done(done) => {
                black_box(socket::errno(done.code));
                None
            }
            _ => None,
        })
        .collect()
}

/// `message` after it was written and read again.
fn written<M>(message: M) -> M
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let mut datagram = Vec::new();
    socket::append(&mut datagram, message, 0, 0);
    parsed(&datagram).pop().unwrap()
}

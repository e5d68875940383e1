//! Conditions of rules.

use super::{
    accepts,
    expressions::{NETWORK_HEADER, TRANSPORT_HEADER, compare, header, mask, meta, number},
};
use ipnetwork::Ipv4Network;
use netlink_packet_netfilter::nftables::{Expressions, MetaKey, Operator};
use nix::libc;

/// Offset of the source address in the IPv4 header (RFC 791).
pub(super) const SOURCE: u32 = 12;
/// Offset of the destination address in the IPv4 header.
pub(super) const DESTINATION: u32 = 16;
/// Offset of the protocol in the IPv4 header.
const PROTOCOL: u32 = 9;
/// Offset of the destination port in the UDP header (RFC 768).
const DESTINATION_PORT: u32 = 2;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// A condition on a packet. A name of an interface that ends with `*` stands for all that begin so, but not in rules of
/// iptables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition<'a> {
    /// Its source is in this prefix.
    From(Ipv4Network),
    /// Its source is not in this prefix.
    NotFrom(Ipv4Network),
    /// Its destination is in this prefix.
    To(Ipv4Network),
    /// Its destination is not in this prefix.
    NotTo(Ipv4Network),
    /// It arrived through this interface.
    Into(&'a str),
    /// It leaves through this interface.
    Through(&'a str),
    /// It leaves through any other interface.
    NotThrough(&'a str),
    /// The destination of its connection was translated (DNAT).
    Translated,
    /// It is a UDP packet.
    Udp,
    /// It answers the end that began its connection.
    Replies,
    /// The host's route back to its source leaves through this interface.
    SourceBehind(&'a str),
    /// Its IP protocol has this number.
    Protocol(u8),
    /// It is a datagram to this UDP port.
    UdpTo(u16),
}

/// How a program writes the name of an interface: it takes another form for another rule.
#[derive(Clone, Copy)]
pub(super) enum NameForm {
    /// `nft`: filled with zeros.
    Nft,
    /// `iptables`: with one zero. Without it, every name that begins so would match.
    Iptables,
}

/// The expressions of conditions, all of which a packet must meet.
pub(super) fn conditions(of: &[Condition], form: NameForm) -> impl Iterator<Item = Expressions> {
    use Operator::{Equal, NotEqual};
    let name_bytes = move |name: &str| {
        if let (NameForm::Nft, Some(start)) = (form, name.strip_suffix('*')) {
            return start.as_bytes().to_vec();
        }
        let bytes = match form {
            NameForm::Nft => libc::IFNAMSIZ,
            NameForm::Iptables => name.len() + 1,
        };
        let mut name = name.as_bytes().to_vec();
        name.resize(bytes, 0);
        name
    };
    let interface =
        move |key, operator, name: &str| vec![meta(key), compare(operator, name_bytes(name))];
    of.iter().flat_map(move |it| match *it {
        Condition::From(network) => compare_address(SOURCE, Equal, network),
        Condition::NotFrom(network) => compare_address(SOURCE, NotEqual, network),
        Condition::To(network) => compare_address(DESTINATION, Equal, network),
        Condition::NotTo(network) => compare_address(DESTINATION, NotEqual, network),
        Condition::Into(name) => interface(MetaKey::Iifname, Equal, name),
        Condition::Through(name) => interface(MetaKey::Oifname, Equal, name),
        Condition::NotThrough(name) => interface(MetaKey::Oifname, NotEqual, name),
        Condition::Translated => match form {
            NameForm::Nft => translated(),
            NameForm::Iptables => vec![accepts::translated()],
        },
        Condition::Replies => replies(),
        Condition::SourceBehind(name) => sources_behind(name_bytes(name)),
        Condition::Protocol(number) => header_is(NETWORK_HEADER, PROTOCOL, vec![number]),
        Condition::UdpTo(port) => {
            let mut all = header_is(NETWORK_HEADER, PROTOCOL, vec![UDP]);
            let port = port.to_be_bytes().into();
            all.extend(header_is(TRANSPORT_HEADER, DESTINATION_PORT, port));
            all
        }
        Condition::Udp => vec![meta(MetaKey::L4Proto), compare(Equal, vec![UDP])],
    })
}

fn compare_address(offset: u32, operator: Operator, network: Ipv4Network) -> Vec<Expressions> {
    let mut all = vec![header(NETWORK_HEADER, offset, 4)];
    if network.prefix() < 32 {
        all.push(mask(network.mask().octets()));
    }
    all.push(compare(operator, network.network().octets().into()));
    all
}

/// The connection's destination was translated (`ct status dnat`).
fn translated() -> Vec<Expressions> {
    /// `NFT_CT_STATUS`.
    const STATUS: u32 = 2;
    /// `IPS_DST_NAT`.
    const DNAT: u32 = 1 << 5;
    vec![
        of_connection(STATUS),
        mask(DNAT.to_ne_bytes()),
        compare(Operator::NotEqual, vec![0; 4]),
    ]
}

/// The packet answers the end that began the connection (`ct direction reply`).
fn replies() -> Vec<Expressions> {
    /// `NFT_CT_DIRECTION`.
    const DIRECTION: u32 = 1;
    /// `IP_CT_DIR_REPLY`.
    const REPLY: u8 = 1;
    vec![
        of_connection(DIRECTION),
        compare(Operator::Equal, vec![REPLY]),
    ]
}

fn of_connection(key: u32) -> Expressions {
    /// `NFTA_CT_DREG` and `NFTA_CT_KEY`.
    const REGISTER: u16 = 1;
    const KEY: u16 = 2;
    Expressions::Other {
        expression_type: "ct".into(),
        attributes: vec![number(REGISTER, libc::NFT_REG_1 as u32), number(KEY, key)],
    }
}

/// The route back to the source leaves through the interface (`fib saddr oifname`).
fn sources_behind(interface: Vec<u8>) -> Vec<Expressions> {
    /// `NFTA_FIB_DREG`, `NFTA_FIB_RESULT` and `NFTA_FIB_FLAGS`.
    const REGISTER: u16 = 1;
    const RESULT: u16 = 2;
    const FLAGS: u16 = 3;
    /// `NFT_FIB_RESULT_OIFNAME` and `NFTA_FIB_F_SADDR`.
    const OIFNAME: u32 = 2;
    const SOURCE: u32 = 1;
    let fib = Expressions::Other {
        expression_type: "fib".into(),
        attributes: vec![
            number(REGISTER, libc::NFT_REG_1 as u32),
            number(RESULT, OIFNAME),
            number(FLAGS, SOURCE),
        ],
    };
    vec![fib, compare(Operator::Equal, interface)]
}

/// The bytes at `offset` of the network header or the transport header are `wanted`.
fn header_is(base: u32, offset: u32, wanted: Vec<u8>) -> Vec<Expressions> {
    vec![
        header(base, offset, wanted.len()),
        compare(Operator::Equal, wanted),
    ]
}

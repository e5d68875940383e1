//! nftables rules of the family `ip`: a table with one NAT chain, for SNAT, a table that drops packets, and accept rules
//! in a chain of iptables.
//!
//! In the kernel, a rule is a list of expressions over registers. `nft` lists them in its own syntax.

use crate::{Error, NetNs, Netlink, Result, socket::unexpected};
use ipnetwork::Ipv4Network;
use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute,
        Expressions, Hook, Immediate, InetHookNumber, ListAttribute, Meta, MetaKey,
        NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, TableAttribute,
        TableMessage,
    },
    none::ControlMessage,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{errno::Errno, libc};
use std::net::Ipv4Addr;

mod accepts;
mod forward;
mod guard;

pub(crate) use forward::xtables_state;

pub use accepts::{AcceptChain, IPTABLES_FORWARD, IPTABLES_TABLE};
pub use guard::{GuardChain, GuardHook, GuardRule, GuardTable};

/// One before `srcnat` (100), the usual priority of SNAT: the first chain that translates a connection
/// decides.
const PRIORITY: u32 = 99;
/// Offset of the source address in the IPv4 header (RFC 791).
const SOURCE: u32 = 12;
/// Offset of the destination address in the IPv4 header.
const DESTINATION: u32 = 16;
/// Offset of the protocol in the IPv4 header.
const PROTOCOL: u32 = 9;
/// Offset of the destination port in the UDP header (RFC 768).
const DESTINATION_PORT: u32 = 2;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const TRANSPORT_HEADER: u32 = 2;
/// `NFTA_MASQ_FLAGS`.
const MASQUERADE_FLAGS: u16 = 1;
/// `NFTA_MASQ_REG_PROTO_MIN`.
const MASQUERADE_FIRST: u16 = 2;
/// `NFTA_MASQ_REG_PROTO_MAX`.
const MASQUERADE_LAST: u16 = 3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`.
const PORTS_GIVEN: u32 = 1 << 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const FULLY_RANDOM: u32 = 1 << 4;
/// `NFTA_NAT_TYPE`.
const NAT_TYPE: u16 = 1;
/// `NFTA_NAT_FAMILY`.
const NAT_FAMILY: u16 = 2;
/// `NFTA_NAT_REG_ADDR_MIN`.
const NAT_FIRST: u16 = 3;
/// `NFTA_NAT_REG_ADDR_MAX`.
const NAT_LAST: u16 = 4;
/// `NFT_NAT_SNAT`.
const SOURCE_NAT: u32 = 0;
/// `NFTNL_UDATA_CHAIN_COMMENT`.
const COMMENT: u8 = 0;
/// The error of a kernel without nftables for a read request (`nfnetlink_rcv_msg`).
const NO_NFTABLES_ON_READ: Errno = Errno::EINVAL;
/// The error of a kernel without nftables for a transaction (`nfnetlink_rcv_batch`).
const NO_NFTABLES_ON_CHANGE: Errno = Errno::EOPNOTSUPP;

/// A table with a single chain of type `nat` at the hook `postrouting`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NatTable<'a> {
    /// Its name.
    pub name: &'a str,
    /// Name of the chain.
    pub chain: &'a str,
    /// Comment of the chain, which `nft list` shows.
    pub comment: &'a str,
    /// The chain's rules.
    pub rules: Vec<NatRule<'a>>,
}

/// A rule. NAT chains see only the first packet of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NatRule<'a> {
    /// The conditions, all of which the packet must meet.
    pub conditions: Vec<Condition<'a>>,
    /// The source address after the translation.
    pub source: NewSource,
}

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

/// The new source of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NewSource {
    /// The address of the interface, and a random port (`masquerade fully-random`).
    OfInterface,
    /// The address of the interface, and a random port from the first to the last of these. The rule's conditions must
    /// select a protocol that has ports; otherwise nft cannot read its own listing.
    OfInterfaceWithPort(u16, u16),
    /// This address, and the same port if it is free (`snat to`).
    Address(Ipv4Addr),
}

type Message = (NetfilterMessage, u16);
type Expression = ListAttribute<ExpressionAttribute>;

/// Reads and changes nftables tables of one network namespace.
pub struct Nftables(Netlink<NetfilterMessage>);

impl Nftables {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Netlink::open_protocol(NETLINK_NETFILTER).map(Self)
    }

    /// Opens a socket in `ns`; the calling thread stays in its own namespace.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Creates the table, or replaces the one with its name in one transaction.
    pub fn replace(&mut self, table: &NatTable) -> Result<()> {
        let mut messages = vec![
            // Deletion fails if there is no table, so create one first.
            new(NfTablesMessage::NewTable(table_named(table.name))),
            delete(table.name),
            new(NfTablesMessage::NewTable(table_named(table.name))),
            new(NfTablesMessage::NewChain(chain(table))),
        ];
        messages.extend(table.rules.iter().map(|it| new_rule(table, it)));
        self.transact(
            || format!("replace nftables table ip {}", table.name),
            messages,
        )
    }

    /// Deletes a table with its content. If there is none, this is no error.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        let attempt = || format!("delete nftables table ip {name}");
        match self.transact(attempt, vec![delete(name)]) {
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | NO_NFTABLES_ON_CHANGE)) => {
                Ok(())
            }
            done => done,
        }
    }

    /// Whether a table of this name exists.
    pub fn has(&mut self, name: &str) -> Result<bool> {
        Ok(self.table(name)?.is_some())
    }

    /// Whether the kernel has exactly this table, and it is active.
    pub fn holds(&mut self, wanted: &NatTable) -> Result<bool> {
        let Some(table) = self.table(wanted.name)? else {
            return Ok(false);
        };
        let dormant = table
            .iter()
            .any(|it| matches!(it, TableAttribute::Flags(flags) if !flags.is_empty()));
        // One object only, which must be the chain.
        if dormant || !table.contains(&TableAttribute::Use(1)) {
            return Ok(false);
        }
        Ok(self.holds_chain(wanted)? && self.holds_rules(wanted)?)
    }

    fn holds_chain(&mut self, wanted: &NatTable) -> Result<bool> {
        let attempt = || format!("read nftables chain ip {} {}", wanted.name, wanted.chain);
        let request = NfTablesMessage::GetChain(ChainMessage {
            attributes: chain_named(wanted.name, wanted.chain).into(),
        });
        let answer = match self.0.get(attempt, message(request)) {
            Err(error) if is_absent(&error) => return Ok(false),
            answer => answer?,
        };
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(held)) = &answer.inner else {
            return Err(unexpected(attempt, &answer));
        };
        let has = |it: &ChainAttribute| match it {
            ChainAttribute::Hook(wanted) => held.attributes.iter().any(|held| match held {
                ChainAttribute::Hook(held) => wanted.iter().all(|it| held.contains(it)),
                _ => false,
            }),
            // The comment has no effect, and kernels before 5.10 do not store it.
            ChainAttribute::UserData(_) => true,
            it => held.attributes.contains(it),
        };
        Ok(chain(wanted).attributes.iter().all(has))
    }

    fn holds_rules(&mut self, wanted: &NatTable) -> Result<bool> {
        let held = self.rules_of(wanted.name, wanted.chain)?;
        let same = |(held, wanted): (&RuleMessage, &NatRule)| {
            held.attributes.iter().any(|it| {
                matches!(it, RuleAttribute::Expressions(it) if are_same(it, &expressions(wanted)))
            })
        };
        Ok(held.len() == wanted.rules.len() && held.iter().zip(&wanted.rules).all(same))
    }

    /// The rules of a chain; none if there is no such chain.
    fn rules_of(&mut self, table: &str, chain: &str) -> Result<Vec<RuleMessage>> {
        let of_chain = rule_of(table, chain);
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: of_chain.to_vec(),
        });
        let mut rules = Vec::new();
        for answer in self.0.dump("list nftables rules", message(request))? {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = answer.inner
                && of_chain.iter().all(|it| rule.attributes.contains(it))
            {
                rules.push(rule);
            }
        }
        Ok(rules)
    }

    fn table(&mut self, name: &str) -> Result<Option<Vec<TableAttribute>>> {
        let attempt = || format!("read nftables table ip {name}");
        let request = message(NfTablesMessage::GetTable(table_named(name)));
        let answer = match self.0.get(attempt, request) {
            Err(error) if is_absent(&error) => return Ok(None),
            answer => answer?,
        };
        match answer.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) => {
                Ok(Some(table.attributes))
            }
            _ => Err(unexpected(attempt, &answer)),
        }
    }

    fn transact(&mut self, attempt: impl Fn() -> String, messages: Vec<Message>) -> Result<()> {
        let delimiter = |it| {
            let subsystem = libc::NFNL_SUBSYS_NFTABLES as u16;
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem);
            (NetfilterMessage::new(header, it), 0)
        };
        let mut batch = vec![delimiter(ControlMessage::BatchBegin)];
        batch.extend(messages);
        batch.push(delimiter(ControlMessage::BatchEnd));
        self.0.change_all(attempt, batch)
    }
}

/// Whether a read request failed because the object does not exist.
fn is_absent(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::ENOENT | NO_NFTABLES_ON_READ))
}

fn message(inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0),
        inner,
    )
}

fn new(inner: NfTablesMessage) -> Message {
    (message(inner), NLM_F_ACK | NLM_F_CREATE)
}

fn delete(table: &str) -> Message {
    let inner = NfTablesMessage::DeleteTable(table_named(table));
    (message(inner), NLM_F_ACK)
}

fn new_rule(table: &NatTable, rule: &NatRule) -> Message {
    let [table, chain] = rule_of(table.name, table.chain);
    let attributes = vec![table, chain, RuleAttribute::Expressions(expressions(rule))];
    let inner = NfTablesMessage::NewRule(RuleMessage { attributes });
    (message(inner), NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND)
}

fn table_named(name: &str) -> TableMessage {
    TableMessage {
        attributes: vec![TableAttribute::Name(name.into())],
    }
}

fn chain_named(table: &str, chain: &str) -> [ChainAttribute; 2] {
    [
        ChainAttribute::Table(table.into()),
        ChainAttribute::Name(chain.into()),
    ]
}

fn rule_of(table: &str, chain: &str) -> [RuleAttribute; 2] {
    [
        RuleAttribute::Table(table.into()),
        RuleAttribute::Chain(chain.into()),
    ]
}

fn chain(table: &NatTable) -> ChainMessage {
    let [of, name] = chain_named(table.name, table.chain);
    let mut comment = vec![COMMENT, table.comment.len() as u8 + 1];
    comment.extend(table.comment.as_bytes());
    comment.push(0);
    ChainMessage {
        attributes: vec![
            of,
            name,
            ChainAttribute::Hook(vec![
                Hook::Number(InetHookNumber::PostRouting.into()),
                Hook::Priority(PRIORITY),
            ]),
            ChainAttribute::Policy(libc::NF_ACCEPT as u32),
            ChainAttribute::Type("nat".into()),
            ChainAttribute::UserData(comment),
        ],
    }
}

fn expressions(rule: &NatRule) -> Vec<Expression> {
    let verdict = match rule.source {
        NewSource::OfInterface => vec![Expressions::Other {
            expression_type: "masq".into(),
            attributes: vec![number(MASQUERADE_FLAGS, FULLY_RANDOM)],
        }],
        NewSource::OfInterfaceWithPort(first, last) => vec![
            load(Register::Reg1, first.to_be_bytes().into()),
            load(Register::Reg2, last.to_be_bytes().into()),
            Expressions::Other {
                expression_type: "masq".into(),
                attributes: vec![
                    number(MASQUERADE_FLAGS, FULLY_RANDOM | PORTS_GIVEN),
                    number(MASQUERADE_FIRST, libc::NFT_REG_1 as u32),
                    number(MASQUERADE_LAST, libc::NFT_REG_2 as u32),
                ],
            },
        ],
        NewSource::Address(address) => vec![
            load(Register::Reg1, address.octets().into()),
            Expressions::Other {
                expression_type: "nat".into(),
                attributes: vec![
                    number(NAT_TYPE, SOURCE_NAT),
                    number(NAT_FAMILY, libc::NFPROTO_IPV4 as u32),
                    // The kernel reports a single address as a range of one.
                    number(NAT_FIRST, libc::NFT_REG_1 as u32),
                    number(NAT_LAST, libc::NFT_REG_1 as u32),
                ],
            },
        ],
    };
    let conditions = conditions(&rule.conditions, NameForm::Nft);
    conditions.chain(verdict).map(Expression::from).collect()
}

/// How a program writes the name of an interface: it takes another form for another rule.
#[derive(Clone, Copy)]
enum NameForm {
    /// `nft`: filled with zeros.
    Nft,
    /// `iptables`: with one zero. Without it, every name that begins so would match.
    Iptables,
}

fn conditions(of: &[Condition], form: NameForm) -> impl Iterator<Item = Expressions> {
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
        move |key, operator, name: &str| compare_interface(key, operator, name_bytes(name));
    of.iter().flat_map(move |it| match *it {
        Condition::From(network) => compare_address(SOURCE, Equal, network),
        Condition::NotFrom(network) => compare_address(SOURCE, NotEqual, network),
        Condition::To(network) => compare_address(DESTINATION, Equal, network),
        Condition::NotTo(network) => compare_address(DESTINATION, NotEqual, network),
        Condition::Into(name) => interface(MetaKey::Iifname, Equal, name),
        Condition::Through(name) => interface(MetaKey::Oifname, Equal, name),
        Condition::NotThrough(name) => interface(MetaKey::Oifname, NotEqual, name),
        Condition::Translated => match form {
            NameForm::Nft => guard::translated(),
            NameForm::Iptables => vec![accepts::translated()],
        },
        Condition::Replies => guard::replies(),
        Condition::SourceBehind(name) => guard::sources_behind(name_bytes(name)),
        Condition::Protocol(number) => guard::header_is(NETWORK_HEADER, PROTOCOL, vec![number]),
        Condition::UdpTo(port) => {
            let protocol = libc::IPPROTO_UDP as u8;
            let mut all = guard::header_is(NETWORK_HEADER, PROTOCOL, vec![protocol]);
            let port = port.to_be_bytes().into();
            all.extend(guard::header_is(TRANSPORT_HEADER, DESTINATION_PORT, port));
            all
        }
        Condition::Udp => vec![
            Expressions::Meta(vec![
                Meta::Key(MetaKey::L4Proto),
                Meta::DestinationRegister(Register::Reg1),
            ]),
            compare(Equal, vec![libc::IPPROTO_UDP as u8]),
        ],
    })
}

fn load(register: Register, value: Vec<u8>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(register),
        Immediate::Data(DataAttribute::Value(value)),
    ])
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().into())
}

fn compare_interface(key: MetaKey, operator: Operator, name: Vec<u8>) -> Vec<Expressions> {
    vec![
        Expressions::Meta(vec![
            Meta::Key(key),
            Meta::DestinationRegister(Register::Reg1),
        ]),
        compare(operator, name),
    ]
}

fn compare_address(offset: u32, operator: Operator, network: Ipv4Network) -> Vec<Expressions> {
    let mut all = vec![Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(NETWORK_HEADER),
        Payload::Offset(offset),
        Payload::Len(4),
    ])];
    if network.prefix() < 32 {
        all.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(4),
            Bitwise::Mask(DataAttribute::Value(network.mask().octets().into())),
            Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
        ]));
    }
    all.push(compare(operator, network.network().octets().into()));
    all
}

fn compare(operator: Operator, with: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(with)),
    ])
}

/// Whether the kernel's expressions are the requested ones. Kernels report attributes in their own
/// order, and newer kernels report additional ones.
fn are_same(held: &[Expression], wanted: &[Expression]) -> bool {
    held.len() == wanted.len() && held.iter().zip(wanted).all(|it| is_same(it.0, it.1))
}

fn is_same(held: &Expression, wanted: &Expression) -> bool {
    match (data(held), data(wanted)) {
        (Some(Expressions::Payload(held)), Some(Expressions::Payload(wanted))) => {
            has_all(held, wanted)
        }
        (Some(Expressions::Bitwise(held)), Some(Expressions::Bitwise(wanted))) => {
            has_all(held, wanted)
        }
        (Some(Expressions::Cmp(held)), Some(Expressions::Cmp(wanted))) => has_all(held, wanted),
        (Some(Expressions::Meta(held)), Some(Expressions::Meta(wanted))) => has_all(held, wanted),
        (Some(Expressions::Immediate(held)), Some(Expressions::Immediate(wanted))) => {
            has_all(held, wanted)
        }
        (
            Some(Expressions::Other {
                expression_type: held_type,
                attributes: held,
            }),
            Some(Expressions::Other {
                expression_type,
                attributes: wanted,
            }),
        ) => held_type == expression_type && has_all(held, wanted),
        (held, wanted) => held.is_some() && held == wanted,
    }
}

fn data(expression: &Expression) -> Option<&Expressions> {
    let ListAttribute::Element(attributes) = expression else {
        return None;
    };
    attributes.iter().find_map(|it| match it {
        ExpressionAttribute::Data(data) => Some(data),
        _ => None,
    })
}

fn has_all<T: PartialEq>(held: &[T], wanted: &[T]) -> bool {
    wanted.iter().all(|it| held.contains(it))
}

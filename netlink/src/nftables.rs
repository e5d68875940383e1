//! A table of nftables of our own, of the family `ip`, that translates source addresses.
//!
//! The kernel speaks of rules as programs of small expressions over registers; `nft` shows them in
//! its own words all the same.

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

/// Just before others translate source addresses (`srcnat` in the words of `nft`): whoever is
/// first with a connection decides.
const PRIORITY: u32 = 99;
/// Bytes of an interface's name in a register.
const NAME_BYTES: usize = 16;
/// Offsets in the IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;
/// `NFTA_MASQ_FLAGS`.
const MASQUERADE_FLAGS: u16 = 1;
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
/// What a kernel without nftables answers to a question (`nfnetlink_rcv_msg`).
const NO_NFTABLES_TO_ASK: Errno = Errno::EINVAL;
/// What it answers to a transaction (`nfnetlink_rcv_batch`).
const NO_NFTABLES_TO_CHANGE: Errno = Errno::EOPNOTSUPP;

/// A table with one chain of type `nat` after routing, and nothing else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NatTable<'a> {
    /// Its name.
    pub name: &'a str,
    /// Name of the chain.
    pub chain: &'a str,
    /// What the chain is for, for people who list it.
    pub comment: &'a str,
    /// The chain's rules.
    pub rules: Vec<NatRule<'a>>,
}

/// A rule for the first packet of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NatRule<'a> {
    /// What must be true of the packet, all of it.
    pub conditions: Vec<Condition<'a>>,
    /// The source that it leaves with.
    pub source: NewSource,
}

/// What may be true of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition<'a> {
    /// Its source is in there.
    From(Ipv4Network),
    /// Its source is not in there.
    NotFrom(Ipv4Network),
    /// Its destination is not in there.
    NotTo(Ipv4Network),
    /// It leaves through this interface.
    Through(&'a str),
    /// It leaves through another interface.
    NotThrough(&'a str),
}

/// The source with which a packet leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NewSource {
    /// The address of the interface, and a random port.
    OfInterface,
    /// This address, and the same port if that is free.
    Address(Ipv4Addr),
}

type Message = (NetfilterMessage, u16);
type Expression = ListAttribute<ExpressionAttribute>;

/// Asks and changes nftables of one network namespace.
pub struct Nftables(Netlink<NetfilterMessage>);

impl Nftables {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Netlink::open_protocol(NETLINK_NETFILTER).map(Self)
    }

    /// Opens a socket in `ns`; the calling thread stays where it is.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Makes the table, in the place of whatever has its name: no packet sees neither or both.
    pub fn replace(&mut self, table: &NatTable) -> Result<()> {
        let mut messages = vec![
            // There must be something to delete.
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

    /// Deletes a table with all that is in it; fine if there is none.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        let attempt = || format!("delete nftables table ip {name}");
        match self.transact(attempt, vec![delete(name)]) {
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | NO_NFTABLES_TO_CHANGE)) => {
                Ok(())
            }
            done => done,
        }
    }

    /// Whether there is a table of this name.
    pub fn has(&mut self, name: &str) -> Result<bool> {
        Ok(self.table(name)?.is_some())
    }

    /// Whether the kernel has this very table: nothing more, nothing less, and in use.
    pub fn holds(&mut self, wanted: &NatTable) -> Result<bool> {
        let Some(table) = self.table(wanted.name)? else {
            return Ok(false);
        };
        let dormant = table
            .iter()
            .any(|it| matches!(it, TableAttribute::Flags(flags) if !flags.is_empty()));
        // One object alone, which then is the chain.
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
            Err(error) if is_none(&error) => return Ok(false),
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
            // No part of what it does, and kernels before 5.10 do not keep it.
            ChainAttribute::UserData(_) => true,
            it => held.attributes.contains(it),
        };
        Ok(chain(wanted).attributes.iter().all(has))
    }

    fn holds_rules(&mut self, wanted: &NatTable) -> Result<bool> {
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: rule_of(wanted).into(),
        });
        let mut held = Vec::new();
        for answer in self.0.dump("list nftables rules", message(request))? {
            let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = answer.inner
            else {
                continue;
            };
            if rule_of(wanted)
                .iter()
                .all(|it| rule.attributes.contains(it))
            {
                held.push(rule);
            }
        }
        let same = |(held, wanted): (&RuleMessage, &NatRule)| {
            held.attributes.iter().any(|it| {
                matches!(it, RuleAttribute::Expressions(it) if are_same(it, &expressions(wanted)))
            })
        };
        Ok(held.len() == wanted.rules.len() && held.iter().zip(&wanted.rules).all(same))
    }

    fn table(&mut self, name: &str) -> Result<Option<Vec<TableAttribute>>> {
        let attempt = || format!("read nftables table ip {name}");
        let request = message(NfTablesMessage::GetTable(table_named(name)));
        let answer = match self.0.get(attempt, request) {
            Err(error) if is_none(&error) => return Ok(None),
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
        let border = |it| {
            let subsystem = libc::NFNL_SUBSYS_NFTABLES as u16;
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem);
            (NetfilterMessage::new(header, it), 0)
        };
        let mut batch = vec![border(ControlMessage::BatchBegin)];
        batch.extend(messages);
        batch.push(border(ControlMessage::BatchEnd));
        self.0.change_all(attempt, batch)
    }
}

/// Whether a question was answered with: there is none.
fn is_none(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::ENOENT | NO_NFTABLES_TO_ASK))
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
    let [table, chain] = rule_of(table);
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

fn rule_of(table: &NatTable) -> [RuleAttribute; 2] {
    [
        RuleAttribute::Table(table.name.into()),
        RuleAttribute::Chain(table.chain.into()),
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
    let conditions = rule.conditions.iter().flat_map(|it| match *it {
        Condition::From(network) => compare_address(SOURCE, Operator::Equal, network),
        Condition::NotFrom(network) => compare_address(SOURCE, Operator::NotEqual, network),
        Condition::NotTo(network) => compare_address(DESTINATION, Operator::NotEqual, network),
        Condition::Through(name) => compare_interface(Operator::Equal, name),
        Condition::NotThrough(name) => compare_interface(Operator::NotEqual, name),
    });
    let verdict = match rule.source {
        NewSource::OfInterface => vec![Expressions::Other {
            expression_type: "masq".into(),
            attributes: vec![number(MASQUERADE_FLAGS, FULLY_RANDOM)],
        }],
        NewSource::Address(address) => vec![
            Expressions::Immediate(vec![
                Immediate::DestinationRegister(Register::Reg1),
                Immediate::Data(DataAttribute::Value(address.octets().into())),
            ]),
            Expressions::Other {
                expression_type: "nat".into(),
                attributes: vec![
                    number(NAT_TYPE, SOURCE_NAT),
                    number(NAT_FAMILY, libc::NFPROTO_IPV4 as u32),
                    // The kernel tells a single address as a range of one.
                    number(NAT_FIRST, libc::NFT_REG_1 as u32),
                    number(NAT_LAST, libc::NFT_REG_1 as u32),
                ],
            },
        ],
    };
    conditions.chain(verdict).map(Expression::from).collect()
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().into())
}

fn compare_interface(operator: Operator, name: &str) -> Vec<Expressions> {
    let mut name = name.as_bytes().to_vec();
    name.resize(NAME_BYTES, 0);
    vec![
        Expressions::Meta(vec![
            Meta::Key(MetaKey::Oifname),
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

/// Whether the kernel's expressions are those that were asked for. Kernels tell them in an order
/// of their own, and newer ones tell more of each.
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

//! A table of our own with a NAT chain.

use super::{
    Nftables,
    base_chains::BaseChain,
    conditions::{Condition, NameForm, conditions},
    expressions::{Expression, load, number},
};
use crate::Result;
use netlink_packet_netfilter::nftables::{Expressions, InetHookNumber, Register};
use nix::libc;
use std::net::Ipv4Addr;

/// One before `srcnat` (100), the usual priority of SNAT: the first chain that translates a connection
/// decides.
const PRIORITY: i32 = 99;
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

impl Nftables {
    /// Creates the table, or replaces the one with its name in one transaction.
    pub fn replace(&mut self, table: &NatTable) -> Result<()> {
        self.replace_table(table.name, &[chain(table)])
    }

    /// Whether the kernel has exactly this table, and it is active.
    pub fn holds(&mut self, wanted: &NatTable) -> Result<bool> {
        self.holds_table(wanted.name, &[chain(wanted)])
    }
}

fn chain<'a>(table: &NatTable<'a>) -> BaseChain<'a> {
    BaseChain {
        name: table.chain,
        kind: "nat",
        hook: InetHookNumber::PostRouting,
        priority: PRIORITY,
        comment: table.comment,
        rules: table.rules.iter().map(translation).collect(),
    }
}

fn translation(rule: &NatRule) -> Vec<Expression> {
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

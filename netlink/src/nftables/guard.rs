//! A table of our own with chains of type `filter`, which accept and drop packets.

use super::{
    COMMENT, Condition, Expression, Message, NameForm, Nftables, are_same, chain_named, conditions,
    delete, is_absent, message, new, number, rule_of, table_named,
};
use crate::{Result, socket::unexpected};
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::{
    NetfilterMessageInner,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, DataAttribute, Expressions, Hook, InetHookNumber,
        NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, TableAttribute,
        Verdict, VerdictAttribute,
    },
};
use nix::libc;

/// A table with base chains of type `filter`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuardTable<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its chains.
    pub chains: Vec<GuardChain<'a>>,
}

/// A chain, called as its hook. It accepts what none of its rules drops; chains of other programs still see the packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuardChain<'a> {
    /// Where packets enter it.
    pub hook: GuardHook,
    /// Its comment, which `nft list` shows.
    pub comment: &'a str,
    /// Its rules. The first one whose conditions are met decides.
    pub rules: Vec<GuardRule<'a>>,
}

/// A rule of a [`GuardChain`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuardRule<'a> {
    /// The conditions, all of which the packet must meet.
    pub conditions: Vec<Condition<'a>>,
    /// Whether the packet is dropped, and counted, or accepted.
    pub drops: bool,
}

/// The place of a [`GuardChain`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuardHook {
    /// Before connection tracking and routing.
    Prerouting,
    /// Between two interfaces, after translation of the destination.
    Forward,
    /// Before a packet leaves, after translation of the destination.
    Postrouting,
}

impl GuardHook {
    fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Forward => "forward",
            Self::Postrouting => "postrouting",
        }
    }

    fn number(self) -> InetHookNumber {
        match self {
            Self::Prerouting => InetHookNumber::PreRouting,
            Self::Forward => InetHookNumber::Forward,
            Self::Postrouting => InetHookNumber::PostRouting,
        }
    }

    /// `raw` and `filter`.
    fn priority(self) -> i32 {
        match self {
            Self::Prerouting => libc::NF_IP_PRI_RAW,
            Self::Forward | Self::Postrouting => libc::NF_IP_PRI_FILTER,
        }
    }
}

impl Nftables {
    /// Creates the table, or replaces the one with its name in one transaction.
    pub fn replace_guard(&mut self, table: &GuardTable) -> Result<()> {
        let mut messages = vec![
            // Deletion fails if there is no table, so create one first.
            new(NfTablesMessage::NewTable(table_named(table.name))),
            delete(table.name),
            new(NfTablesMessage::NewTable(table_named(table.name))),
        ];
        for chain in &table.chains {
            messages.push(new(NfTablesMessage::NewChain(chain_of(table, chain))));
            messages.extend(chain.rules.iter().map(|it| new_rule(table, chain, it)));
        }
        self.transact(
            || format!("replace nftables table ip {}", table.name),
            messages,
        )
    }

    /// Whether the kernel has exactly this table, and it is active.
    pub fn holds_guard(&mut self, wanted: &GuardTable) -> Result<bool> {
        let Some(table) = self.table(wanted.name)? else {
            return Ok(false);
        };
        let is_dormant =
            |it: &TableAttribute| matches!(it, TableAttribute::Flags(flags) if !flags.is_empty());
        let objects = TableAttribute::Use(wanted.chains.len() as u32);
        if table.iter().any(is_dormant) || !table.contains(&objects) {
            return Ok(false);
        }
        for chain in &wanted.chains {
            if !self.holds_guard_chain(wanted, chain)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn holds_guard_chain(&mut self, table: &GuardTable, wanted: &GuardChain) -> Result<bool> {
        let name = wanted.hook.name();
        let attempt = || format!("read nftables chain ip {} {name}", table.name);
        let request = NfTablesMessage::GetChain(ChainMessage {
            attributes: chain_named(table.name, name).into(),
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
        if !chain_of(table, wanted).attributes.iter().all(has) {
            return Ok(false);
        }
        let held = self.rules_of(table.name, name)?;
        let same = |(held, wanted): (&RuleMessage, &GuardRule)| {
            held.attributes.iter().any(|it| {
                matches!(it, RuleAttribute::Expressions(it) if are_same(it, &expressions(wanted)))
            })
        };
        Ok(held.len() == wanted.rules.len() && held.iter().zip(&wanted.rules).all(same))
    }
}

fn chain_of(table: &GuardTable, chain: &GuardChain) -> ChainMessage {
    let [of, name] = chain_named(table.name, chain.hook.name());
    let mut comment = vec![COMMENT, chain.comment.len() as u8 + 1];
    comment.extend(chain.comment.as_bytes());
    comment.push(0);
    ChainMessage {
        attributes: vec![
            of,
            name,
            ChainAttribute::Hook(vec![
                Hook::Number(chain.hook.number().into()),
                Hook::Priority(chain.hook.priority() as u32),
            ]),
            ChainAttribute::Policy(libc::NF_ACCEPT as u32),
            ChainAttribute::Type("filter".into()),
            ChainAttribute::UserData(comment),
        ],
    }
}

fn new_rule(table: &GuardTable, chain: &GuardChain, rule: &GuardRule) -> Message {
    let [table, chain] = rule_of(table.name, chain.hook.name());
    let attributes = vec![table, chain, RuleAttribute::Expressions(expressions(rule))];
    let inner = NfTablesMessage::NewRule(RuleMessage { attributes });
    (message(inner), NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND)
}

fn expressions(rule: &GuardRule) -> Vec<Expression> {
    let verdict = match rule.drops {
        true => vec![super::accepts::counter(), verdict(super::accepts::DROP)],
        false => vec![verdict(super::accepts::ACCEPT)],
    };
    let conditions = conditions(&rule.conditions, NameForm::Nft);
    conditions.chain(verdict).map(Expression::from).collect()
}

fn verdict(code: Verdict) -> Expressions {
    super::accepts::immediate(vec![VerdictAttribute::Code(code)])
}

/// The connection's destination was translated (`ct status dnat`).
pub(super) fn translated() -> Vec<Expressions> {
    /// `NFT_CT_STATUS`.
    const STATUS: u32 = 2;
    /// `IPS_DST_NAT`.
    const DNAT: u32 = 1 << 5;
    vec![
        of_connection(STATUS),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(4),
            Bitwise::Mask(DataAttribute::Value(DNAT.to_ne_bytes().into())),
            Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
        ]),
        super::compare(Operator::NotEqual, vec![0; 4]),
    ]
}

/// The packet answers the end that began the connection (`ct direction reply`).
pub(super) fn replies() -> Vec<Expressions> {
    /// `NFT_CT_DIRECTION`.
    const DIRECTION: u32 = 1;
    /// `IP_CT_DIR_REPLY`.
    const REPLY: u8 = 1;
    vec![
        of_connection(DIRECTION),
        super::compare(Operator::Equal, vec![REPLY]),
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
pub(super) fn sources_behind(interface: Vec<u8>) -> Vec<Expressions> {
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
    vec![fib, super::compare(Operator::Equal, interface)]
}

/// `bytes` at `offset` of the network header (1) or the transport header (2).
pub(super) fn header_is(base: u32, offset: u32, bytes: Vec<u8>) -> Vec<Expressions> {
    vec![
        Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(bytes.len() as u32),
        ]),
        super::compare(Operator::Equal, bytes),
    ]
}

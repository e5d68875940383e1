//! nftables rules of the family `ip`: a table with one NAT chain, for SNAT, a table that drops packets, and accept rules
//! in a chain of iptables.
//!
//! In the kernel, a rule is a list of expressions over registers. `nft` lists them in its own syntax.

use crate::{Error, NetNs, Netlink, Result, socket::unexpected};
use expressions::Expression;
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute,
        TableMessage,
    },
    none::ControlMessage,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{errno::Errno, libc};

mod accepts;
mod base_chains;
mod conditions;
mod expressions;
mod forward;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod guard;
mod nat;

pub(crate) use forward::xtables_state;
#[cfg(feature = "fuzzing")]
pub(crate) use fuzzing::read;

pub use accepts::{AcceptChain, IPTABLES_FORWARD, IPTABLES_TABLE};
pub use conditions::Condition;
pub use guard::{GuardChain, GuardHook, GuardRule, GuardTable};
pub use nat::{NatRule, NatTable, NewSource};

/// The error of a kernel without nftables for a read request (`nfnetlink_rcv_msg`).
const NO_NFTABLES_ON_READ: Errno = Errno::EINVAL;
/// The error of a kernel without nftables for a transaction (`nfnetlink_rcv_batch`).
const NO_NFTABLES_ON_CHANGE: Errno = Errno::EOPNOTSUPP;

type Message = (NetfilterMessage, u16);

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

    fn chain(&mut self, table: &str, name: &str) -> Result<Option<Vec<ChainAttribute>>> {
        let attempt = || format!("read nftables chain ip {table} {name}");
        let request = NfTablesMessage::GetChain(ChainMessage {
            attributes: chain_named(table, name).into(),
        });
        let answer = match self.0.get(attempt, message(request)) {
            Err(error) if is_absent(&error) => return Ok(None),
            answer => answer?,
        };
        match answer.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) => {
                Ok(Some(chain.attributes))
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

fn append_rule(table: &str, chain: &str, expressions: Vec<Expression>) -> Message {
    let mut attributes = rule_of(table, chain).to_vec();
    attributes.push(RuleAttribute::Expressions(expressions));
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

//! A table of our own with chains of type `filter`, which accept and drop packets.

use super::{
    Nftables,
    base_chains::BaseChain,
    conditions::{Condition, NameForm, conditions},
    expressions::{ACCEPT, DROP, Expression, counter, immediate},
};
use crate::Result;
use netlink_packet_netfilter::nftables::{Expressions, InetHookNumber, Verdict, VerdictAttribute};
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
        self.replace_table(table.name, &base_chains(table))
    }

    /// Whether the kernel has exactly this table, and it is active.
    pub fn holds_guard(&mut self, wanted: &GuardTable) -> Result<bool> {
        self.holds_table(wanted.name, &base_chains(wanted))
    }
}

fn base_chains<'a>(table: &GuardTable<'a>) -> Vec<BaseChain<'a>> {
    let base_chain = |it: &GuardChain<'a>| BaseChain {
        name: it.hook.name(),
        kind: "filter",
        hook: it.hook.number(),
        priority: it.hook.priority(),
        comment: it.comment,
        rules: it.rules.iter().map(decision).collect(),
    };
    table.chains.iter().map(base_chain).collect()
}

fn decision(rule: &GuardRule) -> Vec<Expression> {
    let verdict = match rule.drops {
        true => vec![counter(), verdict(DROP)],
        false => vec![verdict(ACCEPT)],
    };
    let conditions = conditions(&rule.conditions, NameForm::Nft);
    conditions.chain(verdict).map(Expression::from).collect()
}

fn verdict(code: Verdict) -> Expressions {
    immediate(vec![VerdictAttribute::Code(code)])
}

//! Tables of our own, each of them base chains with rules.

use super::{
    Nftables, append_rule, chain_named, delete,
    expressions::{Expression, are_same, expressions},
    new, table_named,
};
use crate::Result;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, InetHookNumber, NfTablesMessage, RuleMessage,
    TableAttribute,
};
use nix::libc;

/// `NFTNL_UDATA_CHAIN_COMMENT`.
const COMMENT: u8 = 0;

/// A base chain, which accepts what none of its rules drops.
pub(super) struct BaseChain<'a> {
    pub name: &'a str,
    /// Its type.
    pub kind: &'static str,
    pub hook: InetHookNumber,
    pub priority: i32,
    /// Its comment, which `nft list` shows.
    pub comment: &'a str,
    /// The expressions of each rule.
    pub rules: Vec<Vec<Expression>>,
}

impl Nftables {
    /// Creates the table, or replaces the one with its name in one transaction.
    pub(super) fn replace_table(&mut self, table: &str, chains: &[BaseChain]) -> Result<()> {
        let mut messages = vec![
            // Deletion fails if there is no table, so create one first.
            new(NfTablesMessage::NewTable(table_named(table))),
            delete(table),
            new(NfTablesMessage::NewTable(table_named(table))),
        ];
        for chain in chains {
            let attributes = chain.attributes(table);
            messages.push(new(NfTablesMessage::NewChain(ChainMessage { attributes })));
            let rules = chain.rules.iter();
            messages.extend(rules.map(|it| append_rule(table, chain.name, it.clone())));
        }
        self.transact(|| format!("replace nftables table ip {table}"), messages)
    }

    /// Whether the kernel has exactly this table, and it is active.
    pub(super) fn holds_table(&mut self, name: &str, chains: &[BaseChain]) -> Result<bool> {
        let Some(table) = self.table(name)? else {
            return Ok(false);
        };
        let is_dormant =
            |it: &TableAttribute| matches!(it, TableAttribute::Flags(flags) if !flags.is_empty());
        // No other objects than the chains.
        let objects = TableAttribute::Use(chains.len() as u32);
        if table.iter().any(is_dormant) || !table.contains(&objects) {
            return Ok(false);
        }
        for chain in chains {
            if !self.holds_chain(name, chain)? || !self.holds_rules(name, chain)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn holds_chain(&mut self, table: &str, wanted: &BaseChain) -> Result<bool> {
        let Some(held) = self.chain(table, wanted.name)? else {
            return Ok(false);
        };
        let has = |it: &ChainAttribute| match it {
            ChainAttribute::Hook(wanted) => held.iter().any(|held| match held {
                ChainAttribute::Hook(held) => wanted.iter().all(|it| held.contains(it)),
                _ => false,
            }),
            // The comment has no effect, and kernels before 5.10 do not store it.
            ChainAttribute::UserData(_) => true,
            it => held.contains(it),
        };
        Ok(wanted.attributes(table).iter().all(has))
    }

    fn holds_rules(&mut self, table: &str, wanted: &BaseChain) -> Result<bool> {
        let held = self.rules_of(table, wanted.name)?;
        let same =
            |(held, wanted): (&RuleMessage, &Vec<Expression>)| are_same(expressions(held), wanted);
        Ok(held.len() == wanted.rules.len() && held.iter().zip(&wanted.rules).all(same))
    }
}

impl BaseChain<'_> {
    fn attributes(&self, table: &str) -> Vec<ChainAttribute> {
        let mut comment = vec![COMMENT, self.comment.len() as u8 + 1];
        comment.extend(self.comment.as_bytes());
        comment.push(0);
        let mut attributes = chain_named(table, self.name).to_vec();
        attributes.extend([
            ChainAttribute::Hook(vec![
                Hook::Number(self.hook.into()),
                Hook::Priority(self.priority as u32),
            ]),
            ChainAttribute::Policy(libc::NF_ACCEPT as u32),
            ChainAttribute::Type(self.kind.into()),
            ChainAttribute::UserData(comment),
        ]);
        attributes
    }
}
